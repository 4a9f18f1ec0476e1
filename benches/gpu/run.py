#!/usr/bin/env python3
"""This crate on a GPU: its kernel tests, under compute-sanitizer too, and its speed beside PyTorch and diffusers.

    run.py tests k1 k2 k3 k4 denoise_step m1 m2 m6 sanitize     # all stages
    run.py m1 --only 'batch 4'                  # a part of one
    run.py k2 --dry-run                         # what it would do, and what is missing for it
    run.py --plan 15                            # commands for a GPU that is at hand for 15 minutes

Needs Python 3.11 or later, PyTorch for CUDA, and the folder that pack.sh made (or programs in --programs FOLDER); neither
Rust nor a network. Each stage ends within --limit seconds, all of them within --total. Both sides take turns, --rounds
times each, and their samples are put together. Each stage adds its part to benches/results/DATE-GPU.json after every
program, a failed one with the reason. On a machine without a GPU, --smoke runs small sizes on the CPU and on software
Vulkan.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import figures
import machine
import stages
import workloads
from programs import Failed, Run
from stages import BENCH_PROGRAM, KERNELS, NEEDED_TEST, SANITIZERS, STAGES

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
# Seconds that a stage of a quick run is expected to take, compilers included, in the order of a first run: what is
# right, then what is fast, then what is slow to find out.
EXPECTED = {
    "tests": 240, "k1": 35, "k2": 90, "k3": 35, "k4": 75, "denoise_step": 35, "m1": 260, "m2": 1, "m6": 80,
    "sanitize": 60,
}
# Seconds of a plan that its first start and the copies take, and the longest command.
START, LONGEST = 120, 530


def missing(run, stage):
    """What the stage needs and this machine does not have."""
    arguments = run.arguments
    if stage in workloads.STAGES and workloads.STAGES[stage].absent:
        return []
    needed = BENCH_PROGRAM if stage in workloads.STAGES else NEEDED_TEST
    packed = not arguments.programs and (run.pack / f"{needed}.xz").exists()
    absent = [] if packed or (run.programs / needed).exists() else [needed]
    if not arguments.smoke and not run.gpu:
        absent.append("an NVIDIA GPU (nvidia-smi shows none)")
    if stage == "sanitize" and not stages.shutil.which("compute-sanitizer"):
        absent.append("compute-sanitizer")
    if stage in workloads.STAGES:
        modules = ["torch"] + (["diffusers"] if workloads.STAGES[stage].diffusers else [])
        packed = " ".join(path.name for path in run.pack.glob("*.whl"))
        absent += [f"Python's {name}" for name in modules if not importable(run, name) and f"{name}-" not in packed]
    return absent


def importable(run, name):
    command = [sys.executable, "-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{name}') is None)"]
    return subprocess.run(command, env=run.environment()).returncode == 0


def dry_run(run, stage):
    """What the stage would do."""
    arguments, only = run.arguments, run.arguments.only
    print(f"{stage}: {workloads.STAGES[stage].title if stage in workloads.STAGES else STAGES[stage].__doc__}")
    if stage == "tests":
        for _, program, kernels, some, flags, _ in [run for runs in stages.test_runs(arguments) for run in runs]:
            print(f"  AQUATINT_CUDA_KERNELS={kernels} {' '.join([str(run.programs / program), *flags, some])}".rstrip())
    elif stage == "sanitize":
        for kernels in KERNELS:
            for tool in SANITIZERS:
                command = stages.sanitize_command(run, "compute-sanitizer", tool)
                print(f"  AQUATINT_CUDA_KERNELS={kernels} {shlex.join(map(str, command))}")
    elif reason := workloads.STAGES[stage].absent:
        print(f"  skipped: {reason}")
    else:
        sides = arguments.sides.split(",")
        for group, some in stages.groups(stage, workloads.chosen(stage, arguments.smoke, only)):
            alone = workloads.STAGES[stage].alone
            commands = [
                stages.our_command(run, stages.our_names(run, stage, group, which))
                for which in ([[side] for side in sides] if alone else [sides])
            ]
            for command in [*commands, stages.peer_command(run, stage, some or only)]:
                print(f"  {arguments.rounds} times: {shlex.join(map(str, command))}")
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


def results_path(run):
    return figures.results_file(run.arguments.out, run.gpu.get("name") or "smoke")


def seconds(arguments, stage, later, ends):
    """How long a stage may take: its limit and, of what is left for all, its share among those still to come."""
    left = ends - time.monotonic()
    share = EXPECTED[stage] / sum(EXPECTED[other] for other in [stage, *later])
    return min(arguments.limit, left * share)


def perform(run, stage, limit):
    """Runs one stage and records what came of it; True where it did not fail."""
    begun = time.monotonic()
    run.deadline = begun + limit
    run.commands, run.clocks = [], []
    path = results_path(run)
    known = figures.known_results(path, run.arguments.out if run.arguments.smoke else RESULTS)
    run.kernels = run.arguments.kernels or known["stages"].get("tests", {}).get("kernels", KERNELS[0])
    part = {"state": "unfinished", "reason": "it was ended while it ran", "kernels": run.kernels}
    before, about = machine.gpu_facts(), head(run)

    def save():
        part.update(seconds=round(time.monotonic() - begun), commands=run.commands)
        if run.gpu:
            facts, now = ("clocks.sm", "clocks.mem", "temperature.gpu"), machine.gpu_facts()
            part["clocks_before_and_after"] = {fact: [before.get(fact), now.get(fact)] for fact in facts}
            part["sm_mhz_while_running"] = run.clocks
        figures.record(path, about, known, stage, part)

    run.save = save
    try:
        if absent := missing(run, stage):
            raise Failed(f"missing here: {', '.join(absent)}")
        run.unpack()
        STAGES[stage](run, stage, part)
        if part["state"] == "unfinished":
            part["state"] = "done"
            del part["reason"]
    except Failed as error:
        part.update(state="failed", reason=str(error))
    except Exception as error:  # whatever it is, the stages after this one go on
        traceback.print_exc()
        part.update(state="failed", reason=f"{type(error).__name__}: {error}")
    save()
    show(stage, part, path)
    return part["state"] != "failed"


def show(stage, part, path):
    print(f"\n{stage}: {part['state']} after {part['seconds']} s, {path}")
    if "reason" in part:
        print(f"  {part['reason']}")
    for name, found in part.get("programs", {}).items():
        print(f"  {name}: {found['passed']} passed, {found['failed']} failed, {found['ignored']} ignored {found.get('reason', '')}")
    for row in part.get("rows", []):
        for side, found in row["sides"].items():
            low, middle, high = found["ms"]
            memory = f" {found['peak_mb']:8} MB" if found.get("peak_mb") is not None else ""
            print(f"  {row['name']:36} {row['type']:5} {side:26} {middle:10.4f} ms ({low:.4f} to {high:.4f}){memory}")
    for line in part.get("fell_back", []):
        print(f"  not the kernel that was asked for: {line}")
    for name, reason in part.get("skipped", {}).items():
        print(f"  skipped: {name}: {reason}")
    sys.stdout.flush()


def table(results):
    """Every stage of a results file: how it ended, and its lines as README.md has them."""
    sys.path.append(str(RESULTS))
    import render

    for name, stage in results["stages"].items():
        yield f"{name}: {stage['state']}, {stage['seconds']} s" + (f": {stage['reason'][:200]}" if "reason" in stage else "")
        for line in render.lines(stage):
            what, dtype, ours, beside, times = line.cells()
            yield f"  {what:40} {dtype:5} {ours:28} {beside:44} {times}"


def plan(minutes):
    """Commands for a GPU that is at hand for so long, each below LONGEST seconds, the most telling ones first."""
    left = minutes * 60 - START
    if left < sum(EXPECTED.values()) / 2:
        raise SystemExit(f"{minutes} minutes are too short: {START} s pass before anything runs")
    scale = left / sum(EXPECTED.values())
    commands = [[]]
    for stage in EXPECTED:
        if commands[-1] and scale * sum(EXPECTED[some] for some in [*commands[-1], stage]) > min(LONGEST, left * 0.6):
            commands.append([])
        commands[-1].append(stage)
    for some in commands:
        total = round(scale * sum(EXPECTED[stage] for stage in some))
        yield f"python3 benches/gpu/run.py {' '.join(some)} --quick --total {min(LONGEST, total)}"


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], metavar="STAGE", help=" ".join(STAGES))
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    parser.add_argument("--plan", type=int, metavar="MINUTES", help="print commands for so many minutes")
    parser.add_argument("--smoke", action="store_true", help="small sizes in f32, without a GPU")
    parser.add_argument("--quick", action="store_true", help="one turn, a third of a second a figure, torch.compile for networks alone")
    parser.add_argument("--only", default="", help="workloads or tests with this in their names")
    parser.add_argument("--sides", help="where our side runs (cuda,wgpu; with --smoke cpu,wgpu)")
    parser.add_argument("--kernels", choices=KERNELS, help="AQUATINT_CUDA_KERNELS (1, or client where the tests chose it)")
    parser.add_argument("--rounds", type=int, help="turns of each side (2)")
    parser.add_argument("--seconds", type=float, help="what the samples of a figure take in one turn (1)")
    parser.add_argument("--limit", type=int, default=520, help="seconds for a stage (520)")
    parser.add_argument("--total", type=float, default=float("inf"), help="seconds for all of them")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--pack", default=HERE / "pack", help="what pack.sh made")
    parser.add_argument("--programs", help="a folder of unpacked programs instead")
    parser.add_argument("--work", default=Path(tempfile.gettempdir()) / "aquatint-gpu", help="for what is unpacked")
    parser.add_argument("--out", help="where the results file goes (benches/results; with --smoke the work folder)")
    arguments = parser.parse_args()
    arguments.device = "cpu" if arguments.smoke else "cuda"
    arguments.sides = arguments.sides or ("cpu,wgpu" if arguments.smoke else "cuda,wgpu")
    arguments.out = arguments.out or (arguments.work if arguments.smoke else RESULTS)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 2)
    arguments.seconds = arguments.seconds or (0.3 if arguments.quick else 1.0)
    if not arguments.stages and arguments.plan is None:
        parser.error("expected a stage")
    return arguments


def main():
    arguments = parsed()
    if arguments.plan is not None:
        print("\n".join(plan(arguments.plan)))
        return 0
    run = Run(arguments)
    if arguments.dry_run:
        for stage in arguments.stages:
            dry_run(run, stage)
        return 0
    run.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ends = time.monotonic() + arguments.total
    kept = []
    for index, stage in enumerate(arguments.stages):
        kept.append(perform(run, stage, seconds(arguments, stage, arguments.stages[index + 1:], ends)))
    found = figures.known_results(results_path(run), RESULTS)
    print("\nBeside what; how many times as fast:")
    print("\n".join(table(found)))
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
