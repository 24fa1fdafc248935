r"""autograd Functions over the raw ops, the ops' own derivatives, and the backward pass derived once.

Write a_t for the pre-activations of step t, dh_t and dc_t for the loss's derivative by h_t and c_t through everything
after step t, and dy_t for the cotangent of output t. Each step receives dh = dy_t + dh_t and gives back dgates_t:

    RNN   da = dh * act'(a)                      tanh' = 1 - y^2, relu' = [not y <= 0], as torch's: 1 at nan
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

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusedrnn import batching, ops, reference
from fusedrnn.backends.base import Problem
from fusedrnn.cells import OPS, SAVE
from fusedrnn.dispatch import REGISTRY

batching.register()


def _wanted(needed: tuple[bool, ...]) -> int:
    return sum([1 << k for k, need in enumerate(needed[: len(ops.DIFFERENTIABLE)]) if need])


class RecurrentFunction(torch.autograd.Function):
    """One layer. The arguments are those of the raw op `fusedrnn::*_forward`, whose five outputs it returns.

    Absent tensors may be None.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x, h0, c0,
        w_ih, w_hh, b_ih, b_hh, w_hr,
        w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse,
        row_offsets, lengths, resets,
        op, cell, direction, batch_first, schedule, save, precision, backend,
    ):  # fmt: skip
        return ops.forward(
            op, x, h0, c0,
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
        needed = ctx.needs_input_grad
        grads = _gradients((dy, dh_n, dc_n), ctx.saved_tensors, ctx.options, needed)
        return (*grads, *(None,) * (len(needed) - len(grads)))


def _gradients(cotangents, tensors, options, needed) -> list[Tensor | None]:
    """Of one layer. tensors: those of the op, y, saved, cells; options: the op, and its options."""
    op, *of_op = options
    if all(cotangent is None for cotangent in cotangents):  # as where only a second derivative came here
        return [None] * len(ops.DIFFERENTIABLE)
    if forward_ad._current_level >= 0:
        asked = needed[: len(ops.DIFFERENTIABLE)]
        wanted = [k for k, need in enumerate(asked) if need]
        found = iter(_reference_gradients(cotangents, tensors[: len(ops.TENSORS)], options, wanted))
        return [next(found) if need else None for need in asked]
    if "none" in options:
        *tensors, of_op = _run_again(op, tensors[: len(ops.TENSORS)], *of_op)
    if torch.is_grad_enabled():
        grads = RecurrentBackward.apply(*cotangents, *tensors, op, *of_op, _wanted(needed))
    else:
        grads = ops.backward(op, *cotangents, *tensors, *of_op, _wanted(needed))
    return [g if need else None for g, need in zip(grads, needed, strict=False)]


def _run_again(op, inputs, cell, direction, batch_first, _schedule, _save, precision, backend) -> tuple:
    """Inputs, y, saved, cells and options of a forward that keeps what backward needs, where the one before did not."""
    problem = Problem.of(ops.call_of(inputs, cell, direction, batch_first, "auto", "full", precision))
    backend = "reference" if REGISTRY[backend].not_supported_reasons(problem) else backend
    options = (cell, direction, batch_first, "auto", "full", precision, backend)
    with torch.no_grad():
        y, _, _, saved, cells = ops.forward(op, *inputs, *options)
    return (*inputs, y, saved, cells, options)


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
        arguments = (
            dy, dh_n, dc_n,
            x, h0, c0,
            w_ih, w_hh, b_ih, b_hh, w_hr,
            w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse,
            row_offsets, lengths, resets, y, saved, cells,
            cell, direction, batch_first, schedule, save, precision, backend, wanted,
        )  # fmt: skip
        return ops.BACKWARD[op](*ops.filled(arguments, h0))

    @staticmethod
    def setup_context(ctx, inputs, output):
        tensors = 3 + len(ops.TENSORS)
        ctx.options, ctx.wanted = inputs[tensors + 3 : -1], inputs[-1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:tensors])

    @staticmethod
    def backward(ctx, *grad_grads):
        given = ctx.saved_tensors
        wanted = [k for k in range(len(ops.DIFFERENTIABLE)) if ctx.wanted >> k & 1]
        asked = [k for k, need in enumerate(ctx.needs_input_grad[: len(given)]) if need and _is_value(given[k])]

        def gradients(*values):
            replaced = dict(zip(asked, values, strict=True))
            now = [replaced.get(k, tensor) for k, tensor in enumerate(given)]
            return _reference_gradients(now[:3], now[3:], ctx.options, wanted)

        first, pull, *_ = torch.func.vjp(gradients, *(given[k] for k in asked))
        pairs = zip(first, (grad_grads[k] for k in wanted), strict=True)
        second = pull(tuple(torch.zeros_like(g) if gg is None else gg for g, gg in pairs))
        by_place = dict(zip(asked, second, strict=True))
        return tuple(by_place.get(k) for k in range(len(ctx.needs_input_grad)))


def _is_value(tensor: Tensor | None) -> bool:
    """Whether a gradient can flow to an argument: no tokens, nothing that is absent."""
    return tensor is not None and tensor.is_floating_point() and tensor.shape != (0,)


