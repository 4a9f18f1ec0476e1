"""run.py where there is no GPU: stand-ins for nvidia-smi, compute-sanitizer, this crate's programs and PyTorch say what
the real ones would. `python3 -m unittest discover benches/gpu`."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import figures
import run
import stages
import workloads

CARD = "Stand-in 9000"
TESTS = ["wgpu::a", "cuda::a", "cuda::b", "cuda::c"]
CUDA = {value: f"CUDA, AQUATINT_CUDA_KERNELS={value}" for value in ("1", "client")}
HOPPER = "CUDA, launches for Hopper"

# Says "[N/A]" to whatever it does not know, as the real one does.
SMI = f"""#!/bin/sh
for argument; do case $argument in --query-gpu=*) query=${{argument#*=}};; -lms) again=1;; esac; done
line=""
for fact in $(echo "$query" | tr , ' '); do
  case $fact in
    name) value="{CARD}";; driver_version) value=1.2;; memory.used) value=1000;; clocks.sm) value=1980;;
    compute_cap) value=${{CAPABILITY:-9.0}};; *) value="[N/A]";;
  esac
  line="$line${{line:+, }}$value"
done
echo "$line"
while [ -n "$again" ]; do sleep 0.1; echo "$line"; done
"""

# Ends as `cuda::b` would on a device where it fails under AQUATINT_CUDA_KERNELS=1, or under both values.
TEST_PROGRAM = f"""
names, arguments = {TESTS}, sys.argv[1:]
if "--list" in arguments:
    print("\\n".join(f"{{name}}: test" for name in names))
    sys.exit()
only = arguments[-1] if arguments else ""
chosen = [name for name in names if (name == only if "--exact" in arguments else only in name)]
for name in chosen:
    if name == "cuda::b" and os.environ["AQUATINT_CUDA_KERNELS"] in os.environ.get("CRASHES", "").split():
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == os.environ.get("HANGS") and os.environ["AQUATINT_CUDA_KERNELS"] in os.environ.get("UNDER", "1 client"):
        time.sleep(60)
    print(f"test {{name}} ... ok", flush=True)
print(f"test result: ok. {{len(chosen)}} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out")
"""

# The library's test program: libtest says a test's name before it runs, takes filters, and leaves out what is to be
# ignored unless it is asked for.
LIB_TESTS = ["products", "attention", "a_kernel_that_does_not_compile"]
LIB_PROGRAM = f"""
names, arguments = [f"ops::gpu::on_device::{{name}}" for name in {LIB_TESTS}], sys.argv[1:]
assert "--ignored" in arguments and "--test-threads=1" in arguments, arguments
skipped = arguments[arguments.index("--skip") + 1]
names = [name for name in names if skipped not in name]
if "--list" in arguments:
    print("\\n".join(f"{{name}}: test" for name in names) + f"\\n\\n{{len(names)}} tests, 0 benchmarks")
    sys.exit()
chosen = [name for name in names if (name == arguments[-1] if "--exact" in arguments else arguments[-1] in name)]
wrong = [name for name in chosen if name.endswith(os.environ.get("FAILS", "none"))]
print(f"\\nrunning {{len(chosen)}} tests")
for name in chosen:
    print(f"test {{name}} ... ", end="", flush=True)
    if name.endswith(os.environ.get("HANGS", "none")):
        time.sleep(60)
    print("FAILED" if name in wrong else "ok", flush=True)
