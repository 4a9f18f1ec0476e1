#!/usr/bin/env python3
"""Compiles every variant of every CUDA kernel with NVRTC and ptxas; needs no GPU.

    pip install -r kernels/requirements.txt
    python kernels/check.py            # writes the table in kernels/README.md
    python kernels/check.py --check    # fails if the table is out of date

Fails on a compiler's or assembler's warning, a spill, local memory, more than 48 KB of static shared memory or 227 KB
that a launch brings, and on a tensor-core kernel whose machine code lacks the instructions that variants.py names.
"""

import argparse
import ctypes
import importlib.util
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from variants import ARCHITECTURES, CUDA, OPERATIONS, label, planned, source, variant

STATIC_LIMIT = 48 * 1024
# Of a block on sm_90.
LAUNCHED_LIMIT = 227 * 1024
# What ptxas says, among its counts, where it did not do what the source asks.
WARNINGS = re.compile(r"^.*(?:warning|Potential Performance Loss|setmaxnreg).*$", re.MULTILINE | re.IGNORECASE)
README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- registers -->", "<!-- /registers -->"


def toolkit():
    """The folder of NVIDIA's wheels."""
    for root in importlib.util.find_spec("nvidia").submodule_search_locations:
        for folder in sorted(Path(root).glob("cu*")):
            if (folder / "bin" / "ptxas").exists():
                return folder
    sys.exit("no ptxas: pip install -r kernels/requirements.txt")


class Nvrtc:
    """NVRTC's C interface."""

    def __init__(self, folder):
        self.library = ctypes.CDLL(str(next((folder / "lib").glob("libnvrtc.so.*"))))

    def compile(self, text, architecture):
        """PTX, and the compiler's log."""
        program = ctypes.c_void_p()
        self.call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), None, 0, None, None)
        options = [f"--gpu-architecture={architecture}".encode()]
        array = (ctypes.c_char_p * len(options))(*options)
        status = self.library.nvrtcCompileProgram(program, len(options), array)
        log = self.text("nvrtcGetProgramLog", program)
        if status != 0:
            raise RuntimeError(log)
        ptx = self.text("nvrtcGetPTX", program)
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return ptx, log

    def text(self, name, program):
        size = ctypes.c_size_t()
        self.call(f"{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(name, program, buffer)
        return buffer.value.decode()

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} returned {status}")


def entries(log):
    """ptxas's report: {entry: (registers, shared bytes)} and its faults."""
    found, faults = {}, []
    for block in log.split("Compiling entry function ")[1:]:
        name = re.match(r"'(\w+)'", block)[1]
        spill = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers = int(re.search(r"Used (\d+) registers", block)[1])
        shared = re.search(r"(\d+) bytes smem", block)
        shared = int(shared[1]) if shared else 0
        if any(int(count) for count in spill.groups()) or "bytes lmem" in block:
            faults.append(f"{name}: {spill[0]}")
        if shared > STATIC_LIMIT:
            faults.append(f"{name}: {shared} bytes of shared memory")
        found[name] = (registers, shared)
    return found, faults


def compile_variant(tools, nvrtc, operation, elem, constants, architecture):
    """{entry: (registers, shared bytes)} and faults of one variant."""
    kernel = OPERATIONS[operation]
    try:
        ptx, log = nvrtc.compile(source(operation, elem, constants), architecture)
    except RuntimeError as error:
        return {}, [str(error)]
    faults = [log] if log.strip() else []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "k.ptx").write_text(ptx)
        command = [tools / "bin" / "ptxas", "-v", f"-arch={architecture}", "-o", "k.cubin", "k.ptx"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode != 0:
            return {}, faults + [result.stderr]
        found, more = entries(result.stderr)
        faults += more + WARNINGS.findall(result.stderr)
        launched = kernel.memory_of(constants)
        if launched is not None:
            found = {name: (registers, shared + launched) for name, (registers, shared) in found.items()}
            if any(size > LAUNCHED_LIMIT for _, size in found.values()):
                faults.append(f"{launched} bytes of shared memory that a launch brings")
        if set(found) != set(kernel.entries):
            faults.append(f"entries {sorted(found)}, expected {sorted(kernel.entries)}")
        if kernel.instructions and elem != "f32":
            command = [tools / "bin" / "nvdisasm", "-c", "k.cubin"]
            code = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
            faults += [f"no {name} in the machine code" for name in kernel.instructions if name not in code]
    return found, faults


def table(results):
    lines = [
        "| entry | constants | type | " + " | ".join(ARCHITECTURES) + " | shared bytes |",
        "|---|---|---|" + "---|" * (len(ARCHITECTURES) + 1),
    ]
    for (operation, elem, constants), by_architecture in results.items():
        for entry in OPERATIONS[operation].entries:
            cells = [by_architecture.get(architecture, {}).get(entry) for architecture in ARCHITECTURES]
            registers = " | ".join(str(cell[0]) if cell else "" for cell in cells)
            shared = max(cell[1] for cell in cells if cell)
            lines.append(f"| `{entry}` | {constants} | {elem} | {registers} | {shared} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the table in README.md is out of date")
    parser.add_argument("operations", nargs="*", help="only these, and leave the table alone")
    arguments = parser.parse_args()
    unlisted = {path.stem for path in CUDA.glob("*.cu")} ^ set(OPERATIONS)
    if unlisted:
        sys.exit(f"cuda/ and variants.py disagree on {sorted(unlisted)}")
    for call in planned():
        for plan in call.plans:
            variant(call, plan)

    tools = toolkit()
    nvrtc = Nvrtc(tools)
    chosen = arguments.operations or list(OPERATIONS)
    tasks = [
        (operation, elem, constants, architecture)
        for operation in chosen
        for elem in OPERATIONS[operation].elems
        for constants in OPERATIONS[operation].variants(elem)
        for architecture in OPERATIONS[operation].architectures
    ]
    results, failed = {}, 0
    with ThreadPoolExecutor() as pool:
        compiled = pool.map(lambda task: compile_variant(tools, nvrtc, *task), tasks)
        for (operation, elem, constants, architecture), (found, faults) in zip(tasks, compiled):
            name = (operation, elem, label(constants))
            results.setdefault(name, {})[architecture] = found
            for fault in faults:
                failed += 1
                print(f"{operation} {elem} {label(constants)} {architecture}: {fault}", file=sys.stderr)
    print(f"{len(tasks)} compilations, {failed} faults")
    if failed or not tasks:
        sys.exit(1)

    if arguments.operations:
        print(table(results))
        return
    text = README.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    fresh = f"{before}{BEGIN}\n{table(results)}\n{END}{after}"
    if arguments.check:
        if fresh != text:
            sys.exit("the table in kernels/README.md is out of date: run kernels/check.py")
    else:
        README.write_text(fresh)


if __name__ == "__main__":
    main()