def _reference_gradients(cotangents: Sequence, tensors: Sequence, options, wanted: list[int]) -> tuple[Tensor, ...]:
    """The wanted gradients as a differentiable function of cotangents and inputs, in forward mode and under any
    transform of torch.func too."""
    _, cell, direction, batch_first, schedule, _, precision, _ = options

    def layer(*values):
        replaced = dict(zip(wanted, values, strict=True))
        now = tuple(replaced.get(k, tensor) for k, tensor in enumerate(tensors))
        call = ops.call_of(now, cell, direction, batch_first, schedule, "none", precision)
        return reference.forward(call)[: 1 + call.spec.states]

    outputs, pull, *_ = torch.func.vjp(layer, *(tensors[k] for k in wanted))
    pairs = zip(outputs, cotangents, strict=False)
    given = ((out, g is not None and g.shape == out.shape, g) for out, g in pairs)
    return pull(tuple(g if fits else torch.zeros_like(out) for out, fits, g in given))


class CpuFunction(torch.autograd.Function):
    """RecurrentFunction in fewer steps, for dense rows on the backend `cpu` outside torch.func and torch.compile.

    A state may be None, which is zeros. `how`: the private ops and what they are told; `options`: those of the public
    op, for whoever differentiates once more, or listens. Returns y, h_n and c_n, None where the cell has none. With x
    [B, I] or tokens [B] it is one step: states and cotangents are [B, H], and y is None.
    """

    @staticmethod
    def forward(
        ctx, x, h0, c0,
        w_ih, w_hh, b_ih, b_hh, w_hr,
        w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse,
        how, options,
    ):  # fmt: skip
        forward, _, cell, direction, concat, batch_first, save = how
        y, h_n, c_n, saved, cells = forward(
            x, h0, c0,
            w_ih, w_hh, b_ih, b_hh,
            w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse,
            None, None, None,
            cell, direction, concat, batch_first, save,
        )  # fmt: skip
        op = options[0]
        if y is not None:
            after = y
        elif op == "rnn":
            after = h_n
        else:  # of the shape alone: who is given the state may write to it
            after = saved[0, :, 0] if h0 is None else h0
        ctx.save_for_backward(
            x, h0, c0,
            w_ih, w_hh, b_ih, b_hh,
            w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse,
            after, saved, cells,
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.how, ctx.options = how, options
        return y, h_n, c_n if op == "lstm" else None

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n):
        x, h0, c0, *weights, y, saved, cells = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if dy is None and dh_n is None and dc_n is None:
            return (None,) * len(needed)
        if torch.is_grad_enabled() or ops.anything_listens():
            step = y.dim() == 2
            if step:
                x, h0, c0, y, dh_n, dc_n = (None if t is None else t.unsqueeze(0) for t in (x, h0, c0, y, dh_n, dc_n))
            if h0 is None:
                _, B, width = y.shape
                D = 1 if weights[4] is None else 2
                h0 = y.new_zeros(D, B, width // D)
                c0 = h0 if ctx.options[0] == "lstm" else None
            tensors = (x, h0, c0, *weights[:4], None, *weights[4:], None, None, None, None, y, saved, cells)
            dx, dh0, dc0, *others = _gradients((dy, dh_n, dc_n), tensors, ctx.options, needed)
            if step:
                dx, dh0, dc0 = (None if t is None else t.squeeze(0) for t in (dx, dh0, dc0))
            return (dx, dh0, dc0, *others, None, None)
        _, backward, cell, direction, _, batch_first, save = ctx.how
        grads = backward(
            dy, dh_n, dc_n, x, h0, c0, *weights, None, None, None, y, saved, cells,
            cell, direction, save == LEAN, batch_first, _wanted(needed),
        )  # fmt: skip
        return (*grads[:7], None, *grads[7:], None, None, None)


LEAN = SAVE.index("lean")


class RNNFunction(RecurrentFunction):
    """h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh), act tanh or relu (`cell` "rnn_tanh", "rnn_relu")."""


class GRUFunction(RecurrentFunction):
    """The gated recurrent unit, `cell` "gru" (as torch.nn has it) or "gru_reset_before" (Cho et al. 2014)."""


class LSTMFunction(RecurrentFunction):
    """The long short-term memory, `cell` "lstm", with a projection where w_hr is given."""


FUNCTIONS = {"rnn": RNNFunction, "gru": GRUFunction, "lstm": LSTMFunction}
_UNBOUND = {op: super(torch.autograd.Function, function).apply for op, function in FUNCTIONS.items()}
apply_cpu = super(torch.autograd.Function, CpuFunction).apply


def apply(op: str, plain: bool, *arguments):
    """FUNCTIONS[op].apply(*arguments), quicker where it is plain: outside torch.func and torch.compile.

    What Python does first in there, binding two dozen names to a signature, took 110 of 180 us in a small call.
    """
    return _UNBOUND[op](*arguments) if plain else FUNCTIONS[op].apply(*arguments)


def _register(op: str) -> None:
    """The derivatives of the ops themselves: for graphs that hold nothing else, as of torch.export."""

    def setup_forward(ctx, inputs, output):
        tensors, options = inputs[: len(ops.TENSORS)], inputs[len(ops.TENSORS) :]
        RecurrentFunction.setup_context(ctx, (*tensors, op, *options), output)

    def setup_backward(ctx, inputs, output):
        tensors = 3 + len(ops.TENSORS) + 3
        RecurrentBackward.setup_context(ctx, (*inputs[:tensors], op, *inputs[tensors:]), output)

    torch.library.register_autograd(ops.FORWARD[op], RecurrentFunction.backward, setup_context=setup_forward)
    torch.library.register_autograd(ops.BACKWARD[op], RecurrentBackward.backward, setup_context=setup_backward)


for _op in OPS:
    _register(_op)
