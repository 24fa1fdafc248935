"""The compiled CPU kernels (csrc/cpu): the whole time loop of a layer in one call, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedrnn import _extension
from fusedrnn.backends.base import Backend, Outputs, Problem
from fusedrnn.call import Call

_CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")  # as enum Cell in csrc/cpu/layer.h


class CpuBackend(Backend):
    name = "cpu"
    devices = frozenset(("cpu",))
    dtypes = frozenset((torch.float32, torch.float64))
    cells = frozenset(_CELLS)
    features = frozenset(("bidirectional", "tokens", "packed", "lengths"))

    def unavailable_reason(self) -> str | None:
        return None if _extension.is_loaded() else f"the compiled library is missing: {_extension.reason()}"

    def schedule(self, problem: Problem) -> str:
        if problem.schedule != "auto":
            return problem.schedule
        return "concat" if problem.T == 1 else "hoisted"

    def forward(self, call: Call) -> Outputs:
        y, h_n, c_n, saved, cells = self.new_outputs(call)
        empty = h_n.new_empty(0)
        x = _rows(call.x, call)
        concat = self.schedule(Problem.of(call)) == "concat"
        for d, w in enumerate(call.weights):
            torch.ops.fusedrnn_cpu.forward(
                x,
                call.h0[d].contiguous(),
                empty if call.c0 is None else call.c0[d].contiguous(),
                *(_dense(t, empty) for t in (w.w_ih, w.w_hh, w.b_ih, w.b_hh)),
                _dense(call.row_offsets, empty),
                _dense(call.lengths, empty),
                y[..., d * call.P : (d + 1) * call.P],
                h_n[d],
                empty if call.c0 is None else c_n[d],
                saved[d] if saved.numel() else empty,
                cells[d] if cells.numel() else empty,
                _CELLS.index(call.cell),
                call.reverse[d],
                concat,
            )
        return y, h_n, c_n, saved, cells

    def backward(self, call, dy, dh_n, dc_n, y, saved, cells, wanted):
        like = call.weights[0].w_ih
        empty = like.new_empty(0)
        x, y = _rows(call.x, call), _rows(y, call)
        dy = None if dy is None else _rows(dy, call)
        dx = call.new_rows(call.I) if wanted[0] else empty
        dh0 = like.new_empty(call.h0.shape) if wanted[1] else empty
        dc0 = None if call.c0 is None else (like.new_zeros(call.c0.shape) if dc_n is None else _copy(dc_n))
        grads: list[Tensor | None] = [dx, dh0, dc0]
        for d, w in enumerate(call.weights):
            dh = like.new_zeros(call.h0.shape[1:]) if dh_n is None else _copy(dh_n[d])
            own = [
                torch.empty_like(t, memory_format=torch.contiguous_format) if want and t is not None else empty
                for t, want in zip(w[:4], wanted[3 + 5 * d :], strict=False)
            ]
            columns = slice(d * call.P, (d + 1) * call.P)
            torch.ops.fusedrnn_cpu.backward(
                empty if dy is None else dy[..., columns],
                dh,
                empty if dc0 is None else dc0[d],
                x,
                call.h0[d].contiguous(),
                empty if call.c0 is None else call.c0[d].contiguous(),
                w.w_ih.contiguous(),
                w.w_hh.contiguous(),
                _dense(call.row_offsets, empty),
                _dense(call.lengths, empty),
                y[..., columns],
                saved[d] if saved.numel() else empty,
                cells[d] if cells.numel() else empty,
                dx,
                dh0[d] if wanted[1] else empty,
                *own,
                _CELLS.index(call.cell),
                call.reverse[d],
                d > 0,
            )
            grads += [*own, None]
        return tuple(g if want else None for g, want in zip(grads, wanted, strict=True))


def _dense(tensor: Tensor | None, empty: Tensor) -> Tensor:
    return empty if tensor is None else tensor.contiguous()


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _rows(tensor: Tensor, call: Call) -> Tensor:
    """The kernels take rows at any stride, each row dense."""
    if tensor.dtype == torch.int64 or tensor.stride(-1) == 1:
        return tensor
    return tensor.contiguous()
