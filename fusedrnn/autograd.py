r"""autograd Functions over the raw ops, and the backward pass derived once.

Write a_t for the pre-activations of step t, dh_t and dc_t for the loss's derivative by h_t and c_t through everything
after step t, and dy_t for the cotangent of output t. Each step receives dh = dy_t + dh_t and gives back dgates_t:

    RNN   da = dh * act'(a)                      tanh' = 1 - y^2, relu' = [y > 0]
    GRU   dn = dh (1 - z) (1 - n^2)              da_z = dh (h_{t-1} - n) z (1 - z)
          da_r = dn hn r (1 - r)                 hn = W_hn h_{t-1} + b_hn
          W_ih sees (da_r, da_z, dn), W_hh sees (da_r, da_z, dn r); dh_{t-1} also receives dh z
    GRU, reset before the product: q = dn W_hn, da_r = q h_{t-1} r (1 - r), dh_{t-1} also receives dh z + q r
    LSTM  da_o = dh tanh(c) o (1 - o)            dc += dh o (1 - tanh(c)^2)
          da_i = dc g i (1 - i)    da_f = dc c_{t-1} f (1 - f)    da_g = dc i (1 - g^2)    dc_{t-1} = dc f
          with a projection h = W_hr m: dW_hr += dh^T m, then dh <- dh W_hr

Only dh_{t-1} = dgates_t W_hh is sequential. The rest are sums over all rows:

    dX = dgates W_ih    dW_ih = dgates^T X    dW_hh = dgates^T H_{-1}    db = sum of dgates
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedrnn import ops, reference


def _wanted(ctx) -> int:
    return sum(1 << k for k in range(len(ops.DIFFERENTIABLE)) if ctx.needs_input_grad[k])


class RecurrentFunction(torch.autograd.Function):
    """One layer. The arguments are those of the raw op `fusedrnn::*_forward`, whose five outputs it returns."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x, h0, c0,
        w_ih, w_hh, b_ih, b_hh, w_hr,
        w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse,
        row_offsets, lengths, resets,
        op, cell, direction, batch_first, schedule, save, precision, backend,
    ):  # fmt: skip
        return ops.FORWARD[op](
            x, h0, c0,
            w_ih, w_hh, b_ih, b_hh, w_hr,
            w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse,
            row_offsets, lengths, resets,
            cell, direction, batch_first, schedule, save, precision, backend,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, h_n, c_n, saved, cells = output
        ctx.options = inputs[len(ops.TENSORS) :]
        ctx.mark_non_differentiable(saved, cells)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[: len(ops.TENSORS)], y, saved, cells)

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n, _dsaved, _dcells):
        tensors = ctx.saved_tensors
        empty = tensors[1].new_empty(0)
        cotangents = (empty if g is None else g for g in (dy, dh_n, dc_n))
        op, *options = ctx.options
        if torch.is_grad_enabled():
            grads = RecurrentBackward.apply(*cotangents, *tensors, op, *options, _wanted(ctx))
        else:
            grads = ops.BACKWARD[op](*cotangents, *tensors, *options, _wanted(ctx))
        grads = (g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False))
        return (*grads, *(None,) * (len(ctx.needs_input_grad) - len(ops.DIFFERENTIABLE)))


class RecurrentBackward(torch.autograd.Function):
    """The backward of one layer as a Function of its own, so that it can be differentiated again.

    Its derivative recomputes the layer with the reference loop and lets autograd differentiate that twice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dy, dh_n, dc_n,
        x, h0, c0,
        w_ih, w_hh, b_ih, b_hh, w_hr,
        w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse,
        row_offsets, lengths, resets, y, saved, cells,
        op, cell, direction, batch_first, schedule, save, precision, backend, wanted,
    ):  # fmt: skip
        return ops.BACKWARD[op](
            dy, dh_n, dc_n,
            x, h0, c0,
            w_ih, w_hh, b_ih, b_hh, w_hr,
            w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse,
            row_offsets, lengths, resets, y, saved, cells,
            cell, direction, batch_first, schedule, save, precision, backend, wanted,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        tensors = 3 + len(ops.TENSORS)
        ctx.options, ctx.wanted = inputs[tensors + 3 : -1], inputs[-1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:tensors])

    @staticmethod
    def backward(ctx, *grad_grads):
        cotangents, tensors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        needs = ctx.needs_input_grad[: 3 + len(ops.DIFFERENTIABLE)]
        with torch.enable_grad():
            leaves = [
                t.detach().requires_grad_(t.is_floating_point() and t.numel() > 0) for t in (*cotangents, *tensors)
            ]
            first = _reference_gradients(leaves[:3], tuple(leaves[3:]), ctx.options, ctx.wanted)
            pairs = [(g, gg) for g, gg in zip(first, grad_grads, strict=True) if gg is not None and g is not None]
            inputs = [t for t, need in zip(leaves, needs, strict=False) if need and t.requires_grad]
            second = iter(
                torch.autograd.grad([g for g, _ in pairs], inputs, [gg for _, gg in pairs], allow_unused=True)
                if pairs and inputs
                else [None] * len(inputs)
            )
        result = [next(second) if need and t.requires_grad else None for t, need in zip(leaves, needs, strict=False)]
        return (*result, *(None,) * (len(ctx.needs_input_grad) - len(result)))


def _reference_gradients(cotangents: list[Tensor], tensors: tuple[Tensor, ...], options, wanted: int):
    """What RecurrentBackward returns, as a differentiable function of its inputs; None where not wanted."""
    _op, cell, direction, batch_first, schedule, _save, precision, _backend = options
    call = ops.call_of(tensors, cell, direction, batch_first, schedule, "none", precision)
    outputs = reference.forward(call)[:3]
    given = [(out, g) for out, g in zip(outputs, cotangents, strict=True) if g.shape == out.shape and out.requires_grad]
    asked = [k for k in range(len(ops.DIFFERENTIABLE)) if wanted >> k & 1]
    grads = torch.autograd.grad(
        [out for out, _ in given],
        [tensors[k] for k in asked],
        [g for _, g in given],
        create_graph=True,
        allow_unused=True,
    )
    by_index = dict(zip(asked, grads, strict=True))
    return [by_index.get(k) for k in range(len(ops.DIFFERENTIABLE))]


class RNNFunction(RecurrentFunction):
    """h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh), act tanh or relu (`cell` "rnn_tanh", "rnn_relu")."""


class GRUFunction(RecurrentFunction):
    """The gated recurrent unit, `cell` "gru" (as torch.nn has it) or "gru_reset_before" (Cho et al. 2014)."""


class LSTMFunction(RecurrentFunction):
    """The long short-term memory, `cell` "lstm", with a projection where w_hr is given."""


FUNCTIONS = {"rnn": RNNFunction, "gru": GRUFunction, "lstm": LSTMFunction}
_UNBOUND = {op: super(torch.autograd.Function, function).apply for op, function in FUNCTIONS.items()}


def apply(op: str, *arguments):
    """FUNCTIONS[op].apply(*arguments), quicker outside torch.func and torch.compile.

    What Python does first in there, binding two dozen names to a signature, took 110 of 180 us in a small call.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return FUNCTIONS[op].apply(*arguments)
    return _UNBOUND[op](*arguments)
