"""All layers of a recurrent module, one after the other: for each a backend is chosen, and a Function or an op applied.

Arguments are as `functional` documents them, checked, and time-major.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusedrnn import autograd, dispatch, ops, reference, states
from fusedrnn.backends.base import Problem
from fusedrnn.cells import CELLS


class Rows(NamedTuple):
    """Which rows there are and which of them take part, as the caller gives it: batch_sizes, lengths, resets."""

    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None


def run(cell, x, h0, c0, weights, rows, D, batch_major, schedule, memory, backend, dropout=0.0):
    """One after the other. x is time-major; batch_major: y is to be laid out the other way round."""
    batch_sizes, lengths, resets = rows
    row_offsets = None
    if batch_sizes is not None:
        row_offsets, lengths = _packed_rows(batch_sizes, x.device)
    places = (row_offsets, lengths, resets)
    layer = _layer if isinstance(h0, Tensor) else _layer_apart
    if len(weights) == D:
        y, h_n, c_n = layer(cell, x, h0, c0, weights, places, batch_major, schedule, memory, backend)
        return y.transpose(0, 1) if batch_major else y, h_n, c_n
    L = len(weights) // D
    h_first, c_first = states.layers(h0, D), [None] * L if c0 is None else states.layers(c0, D)
    y, h_last, c_last = x, [], []
    for k, (h, c) in enumerate(zip(h_first, c_first, strict=True)):
        own, last = weights[k * D : k * D + D], k == L - 1
        # Below the last layer y stays time-major in memory, so that dropout draws the mask that torch.nn draws.
        y, h, c = layer(cell, y, h, c, own, places, batch_major and last, schedule, memory, backend)
        if dropout and not last:
            y = torch.dropout(y, dropout, True)
        h_last.append(h)
        c_last.append(c)
    return y.transpose(0, 1) if batch_major else y, states.joined(h_last), states.joined(c_last)


def _packed_rows(batch_sizes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """row_offsets [T] and lengths [B] of a packed sequence."""
    row_offsets = batch_sizes.cumsum(0) - batch_sizes
    sequence = torch.arange(int(batch_sizes[0]), device=batch_sizes.device)
    lengths = len(batch_sizes) - torch.searchsorted(batch_sizes.flip(0), sequence, right=True)
    return row_offsets.to(device), lengths.to(device)


def _layer_apart(cell, x, h0, c0, weights, places, batch_first, schedule, memory, backend):
    """One layer whose directions have their states apart: a call for each."""
    states_of = zip(h0, (None, None) if c0 is None else c0, strict=True)
    how = (places, batch_first, schedule, memory, backend)
    each = [_layer(cell, x, h, c, weights[d : d + 1], *how, reverse=d == 1) for d, (h, c) in enumerate(states_of)]
    ys, h_n, c_n = zip(*each, strict=True)
    if batch_first:
        return torch.cat([y.transpose(0, 1) for y in ys], -1).transpose(0, 1), h_n, c_n
    return torch.cat(ys, -1), h_n, c_n


def _layer(
    cell, x, h0, c0, weights, places, batch_first, schedule, memory, backend, reverse=False
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: choose the backend, then the Function where a gradient is wanted, else the raw op.

    torch.export keeps no Function: in what it leaves, the derivative is the op's own.
    """
    spec, w = CELLS[cell], weights[0]
    given = (x, h0, c0, *w, *(weights[1] if len(weights) == 2 else _NO_WEIGHTS), *places)
    compiling = torch.compiler.is_compiling()
    if compiling:
        given = _each_once(given)
    direction = 2 if len(weights) == 2 else int(reverse)
    precision = precision_of(w.w_ih)
    transformed = torch._C._are_functorch_transforms_active()
    if forward_ad._current_level >= 0 or (transformed and compiling):
        return reference.forward(ops.call_of(given, cell, direction, batch_first, schedule, "none", precision))[:3]
    differentiate = torch.is_grad_enabled() and (transformed or any([t.requires_grad for t in given if t is not None]))
    save = memory if differentiate else "none"
    facts = facts_of(cell, x, h0, w, places, len(weights), batch_first, schedule, save, precision)
    if compiling or torch.SymInt in map(type, facts):  # symbols have no hash
        name = dispatch.select(Problem(*facts), backend)
    else:
        name = select(dispatch.requested(backend), *facts)
    options = (cell, direction, batch_first, schedule, save, precision, name)
    if differentiate and not (compiling and torch.compiler.is_exporting()):
        return autograd.apply(spec.op, not (compiling or transformed), *given, spec.op, *options)[:3]
    y, h_n, c_n, *_ = ops.forward(spec.op, *given, *options)
    return y, h_n, c_n


def _each_once(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Views of those that come again, as a state that is h0 and c0: Dynamo traces no Function of one tensor twice."""
    seen: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is not None and any(tensor is other for other in seen):
            tensor = tensor.view_as(tensor)
        seen.append(tensor)
    return tuple(seen)


_NO_WEIGHTS = (None,) * 5


def facts_of(cell, x, h0, w, places, D, batch_first, schedule, save, precision) -> tuple:
    """The fields of the layer's Problem."""
    row_offsets, lengths, resets = places
    rows, I = w.w_ih.shape
    _, B, P = h0.shape
    return (
        cell,
        x.device.type,
        w.w_ih.dtype,
        (x if row_offsets is None else row_offsets).shape[0],
        B,
        I,
        rows // len(CELLS[cell].gates),
        D,
        0 if w.w_hr is None else P,
        x.dtype == torch.int64,
        row_offsets is not None,
        lengths is not None,
        resets is not None,
        w.b_ih is not None,
        batch_first,
        schedule,
        save,
        precision,
    )


@functools.lru_cache(maxsize=4096)
def select(backend: str, *facts) -> str:
    """`dispatch.select` without the price of a Problem where the same facts came before."""
    return dispatch.select(Problem(*facts), backend)


def precision_of(weight: Tensor) -> str:
    """ieee or tf32, from torch's float32 setting for recurrent networks."""
    if weight.dtype != torch.float32 or not weight.is_cuda:
        return "ieee"
    settings: Any = torch.backends.cudnn.rnn
    return "tf32" if settings.fp32_precision == "tf32" else "ieee"
