"""What `fusedrnn bench` prints."""

from __future__ import annotations

import argparse

import torch

from fusedrnn import dispatch
from fusedrnn.bench import grid, measure
from fusedrnn.bench.grid import Problem, Size
from fusedrnn.bench.measure import FLOOR, Measured
from fusedrnn.bench.pairs import Spread

PRECISIONS = {"float32": "ieee", "bfloat16": "bf16", "float64": "fp64"}


def problem_of(arguments: argparse.Namespace) -> Problem:
    """What the arguments of the command line ask for."""
    size = Size(arguments.T, arguments.B, arguments.I, arguments.H)
    parts = [name for name in ("bidirectional", "batch_first", "packed", "tokens") if getattr(arguments, name)]
    parts += [f"{arguments.layers} layers"] * (arguments.layers > 1)
    precision = PRECISIONS[arguments.dtype]
    return Problem(arguments.cell, str(size), not arguments.inference, "cpu", precision, ", ".join(parts))


def run(problem: Problem, seconds: float) -> bool:
    """Measure, and print the table and what `auto` takes. Whether every check passed."""
    chosen = dispatch.explain(problem.facts)
    found = measure.measure(problem, measure.sides_of(problem), seconds)
    print(f"{problem}, {torch.get_num_threads()} threads\n\n{table(found)}\n")
    print(f"auto takes, for {'the first layer' if problem.layers > 1 else 'this layer'}:\n{chosen}")
    return not found.faults


def table(found: Measured) -> str:
    """A line a side. One whose check failed has neither time nor ratio, but the reason."""
    heads = ("", "ms", f"times {grid.TORCH} (20% to 80%)", "check")
    lines = [_line(*heads)]
    for side in (*found.errors, *found.faults):
        check = f"FAILED: {found.faults[side]}" if side in found.faults else f"passed, error {found.errors[side]:.1g}"
        lines.append(_line(side, *_numbers(found, side), check))
    return "\n".join([*lines, _line("GEMMs alone", *_numbers(found, FLOOR), "")])


def _line(side: str, ms: str, ratio: str, check: str) -> str:
    return f"{side:14}{ms:>10}  {ratio:>29}  {check}".rstrip()


def _numbers(found: Measured, side: str) -> tuple[str, str]:
    ms = found.milliseconds(side)
    ratio = found.ratio(grid.TORCH, side) if side not in (grid.TORCH, FLOOR) else None
    return f"{ms.median:.3f}" if ms else "", told(ratio)


def told(ratio: Spread | None) -> str:
    """The median with the 20th and the 80th percentile."""
    return f"{ratio.median:.2f} ({ratio.p20:.2f} to {ratio.p80:.2f})" if ratio else ""