result = "FAILED" if wrong else "ok"
print(f"\\ntest result: {{result}}. {{len(chosen) - len(wrong)}} passed; {{len(wrong)}} failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.01s")
sys.exit(101 if wrong else 0)
"""

SANITIZER = """
tool = sys.argv[sys.argv.index("--tool") + 1]
program = sys.argv[sys.argv.index("--error-exitcode") + 2:]
status = subprocess.run(program).returncode
found = tool == os.environ.get("FINDS")
name = "RACECHECK" if tool == "racecheck" else "ERROR"
print(f"========= {name} SUMMARY: {int(found)} found")
sys.exit(97 if found else status)
"""

# Takes 2 ms a run. Crashes at one workload, hangs at another, and says that it cannot measure a third.
BENCH = """
for name in sys.argv[1].split("|"):
    if os.environ.get("CRASHES", "none") in name and os.environ["AQUATINT_CUDA_KERNELS"] == "1":
        os.kill(os.getpid(), signal.SIGSEGV)
    if os.environ.get("HANGS", "none") in name:
        time.sleep(60)
    if os.environ.get("SKIPS", "none") in name:
        print(f"skipped: {name}: no such thing here", file=sys.stderr)
        continue
    if os.environ.get("FALLS_BACK", "none") in name:
        print("WARN kernel=product the kernel of sm_80 runs in its place", file=sys.stderr)
    folder = Path(os.environ["CRITERION_HOME"], "group", name.replace(" ", "_"), "new")
    folder.mkdir(parents=True)
    (folder / "benchmark.json").write_text(json.dumps({"full_id": f"group/{name}"}))
    (folder / "sample.json").write_text(json.dumps({"times": [4e6] * 30, "iters": [2.0] * 30}))
    print(name, flush=True)
"""

# Takes 1 ms a run.
PEERS = """
for name in json.loads(sys.argv[1]):
    print(json.dumps({"name": name, "type": "f16", "side": "torch", "samples": [0.001] * 30, "prepared_s": 1.0}))
