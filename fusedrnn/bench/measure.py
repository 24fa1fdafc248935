"""All sides of one problem behind the gate, timed in the same rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fusedrnn.bench import gate, grid, onnx, pairs
from fusedrnn.bench.grid import Problem, Run
from fusedrnn.bench.pairs import Spread, Times

FLOOR = "floor"


@dataclass(frozen=True)
class Measured:
    """Seconds of every side whose gate passed, and of the floor, round by round; why others have none."""

    problem: Problem
    times: Times
    errors: dict[str, float]
    faults: dict[str, str]

    def milliseconds(self, side: str) -> Spread | None:
        return pairs.milliseconds(self.times[side]) if side in self.times else None

    def ratio(self, over: str, under: str) -> Spread | None:
        """Time of one over that of the other in the same round; None where one was not timed."""
        both = [self.times.get(side) for side in (over, under)]
        return pairs.ratios(both[0], both[1]) if both[0] and both[1] else None


def sides_of(problem: Problem) -> list[str]:
    """torch.nn, ours, and the peers that are installed."""
    peers = [onnx.SIDE] if onnx.runs(problem) else []
    return [grid.TORCH, *grid.our_sides(problem), *peers]


def checked(problem: Problem, side: str, x: torch.Tensor, dy: torch.Tensor) -> tuple[Run, float]:
    """The function to time and its error, once its results have passed the gate; else GateError, or RuntimeError where
    it cannot run."""
    if side == onnx.SIDE:
        run = onnx.inference(problem, x)
    else:
        run = grid.layer(grid.module_of(problem, side), problem, x, dy)
    return run, gate.passed(problem, side, run())


def first_line(reason: Exception) -> str:
    """Of what it says; its name where it says nothing."""
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0]


def measure(problem: Problem, sides: Iterable[str], budget: float) -> Measured:
    """`budget`: seconds for each side."""
    runs, errors, faults = {}, {}, {}
    x, dy = grid.inputs(problem)
    with grid.float32_precision(problem.precision):
        for side in sides:
            try:
                runs[side], errors[side] = checked(problem, side, x, dy)
            except (gate.GateError, RuntimeError) as reason:
                faults[side] = first_line(reason)
        timed = {**runs, FLOOR: grid.floor(problem)}
        times = pairs.paired(timed, budget * len(timed), problem.device, pools=onnx.SIDE in runs)
    return Measured(problem, times, errors, faults)
