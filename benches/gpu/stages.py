"""What the stages do."""

import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import figures
import machine
import workloads
from programs import Failed, OutOfTime

HERE = Path(__file__).resolve().parent
NEEDED_TEST, LIB_TEST, BENCH_PROGRAM = "kernels-test", "lib-test", "gpu-bench"
# What the names of the tests on a device have in them.
CUDA_TESTS, WGPU_TESTS, LIB_TESTS = "cuda::", "wgpu::", "on_device"
# The crate's own tests on a device are left out where nobody asks for them; one needs the software driver.
LIB_FLAGS = ("--ignored", "--skip", "does_not_compile", "--test-threads=1")
# AQUATINT_CUDA_KERNELS: every kernel, or those alone that go through cubecl's client.
KERNELS = ("1", "client")
# The compute capability of the launches for Hopper.
HOPPER = "9.0"
SANITIZERS = ("memcheck", "racecheck")
# Seconds after which a program that has said nothing hangs: compilers may be at work.
BENCH_STALL, PEERS_STALL, TEST_STALL, QUICK_TEST_STALL, ALONE_LIMIT = 150, 300, 120, 60, 90
# What our bench says where a kernel that was asked for is not the one that runs.
FALLS_BACK = ("runs in its place", "no CUDA stream")


def our_command(run, names):
    """Our bench over what has these names."""
    return [run.programs / BENCH_PROGRAM, "|".join(names), "--bench", "--noplot"]


def our_names(run, stage, group, sides):
    """What our bench measures: the names it gives, with the workload, the side and the type of each."""
    suffix = "" if workloads.STAGES[stage].alone else " kernel"
    return {
        f"{workload.name} {side} {workloads.TYPES[dtype][0]}{suffix}": (workload, side, dtype)
        for workload in group
        for side in sides
        for dtype in workloads.types(workload, run.arguments.smoke, side)
    }


def peer_command(run, stage, only):
    arguments = run.arguments
    command = [sys.executable, HERE / "peers.py", stage, "--device", arguments.device, "--only", only]
    command += ["--seconds", arguments.seconds]
    command += ["--smoke"] if arguments.smoke else []
    return command + (["--no-compile"] if leaves_out_compile(arguments, stage) else [])


def leaves_out_compile(arguments, stage):
    """A quick run compiles networks alone: many small graphs take longer to compile than to measure."""
    return arguments.no_compile or (arguments.quick and not workloads.STAGES[stage].alone)


def groups(stage, chosen):
    """The workloads that a process measures together, and what `--only` selects them."""
    if workloads.STAGES[stage].alone:
        return [([workload], workload.name) for workload in chosen]
    return [(chosen, None)]


class Comparison:
    """Our bench and PyTorch in turns. Whatever one of them fails at is written down, and the rest goes on."""

    def __init__(self, run, stage, part):
        self.run, self.stage, self.part = run, stage, part
        origin = {"commit": machine.commit(run.pack), "time": time.strftime("%H:%M")}
        self.rows, self.skipped, self.failures = figures.Rows(kernels=run.kernels, **origin), {}, []
        # Names that failed in a process of their own.
        self.broken = set()

    def save(self):
        self.part.update(rows=self.rows.json(), skipped=self.skipped)
        self.run.save()

    def ours(self, group):
        sides = self.run.arguments.sides.split(",")
        for some in [[side] for side in sides] if workloads.STAGES[self.stage].alone else [sides]:
            wanted = our_names(self.run, self.stage, group, some)
            wanted = {name: what for name, what in wanted.items() if name not in self.broken}
            if not wanted:
                continue
            failed, ended = self.bench(wanted)
            # A kernel that fails takes with it what comes after it in its process.
            alone = failed if len(wanted) == 1 else [name for name in failed if self.bench({name: wanted[name]})[0]]
            for name in alone:
                self.broken.add(name)
                self.failures.append(f"{name}: {self.skipped[self.label(*wanted[name])]}")
            if ended.status != 0 and not alone:
                self.failures.append(f"our bench, though each of its figures could be taken, {ended.reason()}")

    @staticmethod
    def label(workload, side, dtype):
        return f"{workload.name}, {dtype}, aquatint {side}"

    def bench(self, wanted):
        """Measures these; returns the names of those that failed, and how the program ended."""
        alone, failed = workloads.STAGES[self.stage].alone, []
        with tempfile.TemporaryDirectory() as home:
            command = our_command(self.run, wanted)
            ended = self.run.call(command, stall=BENCH_STALL, CRITERION_HOME=home)
            found = figures.criterion(home)
        for line in ended.complaints.splitlines():
            if any(said in line for said in FALLS_BACK) and line not in self.part.setdefault("fell_back", []):
                self.part["fell_back"].append(line)
        for name, (workload, side, dtype) in wanted.items():
            if name in found:
                memory = {"peak_mb": ended.peak} if alone else {}
                self.rows.add(workload.name, dtype, f"aquatint {side}", found[name], **memory)
                self.skipped.pop(self.label(workload, side, dtype), None)
                continue
            absent = rf"^skipped: {side}(?: {workloads.TYPES[dtype][0]})?: (.*)$"
            absent = re.search(absent, ended.complaints, re.M)
            said = re.search(rf"^skipped: {re.escape(name)}: (.*)$", ended.complaints, re.M)
            reason = absent[1] if absent else said[1] if said else f"no figure, {ended.reason()}"
            self.skipped[self.label(workload, side, dtype)] = reason
            failed += [] if absent else [name]
        self.save()
        if self.run.left() <= 0:
            raise OutOfTime(ended.why or "the stage's time was spent")
        return failed, ended

    def peers(self, only):
        command = peer_command(self.run, self.stage, only)
        before = machine.gpu_used_mb() if self.run.gpu else None
        ended = self.run.call(command + (["--used-before", before] if before is not None else []), stall=PEERS_STALL)
        for line in figures.json_lines(ended.text):
            name, dtype, side = line.pop("name"), line.pop("type"), line.pop("side")
            if "skipped" in line:
                self.skipped[f"{name}, {dtype}, {side}"] = line["skipped"]
                continue
            if not workloads.STAGES[self.stage].alone:
                line.pop("peak_mb", None)
            self.rows.add(name, dtype, side, line.pop("samples"), **line)
        self.save()
        if ended.status != 0:
            self.failures.append(f"peers.py, {ended.reason()}")


