"""The gate before every row: outputs and all gradients against torch.nn in float64, by the tests' rule of precision."""

from __future__ import annotations

import functools

import torch
from problems import excess

from benchmarks import grid


@functools.lru_cache(maxsize=2)  # rows of one problem come one after another
def _yardsticks(problem: grid.Problem) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """float64 results, and how far torch.nn in float32 is from them."""
    exact, theirs = (
        grid.layer(grid.torch_module(problem, dtype), problem, *grid.inputs(problem, dtype))()
        for dtype in (torch.float64, torch.float32)
    )
    return [e.detach() for e in exact], [(t - e).detach() for t, e in zip(theirs, exact, strict=True)]


def check(problem: grid.Problem, run) -> None:
    """AssertionError unless what `run` returns agrees with float64."""
    exact, their_errors = _yardsticks(problem)
    for k, (ours, theirs, want) in enumerate(zip(run(), their_errors, exact, strict=True)):
        fault = excess(ours.detach() - want, theirs, want, torch.float32)
        assert not fault, f"{problem}, result {k}: {fault}"
