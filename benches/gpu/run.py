#!/usr/bin/env python3
"""This crate on a GPU: its kernel tests, under compute-sanitizer too, and its speed beside PyTorch and diffusers.

    run.py tests sanitize k1 k2 k3 k4 m1 m6     # all stages, in this order
    run.py m1 --only 'batch 4'                  # a part of one
    run.py k2 --dry-run                         # what it would do, and what is missing for it

Needs Python 3.11 or later, PyTorch for CUDA, and the folder that pack.sh made (or programs in --programs FOLDER); neither
Rust nor a network. Each stage ends within --limit seconds. Both sides take turns, --rounds times each, and their samples
are put together. Each stage adds its part to benches/results/DATE-GPU.json, a failed one with the reason.
On a machine without a GPU, --smoke runs small sizes on the CPU and on software Vulkan.
"""

import argparse
import hashlib
import json
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import figures
import machine
import workloads

HERE = Path(__file__).resolve().parent
TEST_PROGRAMS = ("kernels-test", "wgpu-test")
# The names of the tests on CUDA begin with this.
CUDA_TESTS = "cuda::"


class Failed(Exception):
    """Why a stage cannot be finished."""


class Run:
    """What the stages share."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.work = Path(arguments.work)
        self.pack = Path(arguments.pack)
        self.programs = Path(arguments.programs) if arguments.programs else self.work / "programs"
        self.gpu = machine.gpu_facts()
        self.deadline = float("inf")
        self.commands, self.clocks = [], []

    def unpack(self):
        """What pack.sh packed, once for all stages on this machine."""
        for path in sorted(self.pack.glob("*")):
            done = self.work / "unpacked" / hashlib.sha256(path.read_bytes()).hexdigest()
            if done.exists():
                continue
            if path.suffix == ".xz":
                target = self.programs / path.stem
                target.parent.mkdir(parents=True, exist_ok=True)
                with lzma.open(path) as packed, target.open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
                target.chmod(0o755)
            elif path.suffix == ".whl":
                with zipfile.ZipFile(path) as wheel:
                    wheel.extractall(self.work / "site")
            elif path.suffix == ".deb":
                subprocess.run(["dpkg-deb", "-x", path, self.work / "root"], check=True)
            done.parent.mkdir(parents=True, exist_ok=True)
            done.touch()
        machine.link_nvrtc(self.work / "lib")

    def environment(self, **more):
        site = [str(self.work / "site")] if (self.work / "site").exists() else []
        path = ":".join(site + [os.environ.get("PYTHONPATH", "")]).strip(":")
        cache = str(self.work / "inductor")
        variables = {**machine.environment(self.work), "PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": cache}
        # Where tests find their fixtures: they were built in another folder.
        variables["CARGO_MANIFEST_DIR"] = str(machine.ROOT)
        return {**os.environ, **variables, **more}

    def call(self, command, **more):
        """Runs a program to its end or to the deadline; its output, peak memory, and exit status."""
        shown = shlex.join(map(str, command))
        print(f"$ {shown}", flush=True)
        if shown not in self.commands:
            self.commands.append(shown)
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Failed(f"no time was left for {shown}")
        before = machine.gpu_used_mb() if self.gpu else None
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                list(map(str, command)), env=self.environment(**more), stdout=out, stderr=errors,
                start_new_session=True,
            )
            watch = machine.Watch(process, before)
            try:
                status = process.wait(left)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                # Also where this script is told to end.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            peak, clocks = watch.found()
            self.clocks += [clocks] if clocks else []
            out.seek(0)
            errors.seek(0)
            text, complaints = out.read(), errors.read()
        sys.stderr.write(complaints[-4000:])
        if status is None:
            raise Failed(f"the limit of {self.arguments.limit} s was reached in {shown}")
        return text, complaints, peak, status

    def required(self):
        """Without this the tests on CUDA would be ignored where they find no device."""
        return {} if self.arguments.smoke else {"AQUATINT_REQUIRE_CUDA": "1"}

    def program(self, name):
        path = self.programs / name
        if not path.exists():
            raise Failed(f"{name} is not in {self.programs}")
        return path


def our_command(run, stage, workload_list, sides):
    """Our bench over some workloads, on every side that is asked for."""
    names = []
    for workload in workload_list:
        for side in sides:
            for dtype in workloads.types(workload, run.arguments.smoke, side):
                names.append(our_name(stage, workload, side, dtype))
    return [run.programs / f"{workloads.STAGES[stage].bench}-bench", "|".join(names), "--bench", "--noplot"]


def our_name(stage, workload, side, dtype):
    name = f"{workload.name} {side} {workloads.TYPES[dtype][0]}"
    return f"{name} kernel" if workloads.STAGES[stage].bench == "kernels" else name


def peer_command(run, stage, only):
    arguments = run.arguments
    command = [sys.executable, HERE / "peers.py", stage, "--device", arguments.device, "--only", only]
    command += ["--smoke"] if arguments.smoke else []
    return command + (["--no-compile"] if arguments.no_compile else [])


def ours(run, stage, workload_list, rows, skipped):
    program = run.program(f"{workloads.STAGES[stage].bench}-bench")
    sides = run.arguments.sides.split(",")
    alone = workloads.STAGES[stage].alone
    for group in [sides] if not alone else [[side] for side in sides]:
        with tempfile.TemporaryDirectory() as home:
            command = [program, *our_command(run, stage, workload_list, group)[1:]]
            _, complaints, peak, status = run.call(command, CRITERION_HOME=home)
            found = figures.criterion(home)
        for workload in workload_list:
            for side in group:
                for dtype in workloads.types(workload, run.arguments.smoke, side):
                    name = our_name(stage, workload, side, dtype)
                    if name in found:
                        memory = {"peak_mb": peak} if alone else {}
                        rows.add(workload.name, dtype, f"aquatint {side}", found[name], **memory)
                    else:
                        said = re.search(rf"^skipped: {re.escape(name)}: (.*)$", complaints, re.M)
                        absent = re.search(rf"^skipped: {side}( {workloads.TYPES[dtype][0]})?: (.*)$", complaints, re.M)
                        reason = said[1] if said else absent[2] if absent else f"no figure, exit status {status}"
                        skipped[f"{workload.name}, {dtype}, aquatint {side}"] = reason
        if status != 0:
            raise Failed(f"our bench ended with {status}: {complaints.strip()[-400:]}")


def peers(run, stage, only, rows, skipped):
    before = machine.gpu_used_mb() if run.gpu else None
    command = peer_command(run, stage, only) + (["--used-before", before] if before is not None else [])
    text, complaints, _, status = run.call(command)
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        line = json.loads(line)
        name, dtype, side = line.pop("name"), line.pop("type"), line.pop("side")
        if "skipped" in line:
            skipped[f"{name}, {dtype}, {side}"] = line["skipped"]
            continue
        if not workloads.STAGES[stage].alone:
            line.pop("peak_mb", None)
        rows.add(name, dtype, side, line.pop("samples"), **line)
    if status != 0:
        raise Failed(f"peers.py ended with {status}: {complaints.strip()[-400:]}")


def compare(run, stage, part):
    """Our bench and PyTorch in turns."""
    chosen = workloads.chosen(stage, run.arguments.smoke, run.arguments.only)
    if not chosen:
        raise Failed(f"no workload of {stage} has {run.arguments.only!r} in its name")
    rows, skipped = figures.Rows(commit=machine.commit(run.pack), time=time.strftime("%H:%M")), {}
    part.update(title=workloads.STAGES[stage].title, unit="ms", spread=figures.SPREAD)
    groups = [[workload] for workload in chosen] if workloads.STAGES[stage].alone else [chosen]
    try:
        for group in groups:
            only = group[0].name if workloads.STAGES[stage].alone else run.arguments.only
            for _ in range(run.arguments.rounds):
                ours(run, stage, group, rows, skipped)
                peers(run, stage, only, rows, skipped)
    finally:
        part.update(rows=rows.json(), skipped=skipped)


def outcome(text):
    """What a test program says that it came to."""
    found = re.search(r"(\d+) passed; (\d+) failed; (\d+) ignored", text)
    named = {state: re.findall(rf"^test\s+(?:\[.*?\]\s*)?(\S+)\s+\.\.\. {state}", text, re.M) for state in ("FAILED", "ignored")}
    counts = dict(zip(("passed", "failed", "ignored"), map(int, found.groups()))) if found else {}
    return {**counts, "failed_tests": named["FAILED"], "ignored_tests": named["ignored"]}


def tests(run, _, part):
    """Every kernel against f64, on CUDA and wgpu."""
    part["programs"] = {}
    for name in TEST_PROGRAMS:
        command = [run.program(name)] + ([run.arguments.only] if run.arguments.only else [])
        text, complaints, _, status = run.call(command, AQUATINT_REQUIRE_WGPU="1", **run.required())
        print(text[-4000:])
        part["programs"][name] = found = {**outcome(text), "status": status}
        if status != 0 or not found.get("passed"):
            raise Failed(f"{name}: {(text + complaints).strip()[-400:]}")


def sanitize(run, _, part):
    """The CUDA tests under compute-sanitizer."""
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        raise Failed("compute-sanitizer is not on the PATH")
    part["programs"] = {}
    for tool in ("memcheck", "racecheck"):
        only = run.arguments.only or CUDA_TESTS
        command = [sanitizer, "--tool", tool, "--error-exitcode", "97", run.program("kernels-test"), only]
        text, complaints, _, status = run.call(command, **run.required())
        print(text[-4000:])
        summary = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (.*)$", text + complaints, re.M)
        part["programs"][tool] = found = {**outcome(text), "status": status, "summary": summary}
        if status != 0 or not summary or not found.get("passed"):
            raise Failed(f"{tool}: {' '.join(summary)}, {found.get('passed', 0)} tests passed, exit status {status}")


STAGES = {"tests": tests, "sanitize": sanitize, **{stage: compare for stage in workloads.STAGES}}


def missing(run, stage):
    """What the stage needs and this machine does not have."""
    arguments = run.arguments
    programs = {"tests": TEST_PROGRAMS, "sanitize": ("kernels-test",)}
    needed = programs.get(stage) or (f"{workloads.STAGES[stage].bench}-bench",)
    packed = (lambda name: (run.pack / f"{name}.xz").exists()) if not arguments.programs else (lambda name: False)
    absent = [name for name in needed if not (run.programs / name).exists() and not packed(name)]
    if not arguments.smoke and not run.gpu:
        absent.append("an NVIDIA GPU (nvidia-smi shows none)")
    if stage == "sanitize" and not shutil.which("compute-sanitizer"):
        absent.append("compute-sanitizer")
    if stage in workloads.STAGES:
        modules = ["torch"] + (["diffusers"] if stage.startswith("m") else [])
        packed = " ".join(path.name for path in run.pack.glob("*.whl"))
        absent += [f"Python's {name}" for name in modules if not importable(run, name) and f"{name}-" not in packed]
    return absent


def importable(run, name):
    command = [sys.executable, "-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{name}') is None)"]
    return subprocess.run(command, env=run.environment()).returncode == 0


def plan(run, stage):
    """What the stage would do."""
    arguments = run.arguments
    print(f"{stage}: {workloads.STAGES[stage].title if stage in workloads.STAGES else STAGES[stage].__doc__}")
    if stage in workloads.STAGES:
        chosen = workloads.chosen(stage, arguments.smoke, arguments.only)
        alone = workloads.STAGES[stage].alone
        for group in [[workload] for workload in chosen] if alone else [chosen]:
            sides = arguments.sides.split(",")
            commands = [our_command(run, stage, group, some) for some in ([[side] for side in sides] if alone else [sides])]
            commands.append(peer_command(run, stage, group[0].name if alone else arguments.only))
            for command in commands:
                print(f"  {arguments.rounds} times: {shlex.join(map(str, command))}")
    elif stage == "tests":
        for name in TEST_PROGRAMS:
            print(f"  {run.programs / name} {arguments.only}".rstrip())
    else:
        for tool in ("memcheck", "racecheck"):
            program = run.programs / "kernels-test"
            print(f"  compute-sanitizer --tool {tool} --error-exitcode 97 {program} {arguments.only or CUDA_TESTS}")
    absent = missing(run, stage)
    print(f"  missing here: {', '.join(absent)}" if absent else "  nothing is missing here")


def head(run):
    """The machine, and how figures were taken on it."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": run.gpu.get("name") or f"{machine.processor()}, smoke run",
        "driver": run.gpu.get("driver_version"),
        "gpu": run.gpu,
        "host": machine.processor(),
        "commit": machine.commit(run.pack),
    }


