"""How the kernels cut a time loop among threads, by a model of what a step costs (`csrc/threads.h`), beside the cuts it
chooses from: every thread its own rows, or its own units of all rows."""

from __future__ import annotations

import contextlib

import pytest
import torch

from benchmarks import replay
from benchmarks.record import Row
from fusedrnn import _extension
from fusedrnn.bench import grid
from fusedrnn.bench.grid import Problem
from fusedrnn.bench.pairs import milliseconds, paired, ratios

pytestmark = [
    pytest.mark.benchmark(timer=replay.clock),
    pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason()),
    pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread has nothing to cut"),
]

SIZES = [name for name, size in grid.SIZES.items() if size.B > 1 and name != "mid-512"]
SIZES += ["T35-B4-I28-H128", "T35-B4-I28-H256", "T35-B8-I28-H256", "T35-B16-I28-H512"]
MODEL, ROWS, UNITS = "model", "rows apart", "units apart"
WORST = 1.25  # of the model's time over the better cut's: more is a wrong choice and not the noise of a shared host


@contextlib.contextmanager
def cut(groups: int, pieces: int):
    """As `Cut` in csrc/threads.h; 0, 0: by the model."""
    ops = torch.ops.fusedrnn_cpu
    ops.share_rows_always(True)
    ops.force_cut(groups, pieces)
    try:
        yield
    finally:
        ops.force_cut(0, 0)
        ops.share_rows_always(False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cell", grid.CELLS)
def test_the_model_chooses_the_better_cut(cell, size, budget, benchmark, record):
    threads = torch.get_num_threads()
    problem = Problem(cell, size, training=False)
    x, dy = grid.inputs(problem)
    layer = grid.layer(grid.fused_module(problem, "cpu", "auto"), problem, x, dy)
    cuts = {MODEL: (0, 0), ROWS: (threads, 1), UNITS: (1, threads)}

    def side(of):
        def run():
            with cut(*of):
                return layer()

        return run

    sides = {name: side(of) for name, of in cuts.items()}
    results = {name: run()[0] for name, run in sides.items()}
    assert all(torch.equal(results[MODEL], y) for y in results.values())
    times = paired(sides, budget * len(sides))
    better = min((ROWS, UNITS), key=lambda name: milliseconds(times[name]).median)
    replay.show(benchmark, f"cut of {problem}, {threads} threads", better, times[MODEL])
    for name, seconds in times.items():
        over = ratios(seconds, times[better])
        record.rows.append(Row(f"cut of {problem}", name, threads, milliseconds(seconds), over_floor=over))
    assert ratios(times[MODEL], times[better]).p20 < WORST
