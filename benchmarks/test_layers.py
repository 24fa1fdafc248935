"""One layer, forward and forward+backward, against torch.nn over the grid. On a GPU torch.nn is cuDNN."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gate, grid, pairs
from benchmarks.record import Row
from fusedrnn.backends.base import Problem
from fusedrnn.dispatch import REGISTRY

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def sides(problem: grid.Problem) -> list[str]:
    """torch.nn against itself, which shows the noise; what `auto` takes; every backend that can run the problem, and
    where a schedule can be forced, every schedule. `reference` is the yardstick and no rival."""
    size = problem.sizes
    facts = (problem.spec.name, problem.device, torch.float32, size.T, size.B, size.I, size.H)
    found = ["torch.nn", "auto"]
    for name, backend in REGISTRY.items():
        if name == "reference" or backend.not_supported_reasons(Problem(*facts)):
            continue
        forced = [f"{name} {schedule}" for schedule in sorted(backend.schedules)]
        found += forced or [name]
    return found


CASES = [
    pytest.param(problem, side, id=f"{problem.cell}-{size}-{problem.work}-{device}-{side.replace(' ', '_')}")
    for device in DEVICES
    for size in grid.SIZES
    for cell in grid.CELLS
    for training in (False, True)
    for problem in (grid.Problem(cell, size, training, device),)
    for side in sides(problem)
]


@pytest.mark.parametrize(("problem", "side"), CASES)
def test_layer(problem, side, threads, budget, benchmark, record):
    x, dy = grid.inputs(problem)
    theirs = grid.layer(grid.torch_module(problem), problem, x, dy)
    if side == "torch.nn":
        ours = grid.layer(grid.torch_module(problem), problem, x, dy)
    else:
        backend, _, schedule = side.partition(" ")
        ours = grid.layer(grid.fused_module(problem, backend, schedule or "auto"), problem, x, dy)
    gate.check(problem, ours)
    benchmark.group = f"{problem}, {threads} threads"
    benchmark.name = side
    others = {"torch.nn": theirs, "floor": grid.floor(problem)}
    own, times = pairs.paired(benchmark, ours, others, budget, problem.device)
    if benchmark.disabled:
        return
    record.rows.append(
        Row(
            str(problem),
            side,
            threads,
            pairs.milliseconds(own),
            pairs.milliseconds(times["torch.nn"]),
            pairs.ratios(times["torch.nn"], own),
            pairs.ratios(own, times["floor"]),
        )
    )
