"""`make gpu` as far as it goes without a GPU: program, rows, files, stages and tables, on made input."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import made_chip
import pytest
import torch

from benchmarks import gate, grid, record
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import floors, layers, micro, plan, published, stages, table
from benchmarks.pairs import Spread
from benchmarks.record import RESULTS, Failure, Record, Row

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((RESULTS / "schema.json").read_text())
PHYSICS = made_chip.physics()
SMALL = grid.Problem("gru", "T5-B3-I4-H6", training=True)


def row(problem: grid.Problem, side: str = grid.TORCH, ms: float = 1.0, clock: str = "graph", ratio=None) -> Row:
    floor = floors.floor(problem, PHYSICS)
    over = floor and Spread.of([ms / floor.ms] * 3)
    return Row(str(problem), side, 0, Spread(ms, ms, ms), None, ratio and Spread.of([ratio] * 3), over, clock, 1e-3)


# The program.


@pytest.fixture(scope="module")
def program():
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not on the path")
    return micro.build("90a")


def test_the_program_compiles_for_hopper_and_names_its_groups(program):
    assert "sm_90a" in program.name
    assert micro.build("90a") == program
    named = micro.groups(program)
    assert named[:3] == ["clusters", "exchange", "matrix"]
    assert {"barriers", "functions", "grid", "loads"} <= set(named)


def test_the_program_says_what_is_wrong(program):
    done = subprocess.run([program, "warps"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "micro: there is no group warps; micro --list names them\n"
    if not torch.cuda.is_available():
        (failed,) = micro.measure(program, "barriers")
        assert failed["measure"] == "barriers"
        assert failed["error"].startswith("micro: ")


def script(folder: Path, text: str) -> Path:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_what_a_program_measured_before_it_stopped_is_kept(tmp_path):
    line = json.dumps(made_chip.timed("syncthreads", 30, threads=256))
    slow = script(tmp_path, f"echo '{line}'; echo '{{\"measure\": \"cut'; exec sleep 20")
    found = micro.measure(slow, "barriers", seconds=0.5)
    assert [m["measure"] for m in found] == ["syncthreads", "barriers"]
    assert found[1]["error"] == "stopped after 0 s"
    broken = script(tmp_path, f"echo '{line}'; echo 'micro: misaligned address' >&2; exit 1")
    assert micro.measure(broken, "barriers")[1]["error"] == "micro: misaligned address"


def test_a_program_brought_along_is_taken_if_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(micro, "BUILD", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(micro.MicroError, match="nvcc is not on the path, and no program that runs here"):
        micro.build("90a")
    brought = micro.program_for("90a")
    script(tmp_path, "echo barriers").rename(brought)
    assert micro.build("90a") == brought
    brought.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(micro.MicroError):
        micro.build("90a")


# Rows.


@pytest.mark.parametrize("layout", grid.LAYOUTS)
@pytest.mark.parametrize("precision", ["ieee", "bf16"])
@pytest.mark.parametrize("cell", grid.CELLS)
def test_a_problem_is_measured_behind_its_gate(cell, precision, layout):
    problem = grid.Problem(cell, "T5-B3-I4-H6", True, "cpu", precision, layout)
    sides = [grid.TORCH, *grid.our_sides(problem)]
    found = layers.measure(problem, sides, PHYSICS)
    assert not found.failures
    assert [r.side for r in found.rows] == sides
    for r in found.rows:
        assert r.clock == "wall"
        assert 0 < r.ms.p20 <= r.ms.median <= r.ms.p80
        assert 0 < r.error < gate.SOUND[precision]
        assert (r.ratio is None) == (r.side == grid.TORCH)
        assert r.over_floor.median > 0


def test_what_is_wrong_is_never_timed(monkeypatch):
    right = grid.module_of

    def wrong(problem, side):
        module = right(problem, side)
        if side == "auto":
            with torch.no_grad():
                module.weight_hh_l0[0, 0] += 0.1
        return module

    monkeypatch.setattr(grid, "module_of", wrong)
    found = layers.measure(SMALL, [grid.TORCH, "auto"], PHYSICS)
    assert [r.side for r in found.rows] == [grid.TORCH]
    (failure,) = found.failures
    assert (failure.problem, failure.side) == (str(SMALL), "auto")
    assert re.search(r"result \d: ", failure.reason)


def test_a_backend_that_cannot_is_a_failure_with_its_reason():
    problem = grid.Problem("gru", "T5-B3-I4-H6", True, "cpu", "bf16")
    found = layers.measure(problem, [grid.TORCH, "torch"], PHYSICS)
    assert "oneDNN runs lstm only" in found.failures[0].reason


class StandIn:
    """Graphs and events where there is no GPU: a capture keeps what the run returned, a replay writes it again."""

    def __init__(self, replay_writes: bool):
        self.replay_writes, self.results, self.captures = replay_writes, [], False

    def run(self):
        problem = grid.Problem("gru", "T5-B3-I4-H6", False)
        results = grid.layer(grid.torch_module(problem), problem, *grid.inputs(problem))()
        if self.captures:
            self.results = [(result, result.clone()) for result in results]
        return results

    @contextlib.contextmanager
    def capture(self, graph):
        self.captures = True
        yield
        self.captures = False

    def replay(self):
        for result, value in self.results if self.replay_writes else ():
            result.copy_(value)

    def install(self, monkeypatch):
        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": lambda: self,
            "graph": self.capture,
            "synchronize": lambda: None,
            "Event": lambda enable_timing: Clock(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


class Clock:
    def record(self):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.seconds - self.seconds)


def test_a_graph_is_timed_after_its_replay_wrote_the_results(monkeypatch):
    problem = grid.Problem("gru", "T5-B3-I4-H6", False)
    good = StandIn(replay_writes=True)
    good.install(monkeypatch)
    assert 0 < layers.between_events(layers.captured(problem, good.run))() < 1
    bad = StandIn(replay_writes=False)
    bad.install(monkeypatch)
    with pytest.raises(AssertionError, match="result 0: relative error nan"):
        layers.captured(problem, bad.run)


# Files.


def test_what_is_kept_follows_the_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    kept = [path for path in RESULTS.glob("*.json") if path.name not in ("schema.json", "targets.json")]
    assert kept
    for path in kept:
        jsonschema.validate(json.loads(path.read_text()), SCHEMA)


def test_made_input_is_no_result(tmp_path):
    path = tmp_path / "made.json"
    made_chip.write(path)
    made = json.loads(path.read_text())
    with pytest.raises(jsonschema.ValidationError, match="'made' was unexpected"):
        jsonschema.validate(made, SCHEMA)
    del made["made"]
    made["machine"] = record.describe_machine()
    jsonschema.validate(made, SCHEMA)  # nothing else is amiss with it


def test_rows_replace_those_of_the_same_key_and_measured_failures_go(tmp_path):
    path = tmp_path / "rows.json"
    first, second = row(SMALL, ms=1.0), row(SMALL, "auto", ms=2.0)
    Record([first, second], [Failure(str(SMALL), "cuda", "late")]).save(path)
    Record([row(SMALL, ms=3.0), row(SMALL, "cuda", ms=4.0)], [Failure("other", "cuda", "late")]).save(path)
    jsonschema.validate(json.loads(path.read_text()), SCHEMA)
    kept = Record.load(path)
    assert [(r.side, r.ms.median) for r in kept.rows] == [(grid.TORCH, 3.0), ("auto", 2.0), ("cuda", 4.0)]
    assert kept.failures == [Failure("other", "cuda", "late")]


# Stages.


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder for results, two problems that a CPU has, and no earlier results."""
    monkeypatch.setattr(stages, "RESULTS", tmp_path / "earlier")
    problems = [SMALL, grid.Problem("lstm", "T4-B2-I3-H5", training=False)]
    monkeypatch.setattr(plan, "grid", lambda: problems)
    made = stages.Place(tmp_path / "results")
    made.folder.mkdir()
    return made


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def test_a_stage_goes_on_where_it_stopped(place, capsys):
    assert stages.measure_cudnn(place, soon()) == 0
    assert capsys.readouterr().out == "2 of 2 problems measured, 0 failures\n"
    assert {r.problem for r in place.rows("cudnn").rows} == set(map(str, plan.grid()))
    jsonschema.validate(json.loads(place.file("cudnn").read_text()), SCHEMA)
    assert stages.measure_cudnn(place, soon()) == 0
    assert capsys.readouterr().out == "0 of 0 problems measured, 0 failures\n"