def perform(run, stage):
    """Runs one stage and records what came of it; True where it succeeded."""
    begun = time.monotonic()
    run.deadline = begun + run.arguments.limit
    run.commands, run.clocks = [], []
    part = {"state": "done"}
    before = machine.gpu_facts()
    try:
        absent = missing(run, stage)
        if absent:
            raise Failed(f"missing here: {', '.join(absent)}")
        run.unpack()
        STAGES[stage](run, stage, part)
    except (Failed, OSError, subprocess.SubprocessError, ValueError) as error:
        part.update(state="failed", reason=str(error))
    clocks = {key: [before.get(key), machine.gpu_facts().get(key)] for key in ("clocks.sm", "clocks.mem", "temperature.gpu")}
    part.update(seconds=round(time.monotonic() - begun), commands=run.commands)
    if run.gpu:
        part.update(clocks_before_and_after=clocks, sm_mhz_while_running=run.clocks)
    path = figures.results_file(run.arguments.out, run.gpu.get("name") or "smoke")
    figures.record(path, head(run), stage, part)
    show(stage, part, path)
    return part["state"] == "done"


def show(stage, part, path):
    print(f"\n{stage}: {part['state']} after {part['seconds']} s, {path}")
    if "reason" in part:
        print(f"  {part['reason']}")
    for row in part.get("rows", []):
        for side, found in row["sides"].items():
            low, middle, high = found["ms"]
            memory = f" {found['peak_mb']:8} MB" if found.get("peak_mb") is not None else ""
            print(f"  {row['name']:36} {row['type']:5} {side:26} {middle:10.4f} ms ({low:.4f} to {high:.4f}){memory}")
    for name, reason in part.get("skipped", {}).items():
        print(f"  skipped: {name}: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES, metavar="STAGE", help=" ".join(STAGES))
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument("--smoke", action="store_true", help="small sizes in f32, without a GPU")
    parser.add_argument("--only", default="", help="workloads or tests with this in their names")
    parser.add_argument("--sides", help="where our side runs (cuda,wgpu; with --smoke cpu,wgpu)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (2)")
    parser.add_argument("--limit", type=int, default=520, help="seconds for a stage (520)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--pack", default=HERE / "pack", help="what pack.sh made")
    parser.add_argument("--programs", help="a folder of unpacked programs instead")
    parser.add_argument("--work", default=Path(tempfile.gettempdir()) / "aquatint-gpu", help="for what is unpacked")
    parser.add_argument("--out", help="where the results file goes (benches/results; with --smoke the work folder)")
    arguments = parser.parse_args()
    arguments.device = "cpu" if arguments.smoke else "cuda"
    arguments.sides = arguments.sides or ("cpu,wgpu" if arguments.smoke else "cuda,wgpu")
    arguments.out = arguments.out or (arguments.work if arguments.smoke else HERE.parent / "results")
    run = Run(arguments)
    if arguments.dry_run:
        for stage in arguments.stages:
            plan(run, stage)
        return 0
    run.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return 0 if all([perform(run, stage) for stage in arguments.stages]) else 1


if __name__ == "__main__":
    sys.exit(main())
