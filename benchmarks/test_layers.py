"""One layer beside torch.nn over the grid: every side of a problem in the same rounds. On a GPU torch.nn is cuDNN."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import pytest
import torch

from benchmarks import replay
from benchmarks.record import Row
from fusedrnn import dispatch
from fusedrnn.bench import grid, measure, onnx
from fusedrnn.bench.grid import Problem
from fusedrnn.bench.measure import FLOOR, Measured

pytestmark = pytest.mark.benchmark(timer=replay.clock)

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
DTYPES = {"ieee": "float32", "bf16": "bf16"}
VARIED = "d2l-256"  # where layouts and scaling start from
SCALING = {"T": (9, 70, 280), "B": (1, 8, 128), "H": (64, 128, 512, 1024)}


def problems() -> Iterator[Problem]:
    axes = itertools.product(DEVICES, grid.SIZES, grid.CELLS, (False, True), DTYPES)
    for device, size, cell, training, precision in axes:
        for layout in grid.LAYOUTS if size == VARIED else ("",):
            yield Problem(cell, size, training, device, precision, layout)


def scaled() -> Iterator[Problem]:
    """T, B and H one at a time; the size they start from is in the grid."""
    start = vars(grid.SIZES[VARIED])
    for (name, values), cell in itertools.product(SCALING.items(), grid.CELLS):
        for value in values:
            yield Problem(cell, str(grid.Size(**start | {name: value})), training=True)


def _parameters(sides_of: dict[Problem, list[str]]):
    cases = [
        pytest.param(problem, side, id=_id(problem, side))
        for problem, sides in sides_of.items()
        for side in (*sides, FLOOR)
    ]
    return pytest.mark.parametrize(("problem", "side"), cases)


def _id(problem: Problem, side: str) -> str:
    parts = problem.cell, problem.size, problem.layout, DTYPES[problem.precision], problem.work, problem.device, side
    return "-".join(part.replace(" ", "_") for part in parts if part)


SIDES = {problem: measure.sides_of(problem) for problem in problems()}
SCALED = {problem: [grid.TORCH, "auto"] for problem in scaled()}


@_parameters(SIDES)
def test_layer(problem, side, threads, budget, benchmark, record):
    _show(problem, side, threads, budget, benchmark, record)


@_parameters(SCALED)
def test_scaling(problem, side, budget, benchmark, record):
    """With torch's own number of threads alone."""
    _show(problem, side, torch.get_num_threads(), budget, benchmark, record)


def _show(problem: Problem, side: str, threads: int, budget: float, benchmark, record) -> None:
    found = _measured(problem, threads, budget)
    if side in found.faults:
        pytest.fail(found.faults[side], pytrace=False)
    replay.show(benchmark, f"{problem}, {threads} threads", side, found.times[side])
    record.rows.append(row(found, side, threads))


@functools.lru_cache(maxsize=1)  # what the test of one side measured, those of the others show
def _measured(problem: Problem, threads: int, budget: float) -> Measured:
    return measure.measure(problem, (SIDES | SCALED)[problem], budget)


def row(found: Measured, side: str, threads: int) -> Row:
    ms = found.milliseconds(side)
    if side == FLOOR:
        return Row(str(found.problem), side, threads, ms)
    return Row(
        str(found.problem),
        side,
        threads,
        ms,
        torch_ms=found.milliseconds(grid.TORCH),
        ratio=found.ratio(grid.TORCH, side),
        over_floor=found.ratio(side, FLOOR),
        error=found.errors[side],
        onnxruntime_ratio=found.ratio(onnx.SIDE, side),
        backend=taken(found.problem) if side == "auto" else None,
    )


def taken(problem: Problem) -> str:
    """The side that `auto` is."""
    name = dispatch.select(problem.facts)
    backend = dispatch.REGISTRY[name]
    return f"{name} {backend.schedule(problem.facts)}" if backend.schedules else name
