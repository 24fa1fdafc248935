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
from torch._C import _are_functorch_transforms_active, _get_tracing_state, _len_torch_dispatch_stack
from torch.autograd import _profiler_enabled, forward_ad
from torch.compiler import is_dynamo_compiling

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


def call_of(tensors: tuple[Tensor | None, ...], cell, direction, batch_first, schedule, save, precision) -> Call:
    """Name the flat arguments of an op; what is absent may be None or empty."""
    x, h0, *rest = tensors
    assert x is not None and h0 is not None
    c0, *weights, row_offsets, lengths, resets = [t if t is None or t.shape != ABSENT else None for t in rest]
    first = Weights._make(weights[:5])
    return Call(
        cell,
        x,
        h0,
        c0,
        (first, Weights._make(weights[5:])) if direction == 2 else (first,),
        _REVERSE[direction],
        row_offsets,
        lengths,
        resets,
        batch_first,
        schedule,
        save,
        precision,
    )


def flat(call: Call) -> tuple[Tensor, ...]:
    """The tensors of `call` in the order of TENSORS, empty where absent."""
    weights = [w for direction in call.weights for w in direction]
    weights += [None] * (10 - len(weights))
    return filled((call.x, call.h0, call.c0, *weights, call.row_offsets, call.lengths, call.resets), call.h0)


def filled(arguments: tuple, like: Tensor) -> tuple:
    """Arguments of an op with an empty tensor for each None."""
    empty = like.new_empty(0)
    return tuple(empty if a is None else a for a in arguments)


ABSENT = (0,)  # the shape of the tensor that stands for an absent argument


def _forward(*arguments):
    *tensors, cell, direction, batch_first, schedule, save, precision, backend = arguments
    call = call_of(tuple(tensors), cell, direction, batch_first, schedule, save, precision)
    runner = REGISTRY[backend]
    if not runner.checks_data:
        _check_data(call)
        return runner.forward(call)
    try:
        return runner.forward(call)
    except RuntimeError:
        _check_data(call)  # in torch's words
        raise


def _check_data(call: Call) -> None:
    """Refuse tokens and lengths out of range: only here is there data to look at in compiled and transformed code too.

    On a GPU looking would make the host wait: an assertion runs there, that of tokens where they are read.
    """
    lengths = call.lengths if call.row_offsets is None else None
    if call.x.device.type != "cpu":
        if lengths is not None:
            torch._assert_async(((lengths >= 0) & (lengths <= call.T)).all(), "a length beyond the steps")
        return
    if call.tokens and call.x.numel():
        low, high = (int(t) for t in call.x.aminmax())
        if low < 0 or high >= call.I:
            token = low if low < 0 else high
            raise IndexError(f"x: expected tokens in [0, {call.I}), the vocabulary, got {token}")
    if lengths is not None and call.B:
        low, high = (int(t) for t in lengths.aminmax())
        if low < 0 or high > call.T:
            raise ValueError(f"lengths: expected values in [0, {call.T}], the steps, got {low if low < 0 else high}")


def _backward(*arguments):
    return all_gradients(arguments[4], _gradients(*arguments))


def _gradients(dy, dh_n, dc_n, *arguments) -> tuple[Tensor | None, ...]:
    *tensors, y, saved, cells, cell, direction, batch_first, schedule, save, precision, backend, wanted = arguments
    call = call_of(tuple(tensors), cell, direction, batch_first, schedule, save, precision)
    cotangents = (
        _cotangent("dy", dy, y.shape),
        _cotangent("dh_n", dh_n, call.h0.shape),
        _cotangent("dc_n", dc_n, None if call.c0 is None else call.c0.shape),
    )
    return REGISTRY[backend].backward(call, *cotangents, y, saved, cells, wanted)


def _cotangent(name: str, tensor: Tensor | None, shape) -> Tensor | None:
    if tensor is None or tensor.shape == ABSENT:
        return None
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected {'nothing' if shape is None else list(shape)}, got {list(tensor.shape)}")
    return tensor


def _check_devices(tensors) -> None:
    """A meta tensor among others brings a call to the fake kernels, whose outputs nobody would fill."""
    devices = {str(t.device) for t in tensors}
    if len(devices) > 1:
        raise ValueError(f"expected all tensors on one device, got {', '.join(sorted(devices))}")


def all_gradients(like: Tensor, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    padded = (*grads, *(None,) * (len(DIFFERENTIABLE) - len(grads)))
    return tuple(like.new_empty(0) if g is None else g for g in padded)


def _fake_forward(*arguments):
    *tensors, cell, direction, batch_first, schedule, save, precision, backend = arguments
    call = call_of(tuple(tensors), cell, direction, batch_first, schedule, save, precision)
    _check_devices(tensors)
    return REGISTRY[backend].new_outputs(call)


def _fake_backward(dy, dh_n, dc_n, *arguments):
    *tensors, _y, _saved, _cells, cell, direction, batch_first, schedule, save, precision, _backend, wanted = arguments
    call = call_of(tuple(tensors), cell, direction, batch_first, schedule, save, precision)
    _check_devices((dy, dh_n, dc_n, *tensors, _y, _saved, _cells))
    inputs = (call.x, call.h0, call.c0, *(w for direction_weights in call.weights for w in direction_weights))
    grads = tuple(
        (call.new_rows(call.I) if k == 0 else torch.empty_like(t, memory_format=torch.contiguous_format))
        if t is not None and wanted >> k & 1
        else None
        for k, t in enumerate(inputs)
    )
    return all_gradients(call.h0, grads)


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


def forward(op: str, *arguments) -> tuple[Tensor, ...]:
    """FORWARD[op], quicker where nobody listens to the dispatcher: 20 us of a small layer's 110 are its boxing.

    What is absent may be None.
    """
    if is_observed(arguments):
        return FORWARD[op](*filled(arguments, arguments[1]))
    return _forward(*arguments)


def backward(op: str, *arguments) -> tuple[Tensor | None, ...]:
    """BACKWARD[op], quicker where nobody listens. What is absent may be None; what is not wanted is empty or None."""
    if is_observed(arguments):
        return BACKWARD[op](*filled(arguments, arguments[4]))
    return _gradients(*arguments)


def is_observed(arguments) -> bool:
    """Whether anything listens, a profiler too, or a tensor's class is to see the op."""
    return anything_listens() or _profiler_enabled() or not are_plain(arguments)


def are_plain(arguments) -> bool:
    """Whether none is of a class that may have operators of its own."""
    return _PLAIN.issuperset(map(type, arguments))


def anything_listens() -> bool:
    """Whether a compiler, a transform, forward-mode differentiation, a tracer or a dispatch mode is to see the op.

    A profiler changes nothing of what is saved for backward: it may be there in one half of a checkpoint alone.
    """
    return (
        is_dynamo_compiling()
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack() > 0
        or _get_tracing_state() is not None
    )


_PLAIN = {Tensor, torch.nn.Parameter, type(None), str, int, bool}
