"""The gate before every row: outputs and all gradients against torch.nn in float64, by the tests' rule of precision."""

from __future__ import annotations

import copy
import functools

import torch

from benchmarks import grid
from benchmarks.precision import excess

Results = list[torch.Tensor]

# What torch.nn itself may be away from float64, relative to a result's norm. A layer that is wrong is away by about 1;
# one that sums gradients over many steps in 16 bits is not wrong, but imprecise.
SOUND = {"ieee": 1e-3, "tf32": 3e-2, "fp16": 0.2, "bf16": 0.2}


@functools.lru_cache(maxsize=2)  # rows of one problem come one after another
def exact(problem: grid.Problem) -> Results:
    """The results in float64, from weights and inputs that were rounded to the problem's dtype."""
    module = copy.deepcopy(grid.torch_module(problem)).double()
    x, dy = (t.detach().double().requires_grad_(t.requires_grad) for t in grid.inputs(problem))
    return [t.detach() for t in grid.layer(module, problem, x, dy)()]


@functools.lru_cache(maxsize=2)
def _their_errors(problem: grid.Problem) -> Results:
    with grid.float32_precision(problem.precision):
        theirs = grid.layer(grid.torch_module(problem), problem, *grid.inputs(problem))()
    return [(t - e).detach() for t, e in zip(theirs, exact(problem), strict=True)]


def check(problem: grid.Problem, results) -> None:
    """AssertionError unless the results agree with float64 as well as torch.nn's do, by the tests' rule."""
    for k, (ours, theirs, want) in enumerate(zip(results, _their_errors(problem), exact(problem), strict=True)):
        fault = excess(ours.detach() - want, theirs, want, problem.dtype)
        assert not fault, f"{problem}, result {k}: {fault}"


def check_sound(problem: grid.Problem, results) -> float:
    """The largest error of the results, relative to the norm of each; AssertionError where that is beyond SOUND."""
    worst = 0.0
    for k, (got, want) in enumerate(zip(results, exact(problem), strict=True)):
        error = float((got.detach() - want).norm() / want.norm())
        assert error <= SOUND[problem.precision], f"{problem}, result {k}: relative error {error:.3g}"
        worst = max(worst, error)
    return worst


def forget() -> None:
    """Free the results that are kept for the next row of the same problem."""
    exact.cache_clear()
    _their_errors.cache_clear()