def test_earlier_results_are_not_measured_again_but_shown(place):
    earlier = stages.Place(stages.RESULTS).file("cudnn")
    Record([row(SMALL, ms=7.0)]).save(earlier)
    stages.measure_cudnn(place, soon())
    assert [r.problem for r in Record.load(place.file("cudnn")).rows] == [str(plan.grid()[1])]
    assert {r.problem for r in place.rows("cudnn").rows} == set(map(str, plan.grid()))


def test_what_was_lost_is_measured_before_what_was_won(place, monkeypatch):
    won, lost = plan.grid()
    rows = [row(won, "auto", clock="events", ratio=2.0), row(lost, "auto", clock="events", ratio=0.5)]
    Record(rows).save(stages.Place(stages.RESULTS).file("fusedrnn"))
    order = []
    monkeypatch.setattr(layers, "measure", lambda problem, *_: order.append(problem) or Record())
    stages.measure_fusedrnn(place, soon())
    assert order == [lost, won]


def test_no_row_is_begun_that_would_not_end_in_time(place, capsys):
    stages.measure_cudnn(place, soon(1.01))
    assert capsys.readouterr().out.startswith(("0 of 2", "1 of 2"))
    stages.measure_cudnn(place, soon(0))
    assert capsys.readouterr().out.startswith("0 of ")


