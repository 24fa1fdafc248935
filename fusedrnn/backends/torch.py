"""The libraries that torch.nn itself runs on, oneDNN on the CPU and cuDNN on a GPU, behind the contract of the raw ops.

Their saved tensors are their own: `saved` holds oneDNN's workspaces or cuDNN's reserve as bytes, `cells` holds c_n for
oneDNN and the flattened weights for cuDNN. Both libraries scribble on the bytes in backward, so it works on a copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fusedrnn import checks
from fusedrnn.backends.base import Backend, BackendError, Outputs, Problem
from fusedrnn.call import Call, Weights

aten = torch.ops.aten
Like = tuple[tuple[int, ...], torch.dtype]
_HAS_ONEDNN, _HAS_CUDNN = torch.backends.mkldnn.is_available(), torch.backends.cudnn.is_available()


class TorchBackend(Backend):
    name = "torch"
    devices = frozenset(("cpu", "cuda"))
    dtypes = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    cells = frozenset(("rnn_tanh", "rnn_relu", "gru", "lstm"))
    features = frozenset(("bidirectional", "packed", "projection"))
    schedules = frozenset()
    shared_layout = False

    def not_supported_reasons(self, problem: Problem) -> list[str]:
        reasons = super().not_supported_reasons(problem)
        if problem.device == "cuda" and not _HAS_CUDNN:
            reasons.append("this torch has no cuDNN")
        if problem.device == "cpu":
            reasons += _onednn_reasons(problem)
        if problem.B == 0:
            reasons.append("an empty batch is not supported")
        return reasons

    def schedule(self, problem: Problem) -> str:
        """Both libraries multiply x by W_ih for all steps at once."""
        return "hoisted"

    def forward(self, call: Call) -> Outputs:
        self.refuse(call)
        return _library(call).forward(call)

    def backward(self, call, dy, dh_n, dc_n, y, saved, cells, wanted):
        self.refuse(call, dy, dh_n, dc_n, y, saved, cells)
        grads = _library(call).backward(call, dy, dh_n, dc_n, y, saved, cells)
        return tuple(g if wanted >> k & 1 else None for k, g in enumerate(grads))

    def kept(self, call, saved, cells):
        (size, dtype), (of_cells, cells_dtype) = _library(call).kept(call, saved, cells)
        device = call.x.device
        misfit = checks.tensor("saved", saved, size, dtype, device)
        return misfit or checks.tensor("cells", cells, of_cells, cells_dtype, device)

    def new_outputs(self, call: Call) -> Outputs:
        """As the contract has it but for `saved` and `cells`: only a trial run, on zeros, tells how large they are."""
        y, h_n, c_n, saved, cells = super().new_outputs(call._replace(save="none"))
        if call.save == "none":
            return y, h_n, c_n, saved, cells
        if call.row_offsets is not None:
            raise BackendError("torch: the size of cuDNN's reserve for a packed sequence is not known before it runs")
        with unset_fake_temporarily():
            *_, real_saved, real_cells = self.forward(_zeros_like(call))
        saved, cells = (y.new_empty(real.shape, dtype=real.dtype) for real in (real_saved, real_cells))
        return y, h_n, c_n, saved, cells


def _library(call: Call):
    return _OneDnn if call.x.device.type == "cpu" else _CuDnn


def _zeros_like(call: Call) -> Call:
    def zeros(tensor):
        if tensor is None:
            return None
        return torch.zeros([int(size) for size in tensor.shape], dtype=tensor.dtype, device=tensor.device)

    weights = tuple(Weights._make(map(zeros, one)) for one in call.weights)
    return call._replace(x=zeros(call.x), h0=zeros(call.h0), c0=zeros(call.c0), weights=weights)


# oneDNN: LSTM in float32, dense. One call runs one direction.

_LSTM = 2  # `mode` of the two ops, which number the cells as cuDNN does


def _onednn_reasons(problem: Problem) -> list[str]:
    reasons = [] if _HAS_ONEDNN else ["this torch has no oneDNN"]
    if problem.cell != "lstm":
        reasons.append("on the CPU oneDNN runs lstm only")
    if problem.dtype != torch.float32:
        reasons.append("on the CPU oneDNN runs float32 only")
    reasons += [f"on the CPU {name} is not supported" for name in ("packed", "projection") if name in problem.features]
    return reasons


class _OneDnn:
    workspaces: dict[tuple[int, ...], int] = {}  # bytes of each direction, by T, B, I, H

    @staticmethod
    def kept(call: Call, saved, cells) -> tuple[Like, Like]:
        """Shapes and dtypes of saved and cells. oneDNN takes a workspace for as large as it has to be."""
        sizes = (call.T, call.B, call.I, call.H)
        if sizes not in _OneDnn.workspaces:
            _OneDnn.forward(_zeros_like(call)._replace(save="full"))
        return ((call.D, _OneDnn.workspaces[sizes]), torch.uint8), ((call.D, call.B, call.H), torch.float32)

    @staticmethod
    def _tensors(call: Call, d: int) -> list[Tensor]:
        """The seven tensors both ops begin with. oneDNN reads no strides, and wants biases in any case."""
        assert call.c0 is not None
        w = call.weights[d]
        b_ih, b_hh = (w.w_ih.new_zeros(w.w_ih.shape[0]) if b is None else b for b in (w.b_ih, w.b_hh))
        return [t.detach().contiguous() for t in (call.x, w.w_ih, w.w_hh, b_ih, b_hh, call.h0[d], call.c0[d])]

    @staticmethod
    def forward(call: Call) -> Outputs:
        train, biased = call.save == "full", call.weights[0].b_ih is not None
        runs = []
        for d, reverse in enumerate(call.reverse):
            tensors = _OneDnn._tensors(call, d)
            with torch.set_grad_enabled(train):  # oneDNN infers where gradients are off, whatever `train` says
                run = aten.mkldnn_rnn_layer(*tensors, reverse, [], _LSTM, call.H, 1, biased, False, False, train)
            runs.append(run)
        ys, hs, cs, workspaces = zip(*runs, strict=True)
        c_n = torch.stack(cs)
        if train:
            if len(_OneDnn.workspaces) == 4096:
                _OneDnn.workspaces.clear()
            _OneDnn.workspaces[call.T, call.B, call.I, call.H] = workspaces[0].numel()
        return (
            call.in_order(ys[0] if call.D == 1 else torch.cat(ys, -1)),
            torch.stack(hs),
            c_n,
            _stacked(workspaces) if train else c_n.new_empty(0),
            c_n.clone() if train else c_n.new_empty(0),
        )

    @staticmethod
    def backward(call: Call, dy, dh_n, dc_n, y, saved, cells) -> list[Tensor | None]:
        biased = call.weights[0].b_ih is not None
        dx, dh0, dc0, weights = [], [], [], []
        for d, reverse in enumerate(call.reverse):
            own = slice(d * call.H, (d + 1) * call.H)
            y_d = y[..., own].contiguous()
            h_n = y_d[0 if reverse else -1]
            cotangents = [None if g is None else g.contiguous() for g in _of_direction(d, own, dy, dh_n, dc_n)]
            one_dx, dw_ih, dw_hh, db_ih, db_hh, one_dh0, one_dc0 = aten.mkldnn_rnn_layer_backward(
                *_OneDnn._tensors(call, d), y_d, h_n, cells[d], *cotangents,
                reverse, _LSTM, call.H, 1, biased, True, False, [], False, saved[d].clone(),
            )  # fmt: skip
            dx.append(one_dx)
            dh0.append(one_dh0)
            dc0.append(one_dc0)
            weights += [dw_ih, dw_hh, *((db_ih, db_hh.clone()) if biased else (None, None)), None]
        return [call.in_order(dx[0] if call.D == 1 else dx[0] + dx[1]), torch.stack(dh0), torch.stack(dc0), *weights]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """torch.stack, without a copy of one alone."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tuple(tensors))


