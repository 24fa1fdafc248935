"""Layers and cells by ops that check their operands: without gradients one for all layers, with them one for a layer.

A step of a cell, or of a decoder that makes a token at a time, takes as long as reading the weights once, some 10 us;
`functional.run` takes 40 on top of that. So what a module's options decide is decided once, and what its arguments
decide once for each shape. What the ops do not run, and what does not fit, is left to the long way, which also knows
what to say about it.

The weights that were read have pushed Python out of the processor's caches, so that a function is fetched from memory
again in each call: `run` is one function for that reason, and asks others only where there is no other way. In training
it is worth more: there a layer's states and gradients have gone through the caches as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _is_any_autocast_enabled

from fusedrnn import autograd, dispatch
from fusedrnn.backends import cpu
from fusedrnn.backends.base import BackendError, Problem
from fusedrnn.cells import CELLS
from fusedrnn.ops import anything_listens

Options = Callable[[str, torch.dtype, Sequence[int]], Any]
Hows = Mapping[tuple[str, torch.dtype, torch.Size], Any]


class Plan(NamedTuple):
    """What a module's options and weights decide."""

    op: Callable | None = None  # None: there is only the long way
    operands: Sequence[Any] = ()  # the weights, as the op takes them
    lstm: bool = False
    step: bool = False  # of a cell
    hows: Hows = {}  # the op's options
    with_gradients: Hows = {}  # arguments of autograd.CpuFunction after x and the states


class KeptHows(dict):
    """Of dispatch.default, and x's dtype and shape: what is to be told, None where the kernels are not to run it.

    alike gives the sizes that stand for all that are decided as those of x are. A call at a new length finds what
    decides out of the processor's caches, and so asks no further than what was decided for another length.
    """

    def __init__(
        self, backend: str, options: Options, alike: Callable[[torch.dtype, Sequence[int]], Sequence[int]]
    ) -> None:
        self._backend, self._options, self._alike = backend, options, alike

    def __missing__(self, of: tuple[str, torch.dtype, Sequence[int]]) -> Any:
        if len(self) == 256:
            self.clear()
        default, dtype, sizes = of
        alike = self._alike(dtype, sizes)
        if alike == sizes:
            how = self._options(dispatch.requested(self._backend), dtype, sizes)
        else:
            how = self[default, dtype, alike]
        self[of] = how
        return how


def run(module: Any, x: Any, state: Any) -> Any:
    """What `module.forward` returns, where nobody wants a cast, or to see the op; None: the long way."""
    if anything_listens() or _is_any_autocast_enabled():
        return None
    held = module._parameters
    parameters, _, op, operands, lstm, step, hows, with_gradients = module._kept
    if len(held) != len(parameters) or not all(map(is_, parameters, held.values())):
        parameters, _, op, operands, lstm, step, hows, with_gradients = module._keep()
    if op is None or type(x) is not Tensor:
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
    differentiated = False
    if is_grad_enabled():
        for t in (*parameters, x, h, c):
            if t is not None and t.requires_grad:
                differentiated = True
                break
    how = (with_gradients if differentiated else hows)[dispatch.default, x.dtype, x.shape]
    if how is None:
        return None
    try:
        if not differentiated:
            y, h, c = op(x, h, c, how, *operands)
        elif how[-2].batch_first:
            y, h, c = autograd.apply_cpu(x.transpose(0, 1), h, c, *how)
            y = y.transpose(0, 1)
        else:
            y, h, c = autograd.apply_cpu(x, h, c, *how)
    except RuntimeError:
        return None
    if lstm:
        h = (h, c)
    return h if step else (y, h)


def layers(
    cell: str, weights: list[Tensor], I: int, H: int, *,
    bidirectional: bool, bias: bool, batch_first: bool, schedule: str, memory: str, backend: str,
) -> Plan:  # fmt: skip
    """y and the last state of all layers. weights: checked, as `_flat_weights` of torch.nn."""
    layer = _Layer(cell, weights, I, H, bidirectional, bias, batch_first, schedule, memory)
    single = len(weights) == layer.each
    op, operands = (cpu.layer, (*weights, None, None)[:4]) if single else (cpu.layers, (weights,))
    return _plan(layer, op, operands, backend)


