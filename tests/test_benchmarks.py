"""The benchmarks themselves: the command, the gate before every row, what is kept."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gate, grid, report
from benchmarks.pairs import Spread, ratios
from benchmarks.record import Record

ROOT = Path(__file__).parent.parent
PROBLEM = grid.Problem("gru", "seed-64", training=True)


def test_the_command_measures_and_keeps_rows(tmp_path):
    options = ["--threads=1", "--budget=0.01", f"--results={tmp_path}", "-k", "seed-64 and gru and backward"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--benchmark", "-q", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    (kept,) = tmp_path.iterdir()
    rows = Record.load(kept).rows
    assert {"torch.nn", "auto"} <= {row.side for row in rows}
    for row in rows:
        assert (row.problem, row.threads) == (str(PROBLEM), 1)
        assert row.ratio is not None and 0 < row.ratio.p20 <= row.ratio.median <= row.ratio.p80
        assert f" {row.side} " in done.stdout
    assert f"kept in {kept}" in done.stdout
    assert "| seed-64 |" in report.markdown(rows, 1)


def test_the_gate_passes_what_is_right_and_stops_what_is_wrong():
    right = grid.layer(grid.fused_module(PROBLEM, "auto", "auto"), PROBLEM, *grid.inputs(PROBLEM))
    gate.check(PROBLEM, right())
    for k in range(len(right())):

        def wrong(k=k):
            results = [t.detach().clone() for t in right()]
            results[k].view(-1)[-1] += 1e-3
            return results

        with pytest.raises(AssertionError, match=f"result {k}: "):
            gate.check(PROBLEM, wrong())


def test_both_sides_are_given_the_same():
    theirs, ours = grid.torch_module(PROBLEM), grid.fused_module(PROBLEM, "reference", "auto")
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other)


def test_ratios_are_of_neighbours():
    assert ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == Spread(3.0, pytest.approx(2.4), pytest.approx(3.6))
