"""`fusedrnn bench`: what it prints, what it refuses, and that a wrong result is never shown as a speed-up."""

import re

import pytest
import torch
from problems import make_auto_wrong

from fusedrnn import dispatch
from fusedrnn.bench import gate, grid, measure, onnx
from fusedrnn.bench.grid import Problem
from fusedrnn.bench.pairs import Spread, interleaved, ratios
from fusedrnn.cli import main

TINY = ["--T", "4", "--B", "2", "--I", "3", "--H", "5", "--seconds", "0.01"]
SIZE = "T4-B2-I3-H5"


@pytest.fixture
def call(capsys):
    """Run the command in this process: (exit status, lines of standard output, standard error)."""

    def run(*arguments):
        try:
            status = main(["bench", *arguments])
        except SystemExit as exit:
            status = exit.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run


def line_of(side: str, lines: list[str]) -> str:
    [found] = [line for line in lines if line.startswith(f"{side}  ")]
    return found


RATIO = r"\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)"
LAYERS = {
    "lstm T4-B2-I3-H5 forward+backward cpu": [],
    "gru T4-B2-I3-H5 forward cpu": ["--cell", "gru", "--inference"],
    "rnn T4-B2-I3-H5 forward+backward cpu bf16": ["--cell", "rnn", "--dtype", "bfloat16"],
    "lstm T4-B2-I3-H5 forward+backward cpu fp64": ["--dtype", "float64"],
    "gru T4-B2-I3-H5 forward+backward cpu bidirectional, batch_first, tokens, 2 layers": [
        *("--cell", "gru", "--bidirectional", "--batch-first", "--tokens", "--layers", "2"),
    ],
    "rnn T4-B2-I3-H5 forward+backward cpu packed, tokens": ["--cell", "rnn", "--packed", "--tokens"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_side_is_timed_and_checked(call, name):
    status, lines, err = call(*TINY, *LAYERS[name])
    assert (status, err) == (0, "")
    assert lines[0] == f"{name}, {torch.get_num_threads()} threads"
    problem = Problem.of(name)
    for side in ("auto", *(side for side in grid.our_sides(problem) if side != "auto")):
        assert re.fullmatch(rf"{side} +\d+\.\d+ +{RATIO}  passed, error \S+", line_of(side, lines))
    assert re.fullmatch(r"torch\.nn +\d+\.\d+ +passed, error \S+", line_of("torch.nn", lines))
    assert re.fullmatch(r"GEMMs alone +\d+\.\d+", line_of("GEMMs alone", lines))
    explained = dispatch.explain(problem.facts).splitlines()
    assert lines[-len(explained) :] == explained


def test_onnxruntime_joins_where_it_can_run_it():
    assert onnx.SIDE in measure.sides_of(Problem("gru", SIZE, training=False))
    for other in (
        Problem("gru", SIZE, training=True),
        Problem("gru", SIZE, False, precision="bf16"),
        Problem("gru", SIZE, False, layout="packed"),
        Problem("gru", SIZE, False, layout="tokens"),
    ):
        assert onnx.SIDE not in measure.sides_of(other)


@pytest.mark.parametrize("layout", ["", "bidirectional", "2 layers, batch_first", "bidirectional, 3 layers"])
@pytest.mark.parametrize("cell", grid.CELLS)
def test_the_graph_for_onnxruntime_computes_what_torch_does(cell, layout):
    problem = Problem(cell, SIZE, False, layout=layout)
    _, error = measure.checked(problem, onnx.SIDE, *grid.inputs(problem))
    assert error < 1e-6


def test_a_wrong_result_is_never_shown_as_a_speed_up(call, monkeypatch):
    make_auto_wrong(monkeypatch)
    status, lines, _ = call(*TINY)
    assert status == 1
    assert re.fullmatch(rf"auto +FAILED: lstm {SIZE} forward\+backward cpu, result \d: .*", line_of("auto", lines))
    assert re.search(RATIO, line_of("cpu concat", lines))


def test_the_check_of_float64_stops_what_is_wrong(monkeypatch):
    make_auto_wrong(monkeypatch)
    found = measure.measure(Problem("gru", SIZE, True, precision="fp64"), [grid.TORCH, "auto"], budget=0.01)
    assert list(found.errors) == [grid.TORCH]
    assert re.search(r"result \d: relative error", found.faults["auto"])
    assert found.ratio(grid.TORCH, "auto") is None and found.milliseconds("auto") is None


BAD = {
    "no cell": (["--cell", "elman"], "invalid choice: 'elman'"),
    "no dtype": (["--dtype", "int8"], "invalid choice: 'int8'"),
    "T 0": (["--T", "0"], "--T: must be at least 1, got 0"),
    "H no number": (["--H", "many"], "invalid count value: 'many'"),
    "no threads": (["--threads", "0"], "--threads"),
    "no layers": (["--layers", "0"], "--layers"),
    "no time": (["--seconds", "0"], "--seconds: must be above 0"),
    "endless": (["--seconds", "inf"], "--seconds: must be above 0"),
    "unknown flag": (["--hidden", "5"], "--hidden"),
    "too large": (["--T", "1000000000", "--B", "10000000"], "allocate memory"),
    "beyond counting": (["--T", str(2**62), "--B", str(2**62)], "overflow"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(call, case):
    arguments, fragment = BAD[case]
    status, lines, err = call(*TINY, *arguments)
    assert (status, lines) == (2, [])
    assert err.count("\n") == 1
    assert "error: " in err and fragment in err


def test_a_backend_that_cannot_run_it_is_one_line(call, monkeypatch):
    monkeypatch.setattr(dispatch, "_environment", "triton")
    status, lines, err = call(*TINY)
    assert (status, lines) == (2, [])
    assert err.count("\n") == 1 and "backend 'triton' cannot run" in err


def test_a_problem_is_what_its_name_says():
    problem = Problem("gru", "d2l-256", True, "cpu", "bf16", "bidirectional, 2 layers")
    assert Problem.of(str(problem)) == problem
    assert (problem.directions, problem.layers, problem.options) == (2, 2, {"bidirectional": True, "num_layers": 2})
    for name in ("gru d2l-256 sideways cpu", "elman d2l-256 forward cpu", "gru d2l-256"):
        with pytest.raises(ValueError, match=r"problem: |not enough values"):
            Problem.of(name)


def test_tokens_are_multiplied_by_no_matrix():
    assert Problem("gru", SIZE, True).products() == [(8, 3 + 5, 15)]
    assert Problem("gru", SIZE, True, layout="2 layers, tokens").products() == [(8, 5, 15), (8, 5 + 5, 15)]


def test_rounds_take_every_side_and_turn_about():
    order = []
    times = interleaved({side: lambda side=side: float(order.append(side) or len(order)) for side in "ab"}, rounds=3)
    assert "".join(order) == "abbaab"
    assert times == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == Spread(3.0, pytest.approx(2.4), pytest.approx(3.6))


def test_the_gate_passes_what_is_right_and_stops_what_is_wrong():
    problem = Problem("gru", "seed-64", training=True)
    right = grid.layer(grid.fused_module(problem, "auto", "auto"), problem, *grid.inputs(problem))()
    assert 0 < gate.passed(problem, "auto", right) < 1e-5
    for k in range(len(right)):
        results = [t.detach().clone() for t in right]
        results[k].view(-1)[-1] += 1e-3
        with pytest.raises(gate.GateError, match=f"result {k}: "):
            gate.passed(problem, "auto", results)
