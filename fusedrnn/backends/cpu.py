"""The compiled CPU kernels (csrc/cpu): the whole time loop of a layer in one call, forward and backward.

float32, float64 and, where the processor has AMX or AVX512-BF16, bfloat16 have kernels of their own: products of
bfloat16, sums and states in float32. Other numbers of 16 bits run as float32, converted before the call and after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fusedrnn import _extension
from fusedrnn.backends.base import Backend, BackendError, Outputs, Problem
from fusedrnn.call import Call, Weights
from fusedrnn.cells import SAVE, SCHEDULES

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16", "amx")  # as enum Isa in csrc/bindings.cpp
LARGEST = 2**60  # a size that no tensor has and C++ can double
_CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")  # as enum Cell in csrc/cpu/layer.h


def instruction_sets() -> tuple[str, ...]:
    """Those that are compiled and that this processor has; none without the compiled library."""
    bits = torch.ops.fusedrnn_cpu.isas() if _extension.is_loaded() else 0
    return tuple(name for k, name in enumerate(INSTRUCTION_SETS) if bits >> k & 1)


def instruction_set() -> str:
    """The one in use."""
    return INSTRUCTION_SETS[torch.ops.fusedrnn_cpu.isa()]


_ABSENT = (None,) * 4  # the weights of a direction that the layer does not have


class CpuBackend(Backend):
    name = "cpu"
    devices = frozenset(("cpu",))
    dtypes = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    cells = frozenset(_CELLS)
    features = frozenset(("bidirectional", "tokens", "packed", "lengths", "resets", "lean"))
    checks_data = True

    def unavailable_reason(self) -> str | None:
        return None if _extension.is_loaded() else f"the compiled library is missing: {_extension.reason()}"

    def schedule(self, problem: Problem) -> str:
        if problem.tokens and problem.schedule == "auto":
            return "hoisted"  # rows of W_ih, or of a table
        sizes = (min(size, LARGEST) for size in (problem.T, problem.B, problem.I, problem.H))
        in_float32 = problem.dtype == torch.float32 or not has_kernels(problem.dtype)
        how = SCHEDULES.index(problem.schedule), _CELLS.index(problem.cell), in_float32
        return "concat" if torch.ops.fusedrnn_cpu.is_concat(*how, *sizes) else "hoisted"

    def detail(self, problem: Problem) -> str:
        return "" if has_kernels(problem.dtype) else "as float32"

    def forward(self, call: Call) -> Outputs:
        _refuse_what_the_kernels_lack(call)
        if not has_kernels(call.dtype):
            y, h_n, c_n, saved, cells = self.forward(_as_float32(call))
            return y.to(call.dtype), h_n.to(call.dtype), c_n.to(call.dtype), saved.to(call.dtype), cells
        w, *other = call.weights
        reverse = other[0] if other else _ABSENT
        return torch.ops.fusedrnn_cpu.forward.default(
            call.x,
            call.h0,
            call.c0,
            *w[:4],
            *reverse[:4],
            call.row_offsets,
            call.lengths,
            call.resets,
            _CELLS.index(call.cell),
            call.direction,
            SCHEDULES.index(call.schedule),
            call.batch_first,
            SAVE.index(call.save),
        )

    def backward(self, call, dy, dh_n, dc_n, y, saved, cells, wanted):
        _refuse_what_the_kernels_lack(call)
        if not has_kernels(call.dtype):
            dy, dh_n, dc_n = (None if t is None else _to_float32(t, call.dtype) for t in (dy, dh_n, dc_n))
            y, saved = (_to_float32(t, call.dtype) for t in (y, saved))
            found = self.backward(_as_float32(call), dy, dh_n, dc_n, y, saved, cells, wanted)
            return tuple(None if t is None else t.to(call.dtype) for t in found)
        w, *other = call.weights
        reverse = other[0] if other else _ABSENT
        grads = torch.ops.fusedrnn_cpu.backward.default(
            dy,
            dh_n,
            dc_n,
            call.x,
            call.h0,
            call.c0,
            *w[:4],
            *reverse[:4],
            call.row_offsets,
            call.lengths,
            call.resets,
            y,
            saved,
            cells,
            _CELLS.index(call.cell),
            call.direction,
            call.save == "lean",
            call.batch_first,
            wanted,
        )
        return (*grads[:7], None, *grads[7:], None) if other else (*grads[:7], None)


def has_kernels(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype are computed with as they are."""
    if dtype == torch.bfloat16:
        return _extension.is_loaded() and instruction_set() in ("avx512_bf16", "amx")
    return dtype in (torch.float32, torch.float64)