def test_an_error_that_ends_the_process_costs_one_row(place, monkeypatch):
    measure = layers.measure

    def breaks(problem, *arguments):
        if problem == SMALL:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might")
        return measure(problem, *arguments)

    monkeypatch.setattr(layers, "measure", breaks)
    assert stages.measure_cudnn(place, soon()) == stages.FATAL
    assert stages.measure_cudnn(place, soon()) == 0
    kept = place.rows("cudnn")
    assert [f.problem for f in kept.failures] == [str(SMALL)]
    assert "illegal memory access" in kept.failures[0].reason
    assert [r.problem for r in kept.rows] == [str(plan.grid()[1])]


def test_large_rates_are_named_as_the_floors_want_them():
    found = list(stages.large_rates(edge=64, copied=1 << 16, device="cpu"))
    physics = micro.Physics(found, {})
    assert all(physics.value("matrix product", precision=precision) > 0 for precision in grid.PRECISIONS)
    assert physics.value("copy") > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would run")
def test_the_gpu_tests_are_collected_and_kept(place):
    assert stages.run_tests(place, soon()) == 0
    kept = json.loads(place.file("tests").read_text())
    jsonschema.validate(kept, SCHEMA)
    assert kept["tests"]
    assert {test["outcome"] for test in kept["tests"]} == {"skipped"}


# Tables.


