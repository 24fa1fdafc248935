"""The public raw operators `fusedrnn::{rnn,gru,lstm}_{forward,backward}`: one schema for all cells and backends.

One call runs one layer. The arguments are those of `Call`, flat and of fixed arity (a Tensor[] in a schema defeats
vmap); an absent tensor is an empty one. Rows, strides, `saved` and `cells` are as documented in `fusedrnn.call` and
`fusedrnn.cells`; they are the same for every backend except `torch`, whose saved tensors are its library's own.

    forward  -> y, h_n, c_n, saved, cells           c_n, saved, cells are empty where the cell or `save` has none
    backward -> dx, dh0, dc0, then dw_ih, dw_hh, db_ih, db_hh, dw_hr of each direction; empty where not wanted

`direction` is 0 (forward), 1 (reverse) or 2 (both; only then are the `_reverse` weights read). `backend` is a
concrete name, `precision` is resolved before the op. `wanted` is a bit mask over the gradients in the order above.
Outputs never alias inputs or each other, and backward writes none of its inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedrnn.call import Call, Weights
from fusedrnn.cells import OPS
from fusedrnn.dispatch import REGISTRY

DIFFERENTIABLE = (
    *("x", "h0", "c0"),
    *("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"),
    *("w_ih_reverse", "w_hh_reverse", "b_ih_reverse", "b_hh_reverse", "w_hr_reverse"),
)
TENSORS = (*DIFFERENTIABLE, "row_offsets", "lengths", "resets")
OPTIONS = "str cell, int direction, bool batch_first, str schedule, str save, str precision, str backend"
_INPUTS = ", ".join(f"Tensor {name}" for name in TENSORS)
FORWARD_SCHEMA = f"({_INPUTS}, {OPTIONS}) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor saved, Tensor cells)"
BACKWARD_SCHEMA = (
    f"(Tensor dy, Tensor dh_n, Tensor dc_n, {_INPUTS}, Tensor y, Tensor saved, Tensor cells, {OPTIONS}, int wanted)"
    f" -> ({', '.join('Tensor' for _ in DIFFERENTIABLE)})"
)

_REVERSE = {0: (False,), 1: (True,), 2: (False, True)}


def call_of(tensors: tuple[Tensor, ...], cell, direction, batch_first, schedule, save, precision) -> Call:
    """Name the flat arguments of an op."""
    x, h0, c0, *weights, row_offsets, lengths, resets = tensors
    reverse = _REVERSE[direction]
    return Call(
        cell,
        x,
        h0,
        _present(c0),
        tuple(
            Weights(w_ih, w_hh, _present(b_ih), _present(b_hh), _present(w_hr))
            for w_ih, w_hh, b_ih, b_hh, w_hr in (weights[5 * d : 5 * d + 5] for d in range(len(reverse)))
        ),
        reverse,
        _present(row_offsets),
        _present(lengths),
        _present(resets),
        batch_first,
        schedule,
        save,
        precision,
    )


def flat(call: Call) -> tuple[Tensor, ...]:
    """The tensors of `call` in the order of TENSORS, empty where absent."""
    empty = call.h0.new_empty(0)
    weights = [w for direction in call.weights for w in direction]
    weights += [empty] * (10 - len(weights))
    tensors = (call.x, call.h0, call.c0, *weights, call.row_offsets, call.lengths, call.resets)
    return tuple(empty if t is None else t for t in tensors)


def _present(tensor: Tensor) -> Tensor | None:
    """None for the empty one-dimensional tensor that stands for an absent argument."""
    return None if tensor.ndim == 1 and tensor.shape[0] == 0 else tensor


def _forward(*arguments):
    *tensors, cell, direction, batch_first, schedule, save, precision, backend = arguments
    call = call_of(tuple(tensors), cell, direction, batch_first, schedule, save, precision)
    _check_data(call)
    return REGISTRY[backend].forward(call)


def _check_data(call: Call) -> None:
    """Refuse tokens and lengths out of range: only here is there data to look at in compiled and transformed code too.

    On a GPU looking would make the host wait; there the kernels check.
    """
    if call.x.device.type != "cpu":
        return
    if call.tokens and call.x.numel():
        low, high = (int(t) for t in call.x.aminmax())
        if low < 0 or high >= call.I:
            token = low if low < 0 else high
            raise IndexError(f"x: expected tokens in [0, {call.I}), the vocabulary, got {token}")
    if call.lengths is not None and call.row_offsets is None and call.B:
        low, high = (int(t) for t in call.lengths.aminmax())
        if low < 0 or high > call.T:
            raise ValueError(f"lengths: expected values in [0, {call.T}], the steps, got {low if low < 0 else high}")


def _backward(dy, dh_n, dc_n, *arguments):
    *tensors, y, saved, cells, cell, direction, batch_first, schedule, save, precision, backend, wanted = arguments
    call = call_of(tuple(tensors), cell, direction, batch_first, schedule, save, precision)
    mask = tuple(bool(wanted >> k & 1) for k in range(3 + 5 * call.D))
    cotangents = (_cotangent(dy, y.shape), _cotangent(dh_n, call.h0.shape), _cotangent(dc_n, _shape(call.c0)))
    grads = REGISTRY[backend].backward(call, *cotangents, y, saved, cells, mask)
    return _all_gradients(call, grads)


def _cotangent(tensor: Tensor, shape) -> Tensor | None:
    return tensor if tensor.shape == shape else None


def _shape(tensor: Tensor | None):
    return None if tensor is None else tensor.shape


def _all_gradients(call: Call, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    padded = (*grads, *(None,) * (len(DIFFERENTIABLE) - len(grads)))
    return tuple(call.h0.new_empty(0) if g is None else g for g in padded)


def _fake_forward(*arguments):
    *tensors, cell, direction, batch_first, schedule, save, precision, backend = arguments
    call = call_of(tuple(tensors), cell, direction, batch_first, schedule, save, precision)
    return REGISTRY[backend].new_outputs(call)


def _fake_backward(dy, dh_n, dc_n, *arguments):
    *tensors, _y, _saved, _cells, cell, direction, batch_first, schedule, save, precision, _backend, wanted = arguments
    call = call_of(tuple(tensors), cell, direction, batch_first, schedule, save, precision)
    inputs = (call.x, call.h0, call.c0, *(w for direction_weights in call.weights for w in direction_weights))
    grads = tuple(
        (call.new_rows(call.I) if k == 0 else torch.empty_like(t, memory_format=torch.contiguous_format))
        if t is not None and wanted >> k & 1
        else None
        for k, t in enumerate(inputs)
    )
    return _all_gradients(call, grads)


_LIBRARY = torch.library.Library("fusedrnn", "DEF")
for _op in OPS:
    for _name, _schema, _run, _fake in (
        (f"{_op}_forward", FORWARD_SCHEMA, _forward, _fake_forward),
        (f"{_op}_backward", BACKWARD_SCHEMA, _backward, _fake_backward),
    ):
        _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
        for _key in ("CPU", "CUDA"):
            _LIBRARY.impl(_name, _run, _key)
        torch.library.register_fake(f"fusedrnn::{_name}", _fake, lib=_LIBRARY)

FORWARD = {op: getattr(torch.ops.fusedrnn, f"{op}_forward").default for op in OPS}
BACKWARD = {op: getattr(torch.ops.fusedrnn, f"{op}_backward").default for op in OPS}