def _to_float32(t: Tensor, dtype: torch.dtype) -> Tensor:
    """RuntimeError for another dtype than the call's, which the kernels would not take either."""
    if t.dtype != dtype:
        raise RuntimeError(f"cpu: expected {dtype}, got {t.dtype}")
    return t.float()


def _as_float32(call: Call) -> Call:
    def to_float32(t: Tensor | None) -> Tensor | None:
        return None if t is None else _to_float32(t, call.dtype)

    weights = []
    for w in call.weights:
        w_ih, w_hh = (_to_float32(t, call.dtype) for t in (w.w_ih, w.w_hh))
        weights.append(Weights(w_ih, w_hh, to_float32(w.b_ih), to_float32(w.b_hh)))
    return call._replace(
        x=call.x if call.tokens else _to_float32(call.x, call.dtype),
        h0=_to_float32(call.h0, call.dtype),
        c0=to_float32(call.c0),
        weights=tuple(weights),
    )


def _refuse_what_the_kernels_lack(call: Call) -> None:
    """`select` never sends these here, a call of the raw op may."""
    if call.weights[0].w_hr is not None:
        raise BackendError("cpu: projection is not supported")
    if call.cell == "lstm" and call.c0 is None:
        raise RuntimeError("cpu: c0: expected a tensor")


class Layer(NamedTuple):
    """The private ops of a layer with gradients, and what they are told of it beside its tensors."""

    forward: Callable
    backward: Callable
    cell: int
    direction: int
    schedule: int
    batch_first: bool
    save: int


def layer_with_gradients(
    cell: str, schedule: str, save: str, bidirectional: bool = False, batch_first: bool = False
) -> Layer:
    ops, direction = torch.ops.fusedrnn_cpu, 2 if bidirectional else 0
    how = (_CELLS.index(cell), direction, SCHEDULES.index(schedule), batch_first, SAVE.index(save))
    return Layer(ops.forward.default._op, ops.backward.default._op, *how)


SCHEDULE, BIAS, BIDIRECTIONAL, BATCH_FIRST, UNBATCHED = 4, 16, 32, 64, 128  # as struct How in csrc/inference.h


def options(
    cell: str,
    schedule: str,
    bias: bool,
    unbatched: bool,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> int:
    """The argument `how` of the two ops below: the cell, the schedule, and a bit for each of the others."""
    flags = (
        (BIAS, bias),
        (BIDIRECTIONAL, bidirectional),
        (BATCH_FIRST, batch_first and not unbatched),
        (UNBATCHED, unbatched),
    )
    return _CELLS.index(cell) + SCHEDULE * SCHEDULES.index(schedule) + sum(bit for bit, wanted in flags if wanted)


def layers() -> Callable:
    """The op (x, h0, c0, how, weights) -> y, h_n, c_n: all layers, without gradients. A state may be None, which is
    zeros, as c_n is where the cell has none. RuntimeError where something does not fit: it checks all there is."""
    return torch.ops.fusedrnn_cpu.layers.default._op  # without the Python around it


def layer() -> Callable:
    """The op (x, h0, c0, how, w_ih, w_hh, b_ih, b_hh) -> y, h_n, c_n: one layer in one direction, or, where x lacks the
    dimension of time, one step of a cell, whose y is None. Else as `layers`."""
    return torch.ops.fusedrnn_cpu.layer.default._op
