"""Programs that the stages run: unpacked once, each run to its end, to a limit, or until it stands still."""

import hashlib
import lzma
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import machine


class Failed(Exception):
    """Why a stage cannot be finished."""


class OutOfTime(Failed):
    """The stage's seconds are spent."""


@dataclass
class Ended:
    """What a program left behind."""

    text: str
    complaints: str
    peak: int | None
    # None where it was killed; `why` says why.
    status: int | None
    why: str | None

    def reason(self):
        said = (self.text + self.complaints).strip()[-400:]
        return f"{self.why or f'exit status {self.status}'}: {said}"


class Run:
    """What the stages share."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.work = Path(arguments.work)
        self.pack = Path(arguments.pack)
        self.programs = Path(arguments.programs) if arguments.programs else self.work / "programs"
        self.gpu = machine.gpu_facts()
        # Software Vulkan takes its time.
        self.patience = 5 if arguments.smoke else 1
        # AQUATINT_CUDA_KERNELS for whatever runs next.
        self.kernels = "1"
        self.deadline = float("inf")
        self.commands, self.clocks = [], []
        # Writes down what the running stage has come to so far.
        self.save = lambda: None

    def unpack(self):
        """What pack.sh packed, once for all stages on this machine."""
        for path in sorted(self.pack.glob("*")):
            if path.suffix == ".xz" and self.arguments.programs:
                continue
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
        variables = {
            **machine.environment(self.work),
            "AQUATINT_CUDA_KERNELS": self.kernels,
            "AQUATINT_SD15": str(self.work / "sd15"),
            "AQUATINT_BENCH_SECONDS": str(self.arguments.seconds),
            "PYTHONPATH": ":".join(site + [os.environ.get("PYTHONPATH", "")]).strip(":"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            # Where tests find their fixtures: they were built in another folder.
            "CARGO_MANIFEST_DIR": str(machine.ROOT),
        }
        return {**os.environ, **variables, **more}

    def left(self):
        return self.deadline - time.monotonic()

    def call(self, command, stall=None, limit=None, **more):
        """Runs a program to its end, or kills it: after `limit` seconds, at the stage's deadline, or once it has said
        nothing for `stall` seconds."""
        stall, limit = (seconds * self.patience if seconds else float("inf") for seconds in (stall, limit))
        shown = shlex.join(map(str, command))
        print(f"$ {shown}", flush=True)
        if shown not in self.commands:
            self.commands.append(shown)
        if self.left() <= 0:
            raise OutOfTime(f"no time was left for {shown}")
        before = machine.gpu_used_mb() if self.gpu else None
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                list(map(str, command)), env=self.environment(**more), stdout=out, stderr=errors,
                start_new_session=True,
            )
            watch = machine.Watch(process, before)
            try:
                why = self.wait(process, (out, errors), stall, limit)
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
        return Ended(text, complaints, peak, None if why else process.returncode, why)

    def wait(self, process, outputs, stall, limit):
        """None once the program has ended, else why it must."""
        begun = spoke = time.monotonic()
        said = 0
        while True:
            try:
                process.wait(max(0.01, min(1, self.left(), limit, stall)))
                return None
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                length = sum(os.fstat(output.fileno()).st_size for output in outputs)
                if length != said:
                    said, spoke = length, now
                if self.left() <= 0:
                    return "the stage's time was spent"
                if now - begun >= limit:
                    return f"it took more than {limit} s"
                if now - spoke >= stall:
                    return f"it said nothing for {stall} s"

    def program(self, name):
        path = self.programs / name
        if not path.exists():
            raise Failed(f"{name} is not in {self.programs}")
        return path
