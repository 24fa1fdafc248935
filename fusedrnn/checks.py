"""Whether what a user passed fits: every message names the argument, what was expected and what came.

Each function returns such a message, empty where all fits. `functional`, and a backend whose library checks nothing,
raise it as a ValueError, `modules`, where torch.nn has no message of its own, as the RuntimeError that torch.nn raises.
What only the data can tell (tokens inside the vocabulary) is checked in `ops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedrnn.call import Call, Weights
from fusedrnn.cells import CELLS, SCHEDULES, cells_shape, saved_shape, state_dtype


def options(dropout: float, schedule: str, memory: str = "full") -> str:
    if not 0 <= dropout <= 1:
        return f"dropout: expected a probability in [0, 1], got {dropout}"
    if schedule not in SCHEDULES:
        return f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}"
    if memory not in ("full", "lean"):
        return f"memory: expected 'full' or 'lean', got {memory!r}"
    return ""


def weights(cell: str, weights: Sequence[Any], directions: int, alike: bool = False) -> str:
    """Layers of `cell` whose sizes, dtypes and devices agree; of one hidden size in both directions where `alike`."""
    if not weights or len(weights) % directions:
        return f"weights: expected {directions} for every layer, got {len(weights or ())}"
    for k, one in enumerate(weights):
        if not isinstance(one, Weights):
            return f"weights[{k}]: expected a Weights, got {type(one).__name__}"
        for name, given in zip(Weights._fields, one, strict=True):
            if not isinstance(given, Tensor) and (given is not None or name == "w_ih"):
                return f"weights[{k}].{name}: expected a tensor, got {type(given).__name__}"
    first = weights[0]
    gates = len(CELLS[cell].gates)
    if first.w_hr is not None and cell != "lstm":
        return f"weights[0].w_hr: expected None, only lstm has a projection, got {list(first.w_hr.shape)}"
    sizes = []  # H and P of each direction
    for k, one in enumerate(weights[: 1 if alike else directions]):
        H = one.w_ih.shape[0] // gates if one.w_ih.ndim == 2 else 0
        if H == 0 or one.w_ih.shape[0] != gates * H or one.w_ih.shape[1] == 0:
            return f"weights[{k}].w_ih: expected [{gates}*H, I], got {list(one.w_ih.shape)}"
        if (one.w_hr is None) != (first.w_hr is None):
            return f"weights[{k}].w_hr: expected {_shape(first.w_hr)} like weights[0].w_hr, got {_shape(one.w_hr)}"
        if one.w_hr is not None and (one.w_hr.ndim != 2 or one.w_hr.shape[0] == 0):
            return f"weights[{k}].w_hr: expected [P, {H}], got {list(one.w_hr.shape)}"
        sizes.append((H, H if one.w_hr is None else one.w_hr.shape[0]))
    sizes *= directions // len(sizes)
    I, dtype, device = first.w_ih.shape[1], first.w_ih.dtype, first.w_ih.device
    width = sum(P for _, P in sizes)
    for k, one in enumerate(weights):
        H, P = sizes[k % directions]
        rows = gates * H
        bias = None if first.b_ih is None else (rows,)
        projection = None if first.w_hr is None else (P, H)
        expected = ((rows, I if k < directions else width), (rows, P), bias, bias, projection)
        for name, tensor, shape in zip(Weights._fields, one, expected, strict=True):
            if tensor is None or shape is None:
                if tensor is not None or shape is not None:
                    return f"weights[{k}].{name}: expected {_shape(shape)}, got {_shape(tensor)}"
            elif tensor.shape != shape:
                return f"weights[{k}].{name}: expected {_shape(shape)}, got {_shape(tensor)}"
            elif tensor.dtype != dtype or tensor.device != device:
                got = f"{tensor.dtype} on {tensor.device}"
                return f"weights[{k}].{name}: expected {dtype} on {device} like weights[0].w_ih, got {got}"
    return ""


def rows(rows: tuple, x: Tensor, batch_first: bool) -> str:
    """batch_sizes, lengths and resets beside the leading sizes of x."""
    batch_sizes, lengths, resets = rows
    for name, given in (("x", x), ("batch_sizes", batch_sizes)):
        if not isinstance(given, Tensor) and (given is not None or name == "x"):
            return f"{name}: expected a tensor, got {type(given).__name__}"
    if x.ndim < (1 if batch_sizes is not None else 2):
        return f"x: expected [T, B, I] floats or [T, B] tokens, got {x.dtype} {list(x.shape)}"
    if batch_sizes is not None:
        if lengths is not None:
            return "lengths: expected None with batch_sizes, which hold them"
        if misfit := packed(batch_sizes, x.shape[0]):
            return misfit
        T, B = len(batch_sizes), int(batch_sizes[0])
    else:
        T, B = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
    if T == 0:
        return "x: expected at least one step, got none"
    misfit = "" if lengths is None else tensor("lengths", lengths, (B,), torch.int64, x.device)
    if resets is not None:
        misfit = misfit or tensor("resets", resets, (B, T) if batch_first else (T, B), torch.bool, x.device)
    return misfit


def packed(batch_sizes: Tensor, rows: int) -> str:
    """The batch sizes of a packed sequence of so many rows."""
    got = f"{batch_sizes.dtype} {list(batch_sizes.shape)} on {batch_sizes.device}"
    if batch_sizes.dtype != torch.int64 or batch_sizes.ndim != 1 or batch_sizes.device.type != "cpu":
        return f"batch_sizes: expected torch.int64 [T] on cpu, got {got}"
    if not len(batch_sizes) or int(batch_sizes[-1]) < 1 or bool((batch_sizes.diff() > 0).any()):
        return f"batch_sizes: expected at least one size, positive, none larger than the one before, got {batch_sizes}"
    if int(batch_sizes.sum()) != rows:
        return f"batch_sizes: expected a sum of {rows}, the rows of x, got {int(batch_sizes.sum())}"
    return ""


def operands(call: Call, of_backward: Sequence[Tensor | None] = ()) -> str:
    """All tensors of a raw op's call but what forward keeps; of_backward: dy, dh_n, dc_n and y."""
    if found := weights(call.cell, call.weights, call.D):
        return found
    T, B, D, P, dtype, device = call.T, call.B, call.D, call.P, call.dtype, call.x.device
    leading = (call.R,) if call.row_offsets is not None else (T, B)
    state, cell_state, rows = (D, B, P), (D, B, call.H), (*leading, D * P)
    expected: list[tuple] = [
        ("w_ih", call.weights[0].w_ih, (len(call.spec.gates) * call.H, call.I), dtype),
        ("x", call.x, leading if call.tokens else (*leading, call.I), torch.int64 if call.tokens else dtype),
        ("h0", call.h0, state, dtype),
        ("c0", call.c0, cell_state, dtype),
        ("row_offsets", call.row_offsets, (T,), torch.int64),
        ("lengths", call.lengths, (B,), torch.int64),
        ("resets", call.resets, (T, B), torch.bool),
    ]
    if (call.c0 is None) != (call.spec.states == 1):
        return "c0: expected one of an lstm alone"
    if call.row_offsets is not None and call.lengths is None:
        return "lengths: expected those of the packed rows"
    names, like = ("dy", "dh_n", "dc_n", "y"), (rows, state, cell_state, rows)
    expected += zip(names, of_backward, like, (dtype,) * len(names), strict=False)
    misfits = (tensor(name, t, shape, of, device) for name, t, shape, of in expected if t is not None)
    return next(filter(None, misfits), "")


