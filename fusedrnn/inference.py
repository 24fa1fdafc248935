"""One layer without gradients, from checked arguments to the backend's launch with little Python in between.

A step of a cell, or of a decoder that makes a token at a time, takes as long as reading the weights once, some 10 us;
`functional.run` and the raw op on top of that would take 35.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusedrnn import dispatch, functional, ops
from fusedrnn.backends.base import Backend, Problem
from fusedrnn.call import Call, Weights
from fusedrnn.cells import CELLS

_REVERSE = {1: (False,), 2: (False, True)}


def applies(x: Tensor) -> bool:
    """Whether nobody wants a gradient or a cast, and no compiler, transform, profiler or mode is to see the op."""
    return not (
        torch.is_grad_enabled()
        or ops.is_observed((x,))
        or torch._C._is_any_autocast_enabled()
        or forward_ad._current_level >= 0
    )


def run(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: tuple[Weights, ...],
    batch_first: bool,
    schedule: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h_n and c_n of one layer, as `functional.run`; x is a dense batch of floats."""
    x = x.transpose(0, 1) if batch_first else x
    w = weights[0]
    facts = (cell, x.device.type, x.dtype, x.shape, len(weights), w.w_hh.shape, w.b_ih is not None, w.w_hr is not None)
    precision = functional.float32_precision(w.w_ih)
    runner = _runner(dispatch.requested(backend), facts, batch_first, schedule, precision)
    reverse = _REVERSE[len(weights)]
    call = Call(cell, x, h0, c0, weights, reverse, None, None, None, batch_first, schedule, "none", precision)
    y, h_n, c_n, *_ = runner.forward(call)
    return y.transpose(0, 1) if batch_first else y, h_n, c_n


@functools.lru_cache(maxsize=4096)
def _runner(backend: str, facts: tuple, batch_first: bool, schedule: str, precision: str) -> Backend:
    cell, device, dtype, (T, B, I), D, (rows, P), bias, projected = facts
    H = rows // len(CELLS[cell].gates)
    problem = Problem(
        cell, device, dtype, T, B, I, H, D, P if projected else 0,
        bias=bias, batch_first=batch_first, schedule=schedule, precision=precision,
    )  # fmt: skip
    return dispatch.REGISTRY[dispatch.select(problem, backend)]
