"""Layers and cells without gradients, by one op that checks its operands and runs them all.

A step of a cell, or of a decoder that makes a token at a time, takes as long as reading the weights once, some 10 us;
`functional.run` takes 40 on top of that. So what a module's options decide is decided once, and what its arguments
decide once for each shape. What the op does not run, and what does not fit, is left to the long way, which also knows
what to say about it.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fusedrnn import dispatch
from fusedrnn.backends import cpu
from fusedrnn.backends.base import BackendError, Problem

Runner = Callable[[Any, Any], Any]  # (x, state) -> what forward returns; None: the long way


def layers(
    cell: str, weights: list[Tensor], I: int, H: int, *,
    bidirectional: bool, bias: bool, batch_first: bool, schedule: str, backend: str,
) -> Runner | None:  # fmt: skip
    """y and the last state of all layers. weights: checked, as `_flat_weights` of torch.nn."""
    options = _options(cell, weights, I, H, bidirectional, bias, batch_first, schedule)
    in_kind = operator.itemgetter(0, slice(1, 3) if cell == "lstm" else 1)
    if len(weights) > (4 if bias else 2):
        return _runner(cell, backend, options, cpu.layers, (weights,), in_kind)
    return _runner(cell, backend, options, cpu.layer, (*weights, None, None)[:4], in_kind)


def step(cell: str, weights: Sequence[Tensor | None], H: int, *, schedule: str, backend: str) -> Runner | None:
    """The state after a step of a cell: h, or (h, c). weights: checked, the four."""
    given = [w for w in weights if w is not None]
    options_of_layer = _options(cell, given, given[0].shape[1], H, False, len(given) == 4, False, schedule)

    def options(named: str, dtype: torch.dtype, shape: torch.Size) -> int | None:
        return options_of_layer(named, dtype, (1, *shape))

    in_kind = operator.itemgetter(1, 2) if cell == "lstm" else operator.itemgetter(1)
    return _runner(cell, backend, options, cpu.layer, weights, in_kind)


def _options(
    cell: str, weights: list[Tensor], I: int, H: int,
    bidirectional: bool, bias: bool, batch_first: bool, schedule: str,
) -> Callable[[str, torch.dtype, Sequence[int]], int | None]:  # fmt: skip
    """Of a backend's name, and the dtype and sizes of x: the op's options; None where the kernels are not to run it."""
    D, each = 2 if bidirectional else 1, 4 if bias else 2
    same: dict[str, Any] = {"bias": bias, "batch_first": batch_first, "schedule": schedule}

    def options(named: str, dtype: torch.dtype, sizes: Sequence[int]) -> int | None:
        tokens = dtype == torch.int64
        dims = len(sizes) + tokens
        if dims not in (2, 3):
            return None
        unbatched = dims == 2
        T, B = (sizes[0], 1) if unbatched else reversed(sizes[:2]) if batch_first else sizes[:2]
        problems = [Problem(cell, "cpu", weights[0].dtype, T, B, I, H, D, tokens=tokens, **same)]
        if len(weights) > D * each:
            problems.append(Problem(cell, "cpu", weights[0].dtype, T, B, D * H, H, D, **same))
        if not all(_on_cpu(problem, named) for problem in problems):
            return None
        return cpu.options(cell, schedule, T, bias, unbatched, bidirectional, batch_first)

    return options


def _runner(
    cell: str, backend: str, options: Callable[..., int | None], the_op: Callable, weights: Sequence, in_kind: Callable
) -> Runner | None:
    """options: as `_options` gives them."""
    if dispatch.REGISTRY["cpu"].unavailable_reason():
        return None
    op = the_op()
    options_of = functools.lru_cache(maxsize=256)(options)
    lstm = cell == "lstm"

    def run(x, state):
        if type(x) is not Tensor or not x.is_cpu:
            return None
        h, c = state, None
        if lstm and state is not None:
            if type(state) is not tuple or len(state) != 2:
                return None
            h, c = state
        if state is not None and (type(h) is not Tensor or (lstm and type(c) is not Tensor)):
            return None
        how = options_of(dispatch.requested(backend), x.dtype, x.shape)
        if how is None:
            return None
        try:
            return in_kind(op(x, h, c, how, *weights))
        except RuntimeError:
            return None

    return run


def _on_cpu(problem: Problem, backend: str) -> bool:
    try:
        return dispatch.select(problem, backend) == "cpu"
    except BackendError:
        return False