def compare(run, stage, part):
    """Our bench and PyTorch in turns."""
    if reason := workloads.STAGES[stage].absent:
        part.update(state="skipped", reason=reason)
        return
    chosen = workloads.chosen(stage, run.arguments.smoke, run.arguments.only)
    if not chosen:
        raise Failed(f"no workload of {stage} has {run.arguments.only!r} in its name")
    run.program(BENCH_PROGRAM)
    part.update(title=workloads.STAGES[stage].title, unit="ms", spread=figures.SPREAD)
    comparison = Comparison(run, stage, part)
    try:
        for group, only in groups(stage, chosen):
            for _ in range(run.arguments.rounds):
                comparison.ours(group)
                comparison.peers(only or run.arguments.only)
    except OutOfTime as late:
        comparison.failures.append(str(late))
    if comparison.failures:
        raise Failed("; ".join(dict.fromkeys(comparison.failures)))


def outcome(text):
    """What a test program says that it came to."""
    counts = re.search(r"(\d+) passed; (\d+) failed; (\d+) ignored", text)
    found = re.findall(r"^test\s+(?:\[.*?\]\s*)?(\S+)\s+\.\.\. (ok|FAILED|ignored)", text, re.M)
    named = {state: [name for name, said in found if said == state] for state in ("ok", "FAILED", "ignored")}
    counts = dict(zip(("passed", "failed", "ignored"), map(int, counts.groups()))) if counts else {
        state: len(named[said]) for state, said in (("passed", "ok"), ("failed", "FAILED"), ("ignored", "ignored"))
    }
    return {**counts, "failed_tests": named["FAILED"], "ignored_tests": named["ignored"]}, named


def tested(run, name, only, flags, found, **more):
    """Runs a test program and puts into `found` what it came to. Where it fails, whatever did not pass runs again in a
    process of its own: a crash takes the tests after it along, and so does a device that is lost."""
    program = run.program(name)
    stall = min(TEST_STALL, QUICK_TEST_STALL) if run.arguments.quick else TEST_STALL
    ended = run.call([program, *flags] + ([only] if only else []), stall=stall, **more)
    print(ended.text[-4000:])
    counts, named = outcome(ended.text)
    found.update(counts, status=ended.status)
    if ended.status == 0:
        return
    found["reason"] = ended.reason()
    if "is required here" in ended.complaints:
        return
    listed = run.call([program, "--list", *flags], limit=ALONE_LIMIT).text
    listed = re.findall(r"^(?:\[.*?\]\s*)?(\S+): test$", listed, re.M)
    left = [test for test in listed if only in test and test not in named["ok"] + named["ignored"]]
    found.update(passed_alone=[], failed_alone={})
    for test in left:
        again = run.call([program, *flags, "--exact", test], limit=ALONE_LIMIT, **more)
        if again.status == 0 and outcome(again.text)[0]["passed"]:
            found["passed_alone"].append(test)
        else:
            found["failed_alone"][test] = again.reason()
        run.save()


