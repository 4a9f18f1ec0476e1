"""The machine: what it is, what it lends to the programs that run on it, and what they use of it."""

import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GPU_FACTS = (
    "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,clocks.sm,clocks.mem,power.limit,temperature.gpu"
)
# Where a Vulkan loader looks, and where containers mount NVIDIA's driver.
ICD_FOLDERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/nvidia/share/vulkan/icd.d")


def output(*command):
    """A program's output, or None where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def gpu_facts():
    """What nvidia-smi says of the first card; empty without one."""
    line = output("nvidia-smi", "-i", "0", f"--query-gpu={GPU_FACTS}", "--format=csv,noheader")
    return dict(zip(GPU_FACTS.split(","), map(str.strip, line.splitlines()[0].split(",")))) if line else {}


def capability():
    """The first card's compute capability, where its driver tells."""
    found = output("nvidia-smi", "-i", "0", "--query-gpu=compute_cap", "--format=csv,noheader") or ""
    number = re.match(r"\d+\.\d+", found)
    return number[0] if number else None


def gpu_used_mb():
    line = output("nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    # nvidia-smi counts in MiB.
    return int(line.splitlines()[0]) * 1048576 // 1_000_000 if line else None


def resident_peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else platform.machine()}"


def commit(pack):
    """The checkout's, or that of the packed programs where they were built elsewhere."""
    packed = pack / "commit.txt"
    if packed.exists():
        return packed.read_text().strip()
    found = output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    dirty = output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{found}{' with changes' if dirty else ''}" if found else None


def toolkit():
    """The folder of a CUDA toolkit with headers: the machine's own, or that of NVIDIA's wheels."""
    nvcc = shutil.which("nvcc")
    found = [Path(os.environ["CUDA_PATH"])] if "CUDA_PATH" in os.environ else []
    found += [Path(nvcc).resolve().parents[1]] if nvcc else []
    found += [Path("/usr/local/cuda"), *wheels()]
    return next((folder for folder in found if (folder / "include" / "cuda_runtime.h").exists()), None)


def wheels():
    """Folders of NVIDIA's wheels, which PyTorch brings."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return [folder for root in roots for folder in sorted(Path(root).glob("cu*")) if (folder / "lib").is_dir()]


def link_nvrtc(folder):
    """NVIDIA's wheels have no libnvrtc.so, only one with a version in its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for library in (found for wheel in wheels() for found in (wheel / "lib").glob("libnvrtc.so.*")):
        if not (folder / "libnvrtc.so").exists():
            (folder / "libnvrtc.so").symlink_to(library)


def environment(work):
    """Variables under which our programs find NVRTC, CUDA's headers and a Vulkan driver."""
    variables = {}
    libraries = [str(folder / "lib") for folder in wheels()]
    folder = toolkit()
    if folder:
        variables["CUDA_PATH"] = str(folder)
        libraries += [str(folder / "lib64"), str(folder / "lib")]
    # What run.py unpacked serves where the machine has none.
    libraries += [os.environ.get("LD_LIBRARY_PATH", ""), str(work / "lib")]
    libraries += map(str, (work / "root").glob("usr/lib/*"))
    variables["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    drivers = [icd for folder in ICD_FOLDERS for icd in sorted(Path(folder).glob("nvidia_icd*.json"))]
    if drivers and not {"VK_DRIVER_FILES", "VK_ICD_FILENAMES"} & set(os.environ):
        variables["VK_DRIVER_FILES"] = str(drivers[0])
    return variables


class Watch:
    """Looks at a running program ten times a second: on a GPU at the card's memory and clock, else at the process."""

    def __init__(self, process, used_before):
        self.process, self.used_before = process, used_before
        self.memory, self.clocks = [], []
        self.thread = threading.Thread(target=self.cards if used_before is not None else self.pages, daemon=True)
        self.thread.start()

    def cards(self):
        query = "--query-gpu=memory.used,clocks.sm"
        command = ["nvidia-smi", "-i", "0", query, "--format=csv,noheader,nounits", "-lms", "100"]
        smi = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in smi.stdout:
            if self.process.poll() is not None:
                break
            if found := re.fullmatch(r"(\d+), *(\d+)\s*", line):
                self.memory.append(int(found[1]) * 1048576 // 1_000_000 - self.used_before)
                self.clocks.append(int(found[2]))
        smi.kill()
        smi.wait()

    def pages(self):
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            try:
                lines = status.read_text().splitlines()
            except OSError:
                break
            self.memory += [int(line.split()[1]) * 1024 // 1_000_000 for line in lines if line.startswith("VmHWM:")]
            time.sleep(0.1)

    def found(self):
        """Peak memory in MB, and the SM clock's low, middle and high tenth in MHz."""
        self.thread.join(timeout=5)
        clocks = sorted(self.clocks)
        middle = [clocks[round((len(clocks) - 1) * share)] for share in (0.1, 0.5, 0.9)] if clocks else None
        return max(self.memory, default=None), middle
