"""One layer, forward and forward+backward, against torch.nn over the grid. On a GPU torch.nn is cuDNN."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gate, grid, pairs
from benchmarks.record import Row

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


CASES = [
    pytest.param(problem, side, id=f"{problem.cell}-{size}-{problem.work}-{device}-{side.replace(' ', '_')}")
    for device in DEVICES
    for size in grid.SIZES
    for cell in grid.CELLS
    for training in (False, True)
    for problem in (grid.Problem(cell, size, training, device),)
    # torch.nn against itself shows the noise
    for side in (grid.TORCH, *grid.our_sides(problem))
]


@pytest.mark.parametrize(("problem", "side"), CASES)
def test_layer(problem, side, threads, budget, benchmark, record):
    x, dy = grid.inputs(problem)
    theirs, ours = (grid.layer(grid.module_of(problem, name), problem, x, dy) for name in (grid.TORCH, side))
    benchmark.group = f"{problem}, {threads} threads"
    benchmark.name = side
    others = {grid.TORCH: theirs, "floor": grid.floor(problem)}
    with grid.float32_precision(problem.precision):
        gate.check(problem, ours())
        own, times = pairs.paired(benchmark, ours, others, budget, problem.device)
    if benchmark.disabled:
        return
    record.rows.append(
        Row(
            str(problem),
            side,
            threads,
            pairs.milliseconds(own),
            pairs.milliseconds(times[grid.TORCH]),
            pairs.ratios(times[grid.TORCH], own),
            pairs.ratios(own, times["floor"]),
        )
    )
