"""The `steps` stage of `make gpu` without a GPU: on a CPU no graph is captured, all else is the same."""

from __future__ import annotations

import json
import time

import jsonschema
import pytest
import torch

from benchmarks.gpu import stages, steps
from benchmarks.record import RESULTS, Failure, Record
from benchmarks.training_steps import Steps, check_losses
from fusedrnn.bench import grid
from fusedrnn.bench.gate import GateError
from fusedrnn.lm.errors import ConfigError

SCHEMA = json.loads((RESULTS / "schema.json").read_text())
PLAIN = steps.Problem("gru", 8, 1.0, "ieee", graph=False, device="cpu")
GRAPH = steps.Problem("gru", 8, 1.0, "ieee", graph=True, device="cpu")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "RESULTS", tmp_path / "earlier")
    monkeypatch.setattr(steps, "problems", lambda: [PLAIN, GRAPH])
    monkeypatch.setattr(steps, "BUDGET", 0.01)
    return stages.Place(tmp_path)


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def test_every_model_and_precision_is_planned_with_and_without_a_graph():
    names = [str(problem) for problem in steps.problems()]
    assert len(names) == len(set(names)) == 42
    assert names[:2] == ["training step rnn_relu 64 cuda tf32 graph", "training step rnn_relu 64 cuda tf32"]


def test_rows_are_kept_shown_and_not_measured_again(place, capsys):
    assert stages.measure_steps(place, soon()) == 0
    kept = place.rows("steps")
    assert [(row.problem, row.side, row.ratio is None) for row in kept.rows] == [
        ("training step gru 8 cpu ieee", "torch.nn", True),
        ("training step gru 8 cpu ieee", "auto", False),
        ("training step gru 8 cpu ieee graph", "torch.nn", True),
        ("training step gru 8 cpu ieee graph", "torch.nn capture", False),
        ("training step gru 8 cpu ieee graph", "auto capture", False),
    ]
    jsonschema.validate(json.loads(place.file("steps").read_text()), SCHEMA)
    head, line, _ = steps.table(kept.rows).splitlines()
    assert head.split()[-6:] == ["torch.nn", "auto", "torch.nn", "capture", "auto", "capture"]
    assert line.startswith("training step gru 8 cpu ieee ") and line.count("(") == 3
    capsys.readouterr()
    assert stages.measure_steps(place, soon()) == 0
    assert capsys.readouterr().out == "0 of 0 problems measured, 0 failures\n"
    assert steps.table([]) == ""


def test_a_step_that_cannot_be_captured_costs_its_row_and_the_process(place, monkeypatch):
    measure = steps.measure

    def refused(problem, budget):
        if problem.graph:
            raise ConfigError("the step cannot be captured: no; train with --no-graph")
        return measure(problem, budget)

    monkeypatch.setattr(steps, "measure", refused)
    assert stages.measure_steps(place, soon()) == stages.FATAL
    kept = place.rows("steps")
    assert {row.side for row in kept.rows} == {"torch.nn", "auto"}
    reason = "the step cannot be captured: no; train with --no-graph"
    assert kept.failures == [Failure(str(GRAPH), side, reason) for side in ("torch.nn capture", "auto capture")]
    assert stages.measure_steps(place, soon()) == 0


def test_wrong_losses_are_not_timed():
    def made(library):
        return Steps(steps.text(), library=library, cell="rnn", hidden=8)

    ours, theirs, exact = made("fusedrnn"), made("torch"), made("torch")
    exact.trainer.model.double()
    with torch.no_grad():
        ours.trainer.model.head.bias[1] += 1e-3
    with pytest.raises(GateError, match="loss of step 0 of auto"):
        check_losses({"auto": ours, grid.TORCH: theirs}, exact, rounding=1e-6)


def test_float64_is_the_measure_and_torch_may_be_near_it():
    problem = steps.Problem("lstm", 8, 1.0, "bf16", graph=False, device="cpu")
    found: Record = steps.measure(problem, budget=0.01)
    assert [row.problem for row in found.rows] == ["training step lstm 8 cpu bf16"] * 2
