"""Layers and cells without gradients, by one op that checks its operands and runs them all.

A step of a cell, or of a decoder that makes a token at a time, takes as long as reading the weights once, some 10 us;
`functional.run` takes 40 on top of that. So what a module's options decide is decided once, and what its arguments
decide once for each shape. What the op does not run, and what does not fit, is left to the long way, which also knows
what to say about it.

The weights that were read have pushed Python out of the processor's caches, so that a function is fetched from memory
again in each call: `run` is one function for that reason, and asks others only where there is no other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _is_any_autocast_enabled
from torch.autograd import forward_ad

from fusedrnn import dispatch
from fusedrnn.backends import cpu
from fusedrnn.backends.base import BackendError, Problem
from fusedrnn.ops import anything_listens

Options = Callable[[str, torch.dtype, Sequence[int]], int | None]


class Plan(NamedTuple):
    """What a module's options and weights decide."""

    op: Callable | None = None  # None: there is only the long way
    operands: Sequence[Any] = ()  # the weights, as the op takes them
    hows: Mapping[tuple[str, torch.dtype, torch.Size], int | None] = {}
    lstm: bool = False
    step: bool = False  # of a cell


class Hows(dict):
    """The options of the op, None where the kernels are not to run it, of dispatch.default, and x's dtype and shape."""

    def __init__(self, backend: str, options: Options) -> None:
        self._backend, self._options = backend, options

    def __missing__(self, of: tuple[str, torch.dtype, torch.Size]) -> int | None:
        if len(self) == 256:
            self.clear()
        _, dtype, shape = of
        self[of] = how = self._options(dispatch.requested(self._backend), dtype, shape)
        return how


def run(module: Any, x: Any, state: Any) -> Any:
    """What `module.forward` returns, where nobody wants a gradient or a cast, or to see the op; None: the long way."""
    if is_grad_enabled() or anything_listens() or _is_any_autocast_enabled() or forward_ad._current_level >= 0:
        return None
    parameters, _, op, operands, hows, lstm, step = module._kept
    held = module._parameters
    if op is None or len(held) != len(parameters) or not all(map(is_, parameters, held.values())):
        return None
    if type(x) is not Tensor:
        return None
    h, c = state, None
    if state is not None:
        if lstm:
            if type(state) is not tuple or len(state) != 2:
                return None
            h, c = state
            if type(c) is not Tensor:
                return None
        if type(h) is not Tensor:
            return None
    how = hows[dispatch.default, x.dtype, x.shape]
    if how is None:
        return None
    try:
        y, h, c = op(x, h, c, how, *operands)
    except RuntimeError:
        return None
    if lstm:
        h = (h, c)
    return h if step else (y, h)


def layers(
    cell: str, weights: list[Tensor], I: int, H: int, *,
    bidirectional: bool, bias: bool, batch_first: bool, schedule: str, backend: str,
) -> Plan:  # fmt: skip
    """y and the last state of all layers. weights: checked, as `_flat_weights` of torch.nn."""
    hows = Hows(backend, _options(cell, weights, I, H, bidirectional, bias, batch_first, schedule))
    if len(weights) > (4 if bias else 2):
        return _plan(cell, cpu.layers, (weights,), hows)
    return _plan(cell, cpu.layer, (*weights, None, None)[:4], hows)


def step(cell: str, weights: Sequence[Tensor | None], H: int, *, schedule: str, backend: str) -> Plan:
    """The state after a step of a cell: h, or (h, c). weights: checked, the four."""
    given = [w for w in weights if w is not None]
    options_of_layer = _options(cell, given, given[0].shape[1], H, False, len(given) == 4, False, schedule)

    def options(named: str, dtype: torch.dtype, shape: Sequence[int]) -> int | None:
        return options_of_layer(named, dtype, (1, *shape))

    return _plan(cell, cpu.layer, weights, Hows(backend, options), step=True)


def _plan(cell: str, op: Callable, weights: Sequence[Any], hows: Hows, step: bool = False) -> Plan:
    if dispatch.REGISTRY["cpu"].unavailable_reason():
        return Plan()
    return Plan(op(), weights, hows, cell == "lstm", step)


def _options(
    cell: str, weights: list[Tensor], I: int, H: int,
    bidirectional: bool, bias: bool, batch_first: bool, schedule: str,
) -> Options:  # fmt: skip
    """Of a backend's name, and the dtype and sizes of x: the op's options; None where the kernels are not to run it."""
    D, each = 2 if bidirectional else 1, 4 if bias else 2
    same: dict[str, Any] = {"bias": bias, "batch_first": batch_first, "schedule": schedule}

    def options(named: str, dtype: torch.dtype, sizes: Sequence[int]) -> int | None:
        tokens = dtype == torch.int64
        dims = len(sizes) + tokens
        if dims not in (2, 3) or not cpu.has_kernels(weights[0].dtype):
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


def _on_cpu(problem: Problem, backend: str) -> bool:
    try:
        return dispatch.select(problem, backend) == "cpu"
    except BackendError:
        return False
