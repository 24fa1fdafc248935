"""The batching rules of the raw ops, for torch.func.vmap.

Under vmap the N samples are one call with a batch of B * N, in which sequence b of sample n has index b * N + n, and
the gradients of the weights are summed by sample afterwards. There is one call a sample where weights or row_offsets
are mapped (ensembles), for the gradients of a projection, and where the layout of what a backend saves is its own.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fusedrnn import ops, reference
from fusedrnn.dispatch import REGISTRY


def _vmap_forward(run, info, in_dims, *arguments):
    """The batching rule of a forward op: its outputs and where N lies in them, None: nowhere."""
    N, mapped = info.batch_size, _mapped(in_dims, arguments)
    if N == 0:
        return _without_samples(_vmap_forward, run, info, mapped)
    inputs, options = mapped[: len(ops.TENSORS)], arguments[len(ops.TENSORS) :]
    if not _are_folded(inputs, options):
        return _one_by_one(run, N, mapped)
    return _split(run(*_folded_inputs(inputs, N), *options), (_rows_place(inputs), 1, 1, 1, 1), N)


def _vmap_backward(run, info, in_dims, *arguments):
    """The batching rule of a backward op."""
    N, mapped = info.batch_size, _mapped(in_dims, arguments)
    if N == 0:
        return _without_samples(_vmap_backward, run, info, mapped)
    inputs, options, wanted = mapped[3:19], arguments[22:-1], arguments[-1]
    of_weights, projected = wanted >> 3, inputs[7][0].shape != ops.ABSENT
    if not _are_folded(inputs, options) or (of_weights and projected):
        return _one_by_one(run, N, mapped)
    places = (_rows_place(inputs), 1, 1)
    folded = [*_folded(mapped[:3], places, N), *_folded_inputs(inputs, N), *_folded(mapped[19:22], places, N)]
    backward = functools.partial(_gradients_by_sample, run, N) if of_weights else run
    grads = backward(*folded, *options, wanted)
    first, dims = _split(grads[:3], places, N)
    return (*first, *grads[3:]), (*dims, *(None if g.shape == ops.ABSENT else 0 for g in grads[3:]))


def _mapped(in_dims, arguments) -> list[tuple]:
    """Arguments and where N lies in them. What stands for an absent tensor is mapped where what it was made like is."""
    pairs = zip(arguments, in_dims, strict=True)
    return [
        (a.new_empty(0), None) if d is not None and a.ndim == 2 and a.shape[1 - d] == 0 else (a, d) for a, d in pairs
    ]


def _are_folded(inputs, options) -> bool:
    _, _, _, _, save, _, backend = options
    splits = save == "none" or (save == "full" and REGISTRY[backend].shared_layout)
    return splits and all(d is None for _, d in inputs[3:14])


def _rows_place(inputs) -> int:
    """Where B lies in x, dy and y; where the rows do if they are packed."""
    return 1 if inputs[13][0].shape == ops.ABSENT else 0


def _folded(mapped, places, N: int) -> list[Tensor]:
    """[.., B, ..] -> [.., B * N, ..], B at `places`; None: left as it is."""
    folded = []
    for (tensor, d), place in zip(mapped, places, strict=True):
        if place is not None and tensor.shape != ops.ABSENT:
            many = tensor.unsqueeze(place + 1) if d is None else tensor.movedim(d, place + 1)
            sizes = [N if k == place + 1 else -1 for k in range(many.ndim)]
            tensor = many.expand(sizes).flatten(place, place + 1)
        folded.append(tensor)
    return folded


def _folded_inputs(inputs, N: int) -> list[Tensor]:
    """Packed row (t, b) of sample n is row N (row_offsets[t] + b) + n."""
    folded = _folded(inputs, (_rows_place(inputs), 1, 1, *(None,) * 11, 0, 1), N)
    folded[13] = folded[13] * N
    return folded


def _split(outputs, places, N: int):
    """[.., B * N, ..] -> [.., B, N, ..], and where N lies."""
    dims = tuple(None if out.shape == ops.ABSENT else place + 1 for out, place in zip(outputs, places, strict=True))
    pairs = zip(outputs, dims, strict=True)
    return tuple(out if d is None else out.unflatten(d - 1, (out.shape[d - 1] // N, N)) for out, d in pairs), dims


def _one_by_one(run, N: int, mapped):
    runs = [run(*(a if d is None else a.select(d, n) for a, d in mapped)) for n in range(N)]
    dims = tuple(None if out.shape == ops.ABSENT else 0 for out in runs[0])
    columns = zip(*runs, strict=True)
    return tuple(column[0] if d is None else torch.stack(column) for column, d in zip(columns, dims, strict=True)), dims


def _without_samples(rule, run, info, mapped):
    """Of a sample of zeros the shapes are kept."""
    one = [a if d is None else a.new_zeros([n or 1 if k == d else n for k, n in enumerate(a.shape)]) for a, d in mapped]
    outputs, dims = rule(run, info._replace(batch_size=1), [d for _, d in mapped], *one)
    return tuple(out if d is None else out.narrow(d, 0, 0) for out, d in zip(outputs, dims, strict=True)), dims


def _gradients_by_sample(run, N: int, *arguments) -> tuple[Tensor, ...]:
    """As a backward op over N samples folded into the batch, but for the gradients of the weights: [N, ..], by sample.

    The op runs with [1, W_ih] for W_ih, so that its dX = dgates [1, W_ih] holds dgates beside dX.
    """
    cotangents, inputs, (y, saved, cells) = arguments[:3], list(arguments[3:19]), arguments[19:22]
    options, wanted = arguments[22:-1], arguments[-1]
    call = ops.call_of(tuple(inputs), *options[:-1])
    rows, gates, D = reference.Rows(call), call.weights[0].w_ih.shape[0], call.D
    identity = torch.eye(D * gates, dtype=call.dtype, device=y.device).split(gates)
    for k, one, w in zip((3, 8), identity, call.weights, strict=False):
        inputs[k] = torch.cat((one, w.w_ih), 1)
    inputs[0] = y.new_zeros(D * gates + call.I).expand(*y.shape[:-1], -1)  # dX does not depend on X
    wide, dh0, dc0, *_ = run(*cotangents, *inputs, y, saved, cells, *options, 1 | wanted & 6)
    *dgates, dx = wide.split([gates] * D + [call.I], -1)

    def by_sample(values: Tensor) -> Tensor:
        """[T, B * N, ..] (packed: [R * N, ..]) -> [R, N, ..]"""
        flat_rows = values if call.row_offsets is not None else values.flatten(0, 1)
        return flat_rows.unflatten(0, (call.R // N, N))

    def where_active(values: Tensor) -> Tensor:
        """What a row that takes no part holds may be anything, even nan; its dgates are zero."""
        if rows.active is None or call.row_offsets is not None:
            return values
        return torch.where(rows.active.unflatten(1, (-1, N)).flatten(0, 1)[..., None], values, 0)

    def product(g: Tensor, values: Tensor) -> Tensor:
        return torch.einsum("rng,rnk->ngk", g, values)

    grads: list[Tensor | None] = [dx.contiguous(), dh0, dc0]
    for d, w in enumerate(call.weights):
        gx = gh = by_sample(dgates[d])
        after = rows.grid(y[..., d * call.P : (d + 1) * call.P])
        h = by_sample(rows.rows(reference.states_before(call, d, rows, call.h0[d], after)))
        if "r" in call.spec.saved:
            r = where_active(saved[d][:, call.spec.saved.index("r")].unflatten(0, (call.R // N, N)))
        if call.cell == "gru":
            gh = torch.cat((gx[..., : 2 * call.H], gx[..., 2 * call.H :] * r), -1)
        if call.cell == "gru_reset_before":
            first, last = gx.split((2 * call.H, call.H), -1)
            dw_hh = torch.cat((product(first, h), product(last, r * h)), 1)
        else:
            dw_hh = product(gh, h)
        if call.tokens:
            row = by_sample(call.x) + call.I * torch.arange(N, device=y.device)
            sums = gx.new_zeros(N * call.I, gates).index_add(0, row.flatten(), gx.flatten(0, 1))
            dw_ih = sums.unflatten(0, (N, call.I)).transpose(1, 2)
        else:
            dw_ih = product(gx, where_active(by_sample(call.x)))
        biases = (None, None) if w.b_ih is None else (gx.sum(0), gh.sum(0))
        grads += [dw_ih, dw_hh, *biases, None]
    return ops.all_gradients(y, tuple(g if wanted >> k & 1 else None for k, g in enumerate(grads)))


def register() -> None:
    for rule, runs in ((_vmap_forward, ops.FORWARD), (_vmap_backward, ops.BACKWARD)):
        for run in runs.values():
            torch.library.register_vmap(run, functools.partial(rule, run))