def test_runs(arguments):
    """What `tests` runs: its name, the program, AQUATINT_CUDA_KERNELS, the tests, the program's flags, and what must be
    there for them. A device that is missing leaves the other one's tests."""
    only = arguments.only
    every, client = (
        (f"CUDA, AQUATINT_CUDA_KERNELS={value}", NEEDED_TEST, value, only or CUDA_TESTS, (), {"AQUATINT_REQUIRE_CUDA": "1"})
        for value in KERNELS
    )
    hopper = ("CUDA, launches for Hopper", LIB_TEST, KERNELS[0], only or LIB_TESTS, LIB_FLAGS, {})
    required = {"AQUATINT_REQUIRE_WGPU": "1"}
    wgpu = [
        ("wgpu", NEEDED_TEST, KERNELS[0], only or WGPU_TESTS, (), required),
        ("wgpu, whole networks", "wgpu-test", KERNELS[0], only, (), required),
    ]
    return [] if arguments.smoke else [client, hopper, every], wgpu


def unavailable(run, program):
    """Why a test program cannot run here, though the others can."""
    if program != NEEDED_TEST and not (run.programs / program).exists():
        return f"{program} is not packed"
    if program == LIB_TEST and (capability := machine.capability()) not in (None, HOPPER):
        return f"compute capability {capability}, not {HOPPER}"
    return None


def tests(run, _, part):
    """Every kernel against f64, on CUDA with each set of launches, and on wgpu; launches for Hopper; networks on wgpu."""
    part["programs"], bad, good = {}, [], set()
    cuda, wgpu = test_runs(run.arguments)
    # The later stages measure what has passed: what hangs here would hang there.
    trusted = {label for label, _, kernels, *_ in cuda if kernels == KERNELS[0]}
    part["kernels"] = KERNELS[1] if trusted else KERNELS[0]
    for label, program, kernels, only, flags, required in cuda + wgpu:
        run.kernels = kernels
        found = part["programs"][label] = {"passed": 0, "failed": 0, "ignored": 0}
        if reason := unavailable(run, program):
            found["reason"] = reason
            trusted.discard(label)
            continue
        whole = run.deadline
        if kernels == KERNELS[1]:
            # A hang here leaves time to see whether the others pass.
            run.deadline = min(whole, time.monotonic() + run.left() / 2)
        try:
            tested(run, program, only, flags, found, **required)
        except OutOfTime as late:
            found.setdefault("reason", str(late))
        finally:
            run.deadline = whole
        if found.get("status") == 0 and (found["passed"] or run.arguments.only):
            good.add(label)
        else:
            bad.append(f"{label}: {found.get('reason', 'no test passed')}")
        part["kernels"] = KERNELS[0] if trusted <= good else KERNELS[1]
        run.save()
    run.kernels = part["kernels"]
    if bad:
        raise Failed("; ".join(bad))


def sanitize(run, _, part):
    """The CUDA tests under compute-sanitizer, with every kernel and with those of cubecl's client alone."""
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        raise Failed("compute-sanitizer is not on the PATH")
    part["programs"], bad = {}, []
    runs = [(tool, kernels) for kernels in KERNELS for tool in SANITIZERS]
    for index, (tool, kernels) in enumerate(runs):
        run.kernels = kernels
        # What takes too long leaves time for the others.
        limit = max(1, run.left() / (len(runs) - index))
        command = sanitize_command(run, sanitizer, tool)
        ended = run.call(command, limit=round(limit) if limit < 1e6 else None, AQUATINT_REQUIRE_CUDA="1")
        print(ended.text[-4000:])
        summary = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (.*)$", ended.text + ended.complaints, re.M)
        found, _ = outcome(ended.text)
        label = f"{tool}, AQUATINT_CUDA_KERNELS={kernels}"
        part["programs"][label] = found = {**found, "status": ended.status, "summary": summary}
        if ended.status != 0 or not summary or not found["passed"]:
            end = ended.why or f"exit status {ended.status}"
            bad.append(f"{label}: {' '.join(summary)} {found['passed']} tests passed, {end}")
        run.save()
    if bad:
        raise Failed("; ".join(bad))


def sanitize_command(run, sanitizer, tool):
    only = run.arguments.only or CUDA_TESTS
    return [sanitizer, "--tool", tool, "--error-exitcode", "97", run.programs / NEEDED_TEST, only]


STAGES = {"tests": tests, **{stage: compare for stage in workloads.STAGES}, "sanitize": sanitize}