"""


class StandIns(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.script("bin/nvidia-smi", "")
        (self.folder / "bin/nvidia-smi").write_text(SMI)
        self.script("bin/compute-sanitizer", SANITIZER)
        for name in (stages.NEEDED_TEST, "wgpu-test"):
            self.script(f"programs/{name}", TEST_PROGRAM)
        self.script(f"programs/{stages.LIB_TEST}", LIB_PROGRAM)
        self.script(f"programs/{stages.BENCH_PROGRAM}", BENCH)
        self.peers = self.script("peers", PEERS)
        # What the caller's environment asks of our programs is not part of a test.
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AQUATINT_")}
        plain["PATH"] = f"{self.folder / 'bin'}:{plain['PATH']}"
        self.set(mock.patch.dict(os.environ, plain, clear=True))
        self.set(mock.patch.object(run, "importable", lambda *_: True))
        self.set(mock.patch.object(stages, "peer_command", self.peer_command))

    def set(self, patch):
        patch.start()
        self.addCleanup(patch.stop)

    def script(self, name, body):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        uses = "import json, os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
        path.write_text(f"#!{sys.executable}\n{uses}{body}")
        path.chmod(0o755)
        return path

    def peer_command(self, run, stage, only):
        names = [workload.name for workload in workloads.chosen(stage, False, only)]
        return [self.peers, json.dumps(names)]

    def arguments(self, *more):
        folders = ("--programs", self.folder / "programs", "--work", self.folder / "work", "--pack", self.folder / "pack")
        return ["run.py", *map(str, [*more, *folders, "--out", self.folder / "out", "--rounds", 1])]

    def run_py(self, *more, **variables):
        """The exit status, and the stages in the results file."""
        said = io.StringIO()
        with mock.patch.object(sys, "argv", self.arguments(*more)), mock.patch.dict(os.environ, variables):
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                status = run.main()
        return status, self.results()["stages"]

    def results(self):
        return json.loads(figures.results_file(self.folder / "out", CARD).read_text())


class Results(StandIns):
    def test_a_comparison_is_recorded_with_the_machine_and_both_sides(self):
        status, found = self.run_py("k1", "--sides", "cuda")
        row = found["k1"]["rows"][0]
        self.assertEqual((status, found["k1"]["state"], len(found["k1"]["rows"])), (0, "done", 8))
        self.assertEqual((row["name"], row["type"], row["kernels"]), ("linear 4096x9216x3072", "f16", "1"))
        self.assertEqual(row["sides"]["aquatint cuda"]["ms"], [2.0, 2.0, 2.0])
        self.assertEqual(row["sides"]["torch"]["ms"], [1.0, 1.0, 1.0])
        self.assertEqual((self.results()["device"], self.results()["driver"]), (CARD, "1.2"))

    def test_the_table_has_every_stage_and_how_many_times_as_fast_it_is(self):
        self.run_py("k1", "m2", "--sides", "cuda,wgpu")
        lines = [line.split() for line in run.table(self.results())]
        self.assertIn(["linear,", "4", "shapes", "f16", "cuda", "torch", "0.5"], lines)
        self.assertIn(["linear,", "4", "shapes", "f16", "wgpu", "aquatint", "cuda", "1"], lines)
        self.assertEqual([line[:2] for line in lines if line[0].endswith(":")], [["k1:", "done,"], ["m2:", "skipped,"]])

    def test_a_process_of_its_own_has_its_peak_memory(self):
        _, found = self.run_py("m6", "--sides", "cuda")
        # 1000 MiB are in use before and during the run.
        self.assertEqual(found["m6"]["rows"][0]["sides"]["aquatint cuda"]["peak_mb"], 0)

    def test_a_run_of_a_part_keeps_the_other_rows(self):
        self.run_py("k3", "--sides", "cuda")
        _, found = self.run_py("k3", "--sides", "cuda,wgpu", "--only", "1024²")
        sides = {(row["name"], row["type"]): list(row["sides"]) for row in found["k3"]["rows"]}
        self.assertEqual(len(sides), 6)
        self.assertIn("aquatint wgpu", sides["conv2d 1024² 128->128", "f16"])
        self.assertNotIn("aquatint wgpu", sides["conv2d 128² 320->320", "f16"])

    def test_what_is_written_half_is_not_there(self):
        self.run_py("k1", "--sides", "cuda")
        before = self.results()
        with mock.patch.object(figures.os, "replace", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                self.run_py("k2", "--sides", "cuda")
        self.assertEqual(self.results(), before)
        self.assertEqual(len(list((self.folder / "out").iterdir())), 1)

    def test_a_run_that_is_killed_leaves_what_it_came_to(self):
        body = "import unittest.mock, sys, run\nrun.importable = lambda *_: True\nsys.exit(run.main())"
        variables = {**os.environ, "HANGS": "products", "PYTHONPATH": str(run.HERE)}
        command = [sys.executable, "-c", body, *self.arguments("tests")[1:]]
        for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
            self.script("programs/kernels-test", "print('test cuda::a ... ok\\n1 passed; 0 failed; 0 ignored')")
            with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                path, ends = figures.results_file(self.folder / "out", CARD), time.monotonic() + 20
                while time.monotonic() < ends and not self.programs(path):
                    time.sleep(0.05)
                process.send_signal(number)
                self.assertEqual(process.wait(20), status)
            found = self.results()["stages"]["tests"]
            self.assertEqual((found["state"], found["reason"]), ("unfinished", "it was ended while it ran"))
            self.assertEqual((list(found["programs"]), found["kernels"]), ([CUDA["client"]], "client"))
            path.unlink()

    @staticmethod
    def programs(path):
        return json.loads(path.read_text())["stages"]["tests"].get("programs", {}) if path.exists() else {}


class Failures(StandIns):
    def test_a_crash_loses_its_own_figure_alone(self):
        crashing = "linear 4096x12288x3072 cuda BF16"
        status, found = self.run_py("k1", "k3", "--sides", "cuda", CRASHES=crashing)
        self.assertEqual((status, found["k1"]["state"], found["k3"]["state"]), (1, "failed", "done"))
        ours = [(row["name"], row["type"]) for row in found["k1"]["rows"] if "aquatint cuda" in row["sides"]]
        self.assertEqual(len(ours), 7)
        self.assertNotIn(("linear 4096x12288x3072", "bf16"), ours)
        self.assertIn(f"{crashing} kernel: no figure, exit status -11", found["k1"]["reason"])
        self.assertEqual(list(found["k1"]["skipped"]), ["linear 4096x12288x3072, bf16, aquatint cuda"])

    def test_what_hangs_is_killed_and_the_rest_is_measured(self):
        with mock.patch.object(stages, "BENCH_STALL", 1):
            status, found = self.run_py("k3", "--sides", "cuda", HANGS="conv2d 128² 512->512 cuda F16")
        self.assertEqual((status, found["k3"]["state"]), (1, "failed"))
        self.assertEqual(sum("aquatint cuda" in row["sides"] for row in found["k3"]["rows"]), 5)
        self.assertIn("it said nothing for 1 s", found["k3"]["reason"])

    def test_a_program_that_ends_badly_after_its_last_figure_is_named(self):
        self.script(f"programs/{stages.BENCH_PROGRAM}", BENCH + "sys.exit(3)")
        status, found = self.run_py("k3", "--sides", "cuda")
        self.assertEqual((status, len(found["k3"]["rows"])), (1, 6))
        self.assertIn("each of its figures could be taken, exit status 3", found["k3"]["reason"])

    def test_what_the_bench_skips_has_its_reason(self):
        _, found = self.run_py("k3", "--sides", "cuda", SKIPS="1024²")
        self.assertEqual(found["k3"]["skipped"]["conv2d 1024² 128->128, f16, aquatint cuda"], "no such thing here")

    def test_what_runs_another_kernel_than_was_asked_for_is_named(self):
        _, found = self.run_py("k3", "--sides", "cuda", FALLS_BACK="1024²")
        self.assertEqual(found["k3"]["fell_back"], ["WARN kernel=product the kernel of sm_80 runs in its place"])
        # Rows that stay keep it.
        _, found = self.run_py("k3", "--sides", "cuda", "--only", "128²")
        self.assertEqual(len(found["k3"]["fell_back"]), 1)
        self.assertNotIn("fell_back", self.run_py("k1", "--sides", "cuda")[1]["k1"])

    def test_a_stage_out_of_time_keeps_its_figures_and_leaves_time_for_the_next(self):
        left = [0.2, 0.1]

        def seconds(run):
            hangs = any("batch 4" in command for command in run.commands[-1:])
            return 60 if not hangs else left.pop(0) if left else 0

        self.set(mock.patch.object(run.Run, "left", seconds))
        status, found = self.run_py("m1", "m6", "--sides", "cuda", HANGS="batch 4 cuda")
        self.assertEqual((status, found["m1"]["state"], found["m6"]["state"]), (1, "failed", "done"))
        self.assertEqual([row["name"] for row in found["m1"]["rows"]], ["step sd15 512² CFG batch 1"])
        self.assertIn("time was spent", found["m1"]["reason"])

    def test_a_stage_leaves_the_others_their_shares_of_the_time(self):
        arguments = mock.Mock(limit=520)
        with mock.patch.dict(run.EXPECTED, k1=10, k2=20, k3=30), mock.patch.object(run.time, "monotonic", lambda: 100):
            self.assertEqual(run.seconds(arguments, "k1", ["k2", "k3"], 160), 10)
            self.assertEqual(run.seconds(arguments, "k2", ["k3"], 160), 24)
            self.assertEqual(run.seconds(arguments, "k3", [], 1000), 520)

    def test_pytorch_that_fails_is_named_and_our_figures_stay(self):
        self.script("peers", PEERS + "sys.exit('no memory')")
        status, found = self.run_py("k1", "k3", "--sides", "cuda")
        self.assertEqual((status, found["k1"]["state"]), (1, "failed"))
        self.assertIn("no memory", found["k1"]["reason"])
        self.assertEqual(len(found["k1"]["rows"][0]["sides"]), 2)

    def test_an_error_of_the_script_itself_ends_one_stage(self):
        broken = mock.patch.dict(stages.STAGES, k1=lambda *_: {}["nothing"])
        with broken:
            status, found = self.run_py("k1", "m2", "k3", "--sides", "cuda")
        self.assertEqual((status, found["k1"]["reason"]), (1, "KeyError: 'nothing'"))
        self.assertEqual((found["m2"]["state"], found["k3"]["state"]), ("skipped", "done"))


class Tests(StandIns):
    def test_kernels_that_pass_are_measured(self):
        status, found = self.run_py("tests", "k1", "--sides", "cuda")
        self.assertEqual((status, found["tests"]["kernels"], found["k1"]["kernels"]), (0, "1", "1"))
        passed = {name: program["passed"] for name, program in found["tests"]["programs"].items()}
        self.assertEqual(passed, {CUDA["client"]: 3, HOPPER: 2, CUDA["1"]: 3, "wgpu": 1, "wgpu, whole networks": 4})
        self.assertEqual(list(passed), [CUDA["client"], HOPPER, CUDA["1"], "wgpu", "wgpu, whole networks"])

    def test_launches_for_hopper_that_fail_are_not_measured(self):
        status, found = self.run_py("tests", FAILS="attention")
        self.assertEqual((status, found["tests"]["state"], found["tests"]["kernels"]), (1, "failed", "client"))
        program = found["tests"]["programs"][HOPPER]
        self.assertEqual((program["passed"], program["failed"], program["passed_alone"]), (1, 1, []))
        self.assertEqual(program["failed_tests"], ["ops::gpu::on_device::attention"])
        self.assertEqual(list(program["failed_alone"]), ["ops::gpu::on_device::attention"])
        self.assertEqual(found["tests"]["programs"][CUDA["1"]]["passed"], 3)

    def test_without_the_launches_for_hopper_every_kernel_is_measured_by_its_own_tests(self):
        _, found = self.run_py("tests", CAPABILITY="8.9")
        self.assertEqual((found["tests"]["state"], found["tests"]["kernels"]), ("done", "1"))
        self.assertEqual(found["tests"]["programs"][HOPPER]["reason"], "compute capability 8.9, not 9.0")
        (self.folder / "programs" / stages.LIB_TEST).unlink()
        _, found = self.run_py("tests")
        self.assertEqual((found["tests"]["state"], found["tests"]["kernels"]), ("done", "1"))
        self.assertEqual(found["tests"]["programs"][HOPPER]["reason"], "lib-test is not packed")
        self.assertEqual(self.run_py("tests", CRASHES="1")[1]["tests"]["kernels"], "client")

    def test_a_hang_until_the_time_is_spent_does_not_choose_the_kernels_that_hang(self):
        status, found = self.run_py("tests", "k3", "--sides", "cuda", "--limit", 6, HANGS="cuda::b", UNDER="1")
        programs = found["tests"]["programs"]
        self.assertEqual((status, found["tests"]["state"], found["tests"]["kernels"]), (1, "failed", "client"))
        self.assertEqual((programs[CUDA["client"]]["passed"], programs[CUDA["1"]]["passed"]), (3, 1))
        self.assertIn("the stage's time was spent", programs[CUDA["1"]]["reason"])
        self.assertIn("no time was left", programs["wgpu"]["reason"])
        self.assertEqual({row["kernels"] for row in found["k3"]["rows"]}, {"client"})

    def test_a_hang_of_the_clients_kernels_leaves_half_of_the_time(self):
        _, found = self.run_py("tests", "--limit", 8, HANGS="cuda::b", UNDER="client")
        programs = found["tests"]["programs"]
        self.assertIn("the stage's time was spent", programs[CUDA["client"]]["reason"])
        self.assertEqual((programs[CUDA["1"]]["passed"], found["tests"]["kernels"]), (3, "1"))

    def test_a_quick_run_waits_less_for_what_hangs(self):
        with mock.patch.multiple(stages, QUICK_TEST_STALL=1, ALONE_LIMIT=1):
            _, found = self.run_py("tests", "--quick", HANGS="cuda::b", UNDER="1")
        self.assertIn("it said nothing for 1 s", found["tests"]["programs"][CUDA["1"]]["reason"])

    def test_a_program_that_was_not_packed_fails_nothing(self):
        (self.folder / "programs/wgpu-test").unlink()
        status, found = self.run_py("tests")
        self.assertEqual((status, found["tests"]["state"]), (0, "done"))
        self.assertEqual(found["tests"]["programs"]["wgpu, whole networks"]["reason"], "wgpu-test is not packed")

    def test_without_a_wgpu_adapter_the_tests_on_cuda_count(self):
        refuses = 'if "AQUATINT_REQUIRE_WGPU" in os.environ:\n    sys.exit("wgpu is required here: none")\n'
        for name in (stages.NEEDED_TEST, "wgpu-test"):
            self.script(f"programs/{name}", refuses + TEST_PROGRAM)
        status, found = self.run_py("tests", CRASHES="1")
        self.assertEqual((status, found["tests"]["kernels"]), (1, "client"))
        self.assertEqual(found["tests"]["programs"][CUDA["client"]]["passed"], 3)
        self.assertIn("wgpu: exit status 1: wgpu is required here", found["tests"]["reason"])
        self.assertNotIn("failed_alone", found["tests"]["programs"]["wgpu"])

    def test_where_every_kernel_fails_and_the_clients_pass_those_are_measured(self):
        self.script("programs/wgpu-test", TEST_PROGRAM.replace('"CRASHES"', '"NONE"'))
        status, found = self.run_py("tests", CRASHES="1")
        self.assertEqual((status, found["tests"]["state"], found["tests"]["kernels"]), (1, "failed", "client"))
        program = found["tests"]["programs"][CUDA["1"]]
        self.assertEqual((program["passed_alone"], list(program["failed_alone"])), (["cuda::c"], ["cuda::b"]))
        # In another run of the script, too: the bench crashes under 1.
        status, found = self.run_py("k1", "--sides", "cuda", CRASHES="linear")
        self.assertEqual((status, found["k1"]["rows"][0]["kernels"]), (0, "client"))
        status, found = self.run_py("k1", "--sides", "cuda", "--kernels", "1", CRASHES="linear")
        self.assertEqual((status, found["k1"]["state"]), (1, "failed"))

    def test_what_a_crashed_program_came_to_is_written_down_before_its_tests_run_alone(self):
        saved = []
        with mock.patch.object(figures, "record", lambda *given: saved.append(json.loads(json.dumps(given[-1])))):
            with mock.patch.object(self, "results", lambda: {"stages": {}}):
                self.run_py("tests", CRASHES="1")
        first = next(part for part in saved if CUDA["1"] in part["programs"])["programs"][CUDA["1"]]
        self.assertEqual((first["passed"], first["status"], list(first["failed_alone"])), (1, -11, ["cuda::b"]))

    def test_where_both_fail_the_clients_kernels_are_measured(self):
        _, found = self.run_py("tests", CRASHES="1 client")
        self.assertEqual((found["tests"]["state"], found["tests"]["kernels"]), ("failed", "client"))

    def test_a_test_that_hangs_is_killed_and_those_after_it_run(self):
        with mock.patch.multiple(stages, TEST_STALL=1, ALONE_LIMIT=1):
            _, found = self.run_py("tests", HANGS="cuda::b")
        program = found["tests"]["programs"][CUDA["1"]]
        self.assertEqual((program["passed"], program["passed_alone"]), (1, ["cuda::c"]))
        self.assertIn("it took more than 1 s", program["failed_alone"]["cuda::b"])


class Sanitizer(StandIns):
    def test_it_looks_at_both_sets_of_kernels_with_both_tools(self):
        status, found = self.run_py("sanitize")
        self.assertEqual((status, found["sanitize"]["state"]), (0, "done"))
        runs = [f"{tool}, AQUATINT_CUDA_KERNELS={value}" for value in ("1", "client") for tool in stages.SANITIZERS]
        self.assertEqual(list(found["sanitize"]["programs"]), runs)
        self.assertEqual({program["passed"] for program in found["sanitize"]["programs"].values()}, {3})

    def test_what_it_finds_fails_the_stage(self):
        for tool in stages.SANITIZERS:
            status, found = self.run_py("sanitize", FINDS=tool)
            self.assertEqual((status, found["sanitize"]["state"]), (1, "failed"))
            self.assertIn(f"{tool}, AQUATINT_CUDA_KERNELS=1: 1 found", found["sanitize"]["reason"])

    def test_without_a_summary_it_has_looked_at_nothing(self):
        self.script("bin/compute-sanitizer", "print('3 passed; 0 failed; 0 ignored')")
        self.assertEqual(self.run_py("sanitize")[0], 1)


class Plans(unittest.TestCase):
    def test_a_plan_holds_every_stage_once_and_fits(self):
        for minutes in (10, 15, 30):
            commands = [line.split() for line in run.plan(minutes)]
            totals = [float(command[-1]) for command in commands]
            planned = [word for command in commands for word in command if word in stages.STAGES]
            self.assertEqual(planned, list(run.EXPECTED))
            self.assertEqual(set(planned), set(stages.STAGES))
            self.assertLessEqual(sum(totals), 60 * minutes - run.START)
            self.assertLess(max(totals), 540)

    def test_less_than_a_start_is_no_plan(self):
        with self.assertRaises(SystemExit):
            list(run.plan(2))


if __name__ == "__main__":
    unittest.main()