def kept(call: Call, saved: Tensor, cells: Tensor) -> str:
    """What forward keeps with save="full", as all backends of shared_layout lay it out."""
    D, R, H, device = call.D, call.R, call.H, call.x.device
    of_cells = cells_shape(call.spec, "full", D, call.T, R, call.B, H)
    misfit = tensor("saved", saved, saved_shape(call.spec, "full", D, R, H), call.dtype, device)
    return misfit or tensor("cells", cells, of_cells, state_dtype(call.dtype), device)


def tensor(name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device) -> str:
    """Shape, dtype (None: any that autocast casts) and device."""
    if not isinstance(value, Tensor):
        return f"{name}: expected a tensor, got {type(value).__name__}"
    fits = value.dtype == dtype if dtype is not None else value.is_floating_point() and value.dtype != torch.float64
    if fits and value.shape == shape and value.device == device:
        return ""
    got = f"{value.dtype} {list(value.shape)} on {value.device}"
    return f"{name}: expected {dtype or 'floats but float64'} {list(shape)} on {device}, got {got}"


def state(name: str, value: Any, shape: tuple, dtype: torch.dtype | None, device: torch.device) -> str:
    """A state of `states.shape`."""
    apart = isinstance(shape[0], tuple)
    if not isinstance(value, tuple | list) and not apart:
        return tensor(name, value, shape, dtype, device)
    if not isinstance(value, tuple | list) or not apart or len(value) != len(shape):
        wanted = "(forward, reverse), a tensor for each direction" if apart else "one tensor"
        got = f"{len(value)} of them" if isinstance(value, tuple | list) else _shape(value)
        return f"{name}: expected {wanted}, got {got}"
    misfits = (tensor(f"{name}[{d}]", value[d], shape[d], dtype, device) for d in range(len(shape)))
    return next(filter(None, misfits), "")


def _shape(value) -> str:
    return "None" if value is None else str(list(getattr(value, "shape", value)))
