"""The compiled CPU kernels (csrc/cpu): the whole time loop of a layer in one call, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedrnn import _extension
from fusedrnn.backends.base import Backend, BackendError, Outputs, Problem
from fusedrnn.call import Call

INSTRUCTION_SETS = ("portable", "avx2", "avx512")  # as enum Isa in csrc/bindings.cpp
_CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")  # as enum Cell in csrc/cpu/layer.h


def instruction_sets() -> tuple[str, ...]:
    """Those that are compiled and that this processor has; none without the compiled library."""
    bits = torch.ops.fusedrnn_cpu.isas() if _extension.is_loaded() else 0
    return tuple(name for k, name in enumerate(INSTRUCTION_SETS) if bits >> k & 1)


def instruction_set() -> str:
    """The one in use."""
    return INSTRUCTION_SETS[torch.ops.fusedrnn_cpu.isa()]


_EMPTY = {dtype: torch.empty(0, dtype=dtype) for dtype in (torch.float32, torch.float64)}  # what is absent


class CpuBackend(Backend):
    name = "cpu"
    devices = frozenset(("cpu",))
    dtypes = frozenset((torch.float32, torch.float64))
    cells = frozenset(_CELLS)
    features = frozenset(("bidirectional", "tokens", "packed", "lengths"))
    checks_data = True

    def unavailable_reason(self) -> str | None:
        return None if _extension.is_loaded() else f"the compiled library is missing: {_extension.reason()}"

    def schedule(self, problem: Problem) -> str:
        return "concat" if _concat(problem.schedule, problem.T) else "hoisted"

    def forward(self, call: Call) -> Outputs:
        _refuse_what_the_kernels_lack(call)
        outputs = self.new_outputs(call)
        w_ih, w_hh, b_ih, b_hh, w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse = _weights(call)
        empty = _EMPTY[call.dtype]
        torch.ops.fusedrnn_cpu.forward.default(
            _rows(call.x),
            call.h0.contiguous(),
            _dense(call.c0, empty),
            w_ih,
            w_hh,
            b_ih,
            b_hh,
            w_ih_reverse,
            w_hh_reverse,
            b_ih_reverse,
            b_hh_reverse,
            _dense(call.row_offsets, empty),
            _dense(call.lengths, empty),
            *outputs,
            _CELLS.index(call.cell),
            call.direction,
            _concat(call.schedule, call.T),
        )
        return outputs

    def backward(self, call, dy, dh_n, dc_n, y, saved, cells, wanted):
        _refuse_what_the_kernels_lack(call)
        w_ih, w_hh, _, _, w_ih_reverse, w_hh_reverse, _, _ = _weights(call)
        empty = _EMPTY[call.dtype]
        given = (call.x, call.h0, call.c0, *(w for one in call.weights for w in one))
        grads = [
            torch.empty_like(t, memory_format=torch.contiguous_format) if want and k > 0 else None
            for k, (t, want) in enumerate(zip(given, wanted, strict=True))
        ]
        if wanted[0]:
            grads[0] = call.new_rows(call.I)
        dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, _, *reverse = (empty if g is None else g for g in grads)
        torch.ops.fusedrnn_cpu.backward.default(
            empty if dy is None else _rows(dy),
            _dense(dh_n, empty),
            _dense(dc_n, empty),
            _rows(call.x),
            call.h0.contiguous(),
            _dense(call.c0, empty),
            w_ih,
            w_hh,
            w_ih_reverse,
            w_hh_reverse,
            _dense(call.row_offsets, empty),
            _dense(call.lengths, empty),
            _rows(y),
            saved,
            cells,
            dx,
            dh0,
            dc0,
            dw_ih,
            dw_hh,
            db_ih,
            db_hh,
            *(reverse[:4] or (empty,) * 4),
            _CELLS.index(call.cell),
            call.direction,
        )
        return tuple(grads)


def _refuse_what_the_kernels_lack(call: Call) -> None:
    """`select` never sends these here, a call of the raw op may."""
    if call.resets is not None or call.weights[0].w_hr is not None:
        raise BackendError("cpu: resets and projection are not supported")


def _concat(schedule: str, T: int) -> bool:
    """Whether x and h are multiplied in one step: alone with one step there is nothing to hoist."""
    return schedule == "concat" or (schedule == "auto" and T == 1)


def _weights(call: Call) -> list[Tensor]:
    """w_ih, w_hh, b_ih, b_hh of both directions, empty where absent."""
    empty = _EMPTY[call.dtype]
    found = [_dense(w, empty) for one in call.weights for w in one[:4]]
    return found if len(found) == 8 else found + [empty] * 4


def _dense(tensor: Tensor | None, empty: Tensor) -> Tensor:
    return empty if tensor is None else tensor.contiguous()


def _rows(tensor: Tensor) -> Tensor:
    """The kernels take rows at any stride, each row dense."""
    if tensor.dtype == torch.int64 or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()