def test_the_short_table_shows_made_input_as_such():
    lstm = grid.Problem("lstm", "T128-B16-I256-H256", True, "cuda", "fp16")
    packed = grid.Problem("lstm", "d2l-256", True, "cuda", "fp16", "packed")
    cudnn = Record([row(lstm, ms=0.256), row(packed, ms=0.5), row(packed, ms=0.75, clock="wall")])
    ours = Record([row(lstm, "auto", ratio=2.0), row(packed, "auto", ratio=0.5)], [Failure(str(lstm), "cuda", "late")])
    told = table.short(PHYSICS, cudnn, ours, [{"outcome": "passed"}, {"outcome": "failed"}])
    assert told.startswith("MADE INPUT, NOT MEASURED")
    assert re.search(r"__syncthreads, 256 threads +30 cycles +30 cycles, 30 ns\n", told)
    assert re.search(r"wgmma\n", told)  # not measured: nothing stands there
    over = 0.256 / floors.floor(lstm, PHYSICS).ms
    assert re.search(rf"lstm fp16 +B=1 +B=8 +B=16 .*\nH=256 +2\.00 \({over:.1f}\)\n", told)
    assert re.search(rf"B=16 +H=64 .*\nlstm fp16 +2\.00 \({over:.1f}\)\n", told)
    assert re.search(r"lstm d2l-256 forward\+backward cuda fp16 packed +0\.5 +0\.75\n", told)
    assert "auto lstm fp16 forward+backward graph: 1.00 over 2, least 0.50" in told
    assert "gpu tests: 1 passed, 1 failed, 0 skipped" in told
    assert f"torch.nn: 2 of {len(plan.grid())} problems measured, 0 failures" in told
    assert f"lost under auto: 1\n  {packed}" in told


def test_the_full_table_has_a_line_for_each_problem():
    lstm = grid.Problem("lstm", "T128-B16-I256-H256", True, "cuda", "fp16")
    told = table.full(PHYSICS, Record([row(lstm, ms=0.256)]), Record([], [Failure("x", "cuda", "late")]))
    floor = floors.floor(lstm, PHYSICS)
    assert f"| {lstm} | torch.nn | 0.256 (0.256 to 0.256) |  |  |  | 0.001 | {floor.ms:.4g} | " in told
    assert "* x, cuda: late" in told


def test_every_published_figure_can_be_filled():
    names = {measure for measure in re.findall(r'measured\(\s*"([^"]+)"|fact\("([^"]+)"|exchanged\("([^"]+)"',
             "".join(path.read_text() for path in micro.SOURCES.iterdir())) for measure in measure}  # fmt: skip
    found = published.rows(PHYSICS)
    assert len(found) == len(published.FIGURES)
    assert sum(bool(told) for *_, told in found) > 15
    asked = {m["measure"] for m in made_chip.measurements()}
    by_python = {"multiprocessors", "copy", "matrix product", "fetch by cp.async"}
    assert asked - by_python <= names


def test_nothing_measured_gives_tables_without_numbers():
    told = table.short(micro.Physics([], {}), Record(), Record(), [])
    assert told.startswith("not measured")
    assert f"0 of {len(plan.grid())} problems measured" in told


# The command.


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_a_dry_run_shows_the_plan_and_its_minutes():
    done = run_command("--dry", "--minutes", "5")
    assert done.returncode == 0, done.stderr
    for stage in stages.STAGES:
        assert re.search(rf"^{stage} +\d+\.\d +\d+\.\d  \S", done.stdout, re.MULTILINE)
    given = [float(line.split()[2]) for line in done.stdout.splitlines()[1:5]]
    assert sum(given) <= 5
    assert "5 minutes in all" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_and_keeps_nothing(tmp_path):
    done = run_command("--results", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "make gpu: torch sees no CUDA GPU here; make gpu DRY=1 shows the plan\n"
    assert not list(tmp_path.iterdir())


def test_all_stages_in_processes_of_their_own(tmp_path, capfd):
    """Without a GPU each fails in its own way; the tables come all the same, and what a stage kept is there."""
    place = stages.Place(tmp_path)
    assert gpu._stage(gpu.Share("tests", "the tests marked gpu", 60, 0), place, soon()) == 0
    assert json.loads(place.file("tests").read_text())["tests"]
    assert gpu._stage(gpu.Share("micro", "the chip", 60, 0), place, soon()) == 1
    gpu.show_tables(place)
    told = capfd.readouterr().out
    assert "gpu tests: 0 passed, 0 failed" in told
    assert place.file("table").with_suffix(".md").exists()
