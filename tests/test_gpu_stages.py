"""`make gpu` without a GPU: its stages on problems of a CPU, its tables on made input, its command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import made_chip
import pytest
import torch
from made_chip import row

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import floors, layers, micro, plan, published, stages, table
from benchmarks.record import RESULTS, Failure, Record
from fusedrnn.bench import grid

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((RESULTS / "schema.json").read_text())
PHYSICS = made_chip.physics()
SMALL = grid.Problem("gru", "T5-B3-I4-H6", training=True)


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


def test_the_chip_is_measured_once_by_one_program(place, monkeypatch, capsys):
    device = SimpleNamespace(multi_processor_count=made_chip.SMS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(micro, "architecture", lambda: "90a")
    monkeypatch.setattr(micro, "build", lambda sm, seconds: micro.program_for(sm))
    monkeypatch.setattr(micro, "groups", lambda program: ["barriers", "loads"])
    monkeypatch.setattr(stages, "large_rates", lambda: [made_chip.value("copy", 1000, "GB/s")])
    runs = []

    def measure(program, group, seconds):
        runs.append(group)
        failed = [{"measure": group, "at": {}, "error": "late"}] if len(runs) == 2 else []
        return [made_chip.timed(group, 30), *failed]

    monkeypatch.setattr(micro, "measure", measure)
    stages.measure_micro(place, soon())
    assert capsys.readouterr().out == "4 measurements, 1 errors\n  loads {}: late\n"
    stages.measure_micro(place, soon())  # again, since there was an error
    assert runs == ["barriers", "loads"] * 2
    jsonschema.validate(json.loads(place.file("micro").read_text()), SCHEMA)
    stages.measure_micro(place, soon())
    assert runs == ["barriers", "loads"] * 2
    assert capsys.readouterr().out.endswith("all measured before\n")


def test_earlier_results_are_not_measured_again_but_shown(place):
    earlier = stages.Place(stages.RESULTS).file("cudnn")
    Record([row(SMALL, ms=7.0)]).save(earlier)
    stages.measure_cudnn(place, soon())
    assert [r.problem for r in Record.load(place.file("cudnn")).rows] == [str(plan.grid()[1])]
    assert {r.problem for r in place.rows("cudnn").rows} == set(map(str, plan.grid()))


def test_torch_is_not_measured_alone_where_it_was_beside_ours(place):
    beside, alone = plan.grid()
    Record([row(beside), row(beside, "auto", ratio=2.0)]).save(place.file("fusedrnn"))
    stages.measure_cudnn(place, soon())
    assert [r.problem for r in place.rows("cudnn").rows] == [str(alone)]
    assert [(r.problem, r.side) for r in place.of_torch().rows] == [(str(p), grid.TORCH) for p in (beside, alone)]


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
    assert kept.failures == [Failure(str(SMALL), grid.TORCH, "CUDA error: an illegal memory access was encountered")]
    assert [r.problem for r in kept.rows] == [str(plan.grid()[1])]


def test_short_memory_costs_one_row_and_not_the_process(place, monkeypatch, capsys):
    measure = layers.measure

    def breaks(problem, *arguments):
        if problem == SMALL:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return measure(problem, *arguments)

    monkeypatch.setattr(layers, "measure", breaks)
    assert stages.measure_cudnn(place, soon()) == 0
    kept = place.rows("cudnn")
    assert kept.failures == [Failure(str(SMALL), grid.TORCH, "CUDA out of memory. Tried to allocate 2 GiB.")]
    assert [r.problem for r in kept.rows] == [str(plan.grid()[1])]
    assert capsys.readouterr().out.startswith("1 of 2 problems measured, 1 failures\n")


def test_after_a_failed_capture_a_new_process_goes_on(place, monkeypatch):
    measure = layers.measure

    def breaks(problem, *arguments):
        found = measure(problem, *arguments)
        if problem == SMALL:
            found.failures.append(Failure(str(problem), f"{grid.TORCH} {layers.GRAPH}", "operation not permitted"))
        return found

    monkeypatch.setattr(layers, "measure", breaks)
    assert stages.measure_cudnn(place, soon()) == stages.FATAL
    assert {r.clock for r in place.rows("cudnn").rows} == {"wall"}  # what was measured before it is kept
    assert stages.measure_cudnn(place, soon()) == 0
    kept = place.rows("cudnn")
    assert {r.problem for r in kept.rows} == set(map(str, plan.grid()))
    assert [f.reason for f in kept.failures] == ["operation not permitted"]


def test_a_process_that_dies_over_a_problem_is_replaced(place, monkeypatch):
    first, second = map(str, plan.grid())
    started = []

    def dies_over_the_first(command, *_, **__):
        started.append(command)
        if len(started) == 1:
            place.under_way("cudnn").write_text(f"{first}\n{grid.TORCH}")
            return SimpleNamespace(returncode=-11)
        return SimpleNamespace(returncode=stages.measure_cudnn(place, soon()))

    monkeypatch.setattr(gpu.processes, "run", dies_over_the_first)
    assert gpu._stage(gpu.Share("cudnn", "torch.nn", 60, 1), place, soon()) == 0
    assert len(started) == 2
    kept = place.rows("cudnn")
    assert kept.failures == [Failure(first, grid.TORCH, "the process that measured it ended")]
    assert [r.problem for r in kept.rows] == [second]
    assert not place.under_way("cudnn").exists()


def test_a_problem_that_never_ends_is_not_begun_again(place, monkeypatch):
    def hangs(command, seconds, **_):
        place.under_way("cudnn").write_text(f"{SMALL}\n{grid.TORCH}")
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setattr(gpu.processes, "run", hangs)
    assert gpu._stage(gpu.Share("cudnn", "torch.nn", 60, 1), place, soon()) == 1
    assert place.rows("cudnn").problems == {str(SMALL)} and not place.under_way("cudnn").exists()


def test_large_rates_are_named_as_the_floors_want_them():
    found = list(stages.large_rates(edge=64, copied=1 << 16, device="cpu"))
    physics = micro.Physics(found, {})
    assert all(physics.value("matrix product", precision=precision) > 0 for precision in plan.PRECISIONS)
    assert physics.value("copy") > 0


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


def test_a_dry_run_shows_the_plan_and_its_minutes():
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--minutes", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stage in stages.STAGES:
        assert re.search(rf"^{stage}( +\d+\.\d){{3}}  \S", done.stdout, re.MULTILINE)
    lines = [line.split() for line in done.stdout.splitlines()[1 : len(stages.STAGES) + 1]]
    assert [name for name, *_ in lines] == list(stages.STAGES)
    for column in (2, 3):
        assert sum(float(line[column]) for line in lines) <= 5
    assert "5 minutes in all" in done.stdout


@pytest.mark.parametrize(
    ("compiled", "least"),
    [(False, {"tests": 90, "soak": 60, "sanitizer": 60, "fusedrnn": 120}), (True, {"library": 300, "tests": 40})],
    ids=["brought along", "compiled"],
)
def test_a_first_run_reaches_the_kernels(compiled, least):
    given = dict(zip((share.name for share in gpu.shares()), gpu.given(9, compiled), strict=True))
    assert list(given) == list(stages.STAGES)
    assert all(given[name] >= seconds for name, seconds in least.items()), given


def ended(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["make gpu", *arguments])
    with pytest.raises(SystemExit) as left:
        sys.exit(gpu.main())
    return left.value.code


@pytest.mark.parametrize(
    "arguments", [("--minutes", "0"), ("--minutes", "soon"), ("--results", str(ROOT / "README.md"))]
)
def test_bad_options_are_refused_in_a_line(arguments, monkeypatch, capsys):
    assert ended(monkeypatch, "--dry", *arguments) == 2
    told = capsys.readouterr()
    last = told.err.splitlines()[-1]
    assert not told.out and last.startswith("make gpu: error: ") and arguments[0] in last


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    assert ended(monkeypatch, "--results", str(tmp_path)) == 2
    assert capsys.readouterr().err == "make gpu: torch sees no CUDA GPU here; make gpu DRY=1 shows the plan\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's tests would run")
def test_all_stages_in_processes_of_their_own(tmp_path, capfd, monkeypatch):
    """Without a GPU each fails in its own way; the tables come all the same, and what a stage kept is there."""
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "1")
    place = stages.Place(tmp_path)
    assert gpu._stage(gpu.Share("tests", "the tests marked gpu", 300, 1), place, soon(300)) == 0
    kept = json.loads(place.file("tests").read_text())
    jsonschema.validate(kept, SCHEMA)
    assert {test["outcome"] for test in kept["tests"]} == {"skipped"}
    names = [test["name"] for test in kept["tests"]]
    of_cuda = ["cuda" in name for name in names]
    assert of_cuda == sorted(of_cuda, reverse=True) and 200 < sum(of_cuda) < len(names) == len(set(names))
    assert gpu._stage(gpu.Share("micro", "the chip", 60, 1), place, soon()) == 1
    gpu.show_tables(place)
    told = capfd.readouterr().out
    assert "gpu tests: 0 passed, 0 failed" in told
    assert place.file("table").with_suffix(".md").exists()
