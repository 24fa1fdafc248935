"""`make gpu` as far as it goes without a GPU: program, rows, files, stages and tables, on made input."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import made_chip
import pytest
import torch
from made_chip import row
from problems import make_auto_wrong

from benchmarks import record
from benchmarks.gpu import layers, micro
from benchmarks.record import RESULTS, Failure, Record
from fusedrnn.bench import gate, grid

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((RESULTS / "schema.json").read_text())
PHYSICS = made_chip.physics()
SMALL = grid.Problem("gru", "T5-B3-I4-H6", training=True)


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
    groups = {"barriers", "bulk", "clusters", "exchange", "fetch", "functions", "grid", "loads", "matrix"}
    assert set(named) == groups and len(named) == len(groups)


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
    make_auto_wrong(monkeypatch)
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
    kept = [path for path in RESULTS.glob("*.json") if path.name not in ("schema.json", "targets.json", "cubins.json")]
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
