"""The gate before every row: outputs and all gradients against torch.nn in float64, by the tests' rule of precision."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch

from fusedrnn.bench import grid, onnx
from fusedrnn.bench.grid import Problem
from fusedrnn.bench.precision import excess

Results = Sequence[torch.Tensor]
OPPONENTS = (grid.TORCH, onnx.SIDE)  # of whom soundness is all that is asked

# What torch.nn itself may be away from float64, relative to a result's norm. A layer that is wrong is away by about 1;
# one that sums gradients over many steps in 16 bits is not wrong, but imprecise.
SOUND = {"ieee": 1e-3, "tf32": 3e-2, "fp16": 0.2, "bf16": 0.2, "fp64": 1e-12}
SMALLEST = torch.finfo(torch.float64).tiny


class GateError(AssertionError):
    """A result is further from float64 than it may be."""


@functools.lru_cache(maxsize=2)  # rows of one problem come one after another
def exact(problem: Problem) -> Results:
    """The results in float64, from weights and inputs that were rounded to the problem's dtype."""
    module = copy.deepcopy(grid.torch_module(problem)).double()
    x, dy = grid.inputs(problem)
    if not problem.tokens:
        x = x.detach().double().requires_grad_(x.requires_grad)
    return [t.detach() for t in grid.layer(module, problem, x, dy.double())()]


@functools.lru_cache(maxsize=2)
def _their_errors(problem: Problem) -> Results:
    with grid.float32_precision(problem.precision):
        theirs = grid.layer(grid.torch_module(problem), problem, *grid.inputs(problem))()
    return [(t - e).detach() for t, e in zip(theirs, exact(problem), strict=True)]


def check(problem: Problem, results: Results) -> None:
    """GateError unless the results agree with float64 as well as torch.nn's do, by the tests' rule."""
    for k, (ours, theirs, want) in enumerate(zip(results, _their_errors(problem), exact(problem), strict=True)):
        if fault := excess(ours.detach() - want, theirs, want, problem.dtype):
            raise GateError(f"{problem}, result {k}: {fault}")


def check_sound(problem: Problem, results: Results) -> float:
    """The largest error of the results, relative to the norm of each; GateError where that is beyond SOUND. Of one step
    from a state of zeros dw_hh is zero, and has to be."""
    worst = 0.0
    for k, (got, want) in enumerate(zip(results, exact(problem), strict=True)):
        error = float((got.detach() - want).norm() / want.norm().clamp(min=SMALLEST))
        if not error <= SOUND[problem.precision]:
            raise GateError(f"{problem}, result {k}: relative error {error:.3g}")
        worst = max(worst, error)
    return worst


def passed(problem: Problem, side: str, results: Results) -> float:
    """The largest relative error of a side's results; GateError where the gate stops them. In float64 there is nothing
    more exact to judge torch.nn's own errors by, so there, too, soundness is all that is asked."""
    error = check_sound(problem, results)
    if side not in OPPONENTS and problem.precision != "fp64":
        check(problem, results)
    return error


def forget() -> None:
    """Free the results that are kept for the next row of the same problem."""
    exact.cache_clear()
    _their_errors.cache_clear()