def step(cell: str, weights: Sequence[Tensor | None], H: int, *, schedule: str, backend: str) -> Plan:
    """The state after a step of a cell: h, or (h, c). weights: checked, the four."""
    given = [w for w in weights if w is not None]
    layer = _Layer(cell, given, given[0].shape[1], H, False, len(given) == 4, False, schedule, "full", step=True)
    return _plan(layer, cpu.layer, weights, backend)


class _Layer(NamedTuple):
    """A module's options. Each method takes a backend's name, and the dtype and the sizes of x, of a step without T."""

    cell: str
    weights: list[Tensor]
    I: int
    H: int
    bidirectional: bool
    bias: bool
    batch_first: bool
    schedule: str
    memory: str
    step: bool = False

    @property
    def D(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def each(self) -> int:
        """Weights of a layer's direction."""
        return 4 if self.bias else 2

    @property
    def several(self) -> bool:
        return len(self.weights) > self.D * self.each

    def _dims(self, dtype: torch.dtype, sizes: Sequence[int]) -> int:
        """3 of a batch, 2 without one."""
        return len(sizes) + (dtype == torch.int64) + self.step

    def alike(self, dtype: torch.dtype, sizes: Sequence[int]) -> Sequence[int]:
        """`sizes` with two steps where there are more: their number decides nothing."""
        dims = self._dims(dtype, sizes)
        time = 1 if self.batch_first and dims == 3 else 0
        if self.step or dims not in (2, 3) or sizes[time] <= 2:
            return sizes
        return *sizes[:time], 2, *sizes[time + 1 :]

    def options(self, named: str, dtype: torch.dtype, sizes: Sequence[int]) -> int | None:
        """Those of the op without gradients; None where the kernels are not to run it."""
        if not self._runs_on_cpu(named, dtype, sizes, "none"):
            return None
        flags = self.bias, self._dims(dtype, sizes) == 2, self.bidirectional, self.batch_first
        return cpu.options(self.cell, self.schedule, *flags)

    def with_gradients(self, named: str, dtype: torch.dtype, sizes: Sequence[int]) -> tuple | None:
        """All that autograd.CpuFunction takes after the states; None where it is not to run."""
        if self._dims(dtype, sizes) == 2 or self.several or not self._runs_on_cpu(named, dtype, sizes, self.memory):
            return None
        each = self.each
        weights = [w for d in range(self.D) for w in (*self.weights[d * each :][:each], None, None, None)[:5]]
        layer = cpu.layer_with_gradients(self.cell, self.schedule, self.memory, self.bidirectional, self.batch_first)
        public = (CELLS[self.cell].op, self.cell, layer.direction, self.batch_first, self.schedule, self.memory)
        return (*weights, *(None,) * (10 - len(weights)), layer, (*public, "ieee", "cpu"))

    def _runs_on_cpu(self, named: str, dtype: torch.dtype, sizes: Sequence[int], save: str) -> bool:
        """Whether the kernels of backend `cpu` are to run all layers."""
        like, tokens, dims = self.weights[0], dtype == torch.int64, self._dims(dtype, sizes)
        if dims not in (2, 3) or not cpu.has_kernels(like.dtype):
            return False
        sizes = (1, *sizes) if self.step else sizes
        T, B = (sizes[0], 1) if dims == 2 else sizes[1::-1] if self.batch_first else sizes[:2]
        for I, of_tokens in ((self.I, tokens), *(((self.D * self.H, False),) if self.several else ())):
            problem = Problem(
                self.cell, "cpu", like.dtype, T, B, I, self.H, self.D,
                tokens=of_tokens, bias=self.bias, batch_first=self.batch_first, schedule=self.schedule, save=save,
            )  # fmt: skip
            if not _on_cpu(problem, named):
                return False
        return True


def _plan(layer: _Layer, op: Callable, operands: Sequence[Any], backend: str) -> Plan:
    if dispatch.REGISTRY["cpu"].unavailable_reason() or layer.weights[0].device.type != "cpu":
        return Plan()
    hows, with_gradients = (KeptHows(backend, how, layer.alike) for how in (layer.options, layer.with_gradients))
    return Plan(op(), operands, layer.cell == "lstm", layer.step, hows, with_gradients)


def _on_cpu(problem: Problem, backend: str) -> bool:
    try:
        return dispatch.select(problem, backend) == "cpu"
    except BackendError:
        return False