def _of_direction(d: int, own: slice, dy, dh_n, dc_n) -> tuple[Tensor | None, ...]:
    return (
        None if dy is None else dy[..., own],
        None if dh_n is None else dh_n[d],
        None if dc_n is None else dc_n[d],
    )


# cuDNN: every cell torch.nn has, one layer a call.


class _CuDnn:
    @staticmethod
    def kept(call: Call, saved, cells) -> tuple[Like, Like]:
        """Shapes and dtypes of saved and cells, whose sizes cuDNN checks."""
        return ((saved.numel(),), torch.uint8), ((cells.numel(),), call.dtype)

    @staticmethod
    def _weights(call: Call) -> list[Tensor]:
        return [t for weights in call.weights for t in weights if t is not None]

    @staticmethod
    def _options(call: Call, train: bool) -> tuple:
        """mode .. dropout_state of aten._cudnn_rnn. A packed sequence's sizes are wanted on the host, which waits."""
        mode = torch.backends.cudnn.rnn.get_cudnn_mode(call.cell.upper())
        batch_sizes: list[int] = []
        if call.row_offsets is not None:
            batch_sizes = torch.diff(call.row_offsets, append=call.row_offsets.new_tensor([call.R])).tolist()
        projection = 0 if call.weights[0].w_hr is None else call.P
        return mode, call.H, projection, 1, False, 0.0, train, call.D == 2, batch_sizes, None

    @staticmethod
    def forward(call: Call) -> Outputs:
        weights = _CuDnn._weights(call)
        train = call.save == "full"
        with float32_precision(call.dtype, call.precision):
            y, h_n, c_n, reserve, flat_weights = aten._cudnn_rnn(
                _backwards(call, call.x).contiguous(), weights, len(weights) // call.D, None,
                call.h0.contiguous(), None if call.c0 is None else call.c0.contiguous(), *_CuDnn._options(call, train),
            )  # fmt: skip
        empty = y.new_empty
        return (
            call.in_order(_backwards(call, y)),
            h_n,
            c_n if call.c0 is not None else empty(0),
            reserve if train else empty(0),
            flat_weights if train else empty(0),
        )

    @staticmethod
    def backward(call, dy, dh_n, dc_n, y, saved, cells) -> list[Tensor | None]:
        weights = _CuDnn._weights(call)
        dy = torch.zeros_like(y) if dy is None else dy
        state = (call.h0, call.c0)
        after = (_backwards(call, y), _backwards(call, dy), dh_n, dc_n)
        with float32_precision(call.dtype, call.precision):
            dx, dh0, dc0, dweights = aten._cudnn_rnn_backward(
                _backwards(call, call.x).contiguous(), weights, len(weights) // call.D, cells,
                *(None if t is None else t.contiguous() for t in (*state, *after)),
                *_CuDnn._options(call, True), saved.clone(), [True, True, call.c0 is not None, True],
            )  # fmt: skip
        # The gradients of the weights are windows of one buffer; outputs of an op may not share memory.
        given = iter([g.clone() for g in dweights])
        grads = [None if w is None else next(given) for direction in call.weights for w in direction]
        return [call.in_order(_backwards(call, dx)), dh0, dc0 if call.c0 is not None else None, *grads]


def _backwards(call: Call, rows: Tensor) -> Tensor:
    """cuDNN has no single reverse direction: give it the steps in reverse, and turn what it returns."""
    if call.reverse != (True,):
        return rows
    if call.row_offsets is None or call.lengths is None:
        return rows.flip(0)
    step = torch.searchsorted(call.row_offsets, torch.arange(call.R, device=rows.device), right=True) - 1
    batch = torch.arange(call.R, device=rows.device) - call.row_offsets[step]
    return rows[call.row_offsets[call.lengths[batch] - 1 - step] + batch]


@contextlib.contextmanager
def float32_precision(dtype: torch.dtype, precision: str) -> Iterator[None]:
    """cuDNN reads torch's setting at the time of the call, and backward has to repeat what forward took."""
    settings: Any = torch.backends.cudnn.rnn
    before = settings.fp32_precision
    if dtype != torch.float32 or (before == "tf32") == (precision == "tf32"):
        yield
        return
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before
