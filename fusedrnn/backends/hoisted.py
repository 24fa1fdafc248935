"""What the backends of a GPU have torch do around a loop over time: the products that need no state, in one each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn import gradients
from fusedrnn.call import Call


def input_bias(call: Call) -> Tensor | None:
    """Of all directions [D*G*H], both biases where they simply add; of the GRU r multiplies b_hn, which stays apart."""
    sums = []
    for w in call.weights:
        if w.b_ih is None or w.b_hh is None:
            return None
        if call.cell == "gru":
            sums.append(w.b_ih.clone())
            sums[-1][: 2 * call.H].add_(w.b_hh[: 2 * call.H])
        else:
            sums.append(w.b_ih + w.b_hh)
    return sums[0] if len(sums) == 1 else torch.cat(sums)


def reset_bias(call: Call) -> Tensor | None:
    """b_hn of the GRU's directions [D, H], which r multiplies; None of other cells and without biases."""
    biases = [w.b_hh[2 * call.H :] for w in call.weights if call.cell == "gru" and w.b_hh is not None]
    return stacked(biases) if biases else None


def input_gates(call: Call, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """x W_ih + b, in the order of x's memory [T, B, D*G*H] (packed [R, D*G*H]), or for tokens the table [I, D*G*H].
    w_ih [D*G*H, I], bias [D*G*H]."""
    if call.tokens:
        x = flat_rows(call)
        torch._assert_async(((x >= 0) & (x < call.I)).all(), "token outside the vocabulary")  # on a GPU without waiting
        table = w_ih.t().contiguous()
        return table if bias is None else table + bias
    if call.row_offsets is None and call.x.stride(0) < call.x.stride(1):
        return F.linear(call.x.transpose(0, 1), w_ih, bias).transpose(0, 1)
    return F.linear(call.x, w_ih, bias)


def flat_rows(call: Call) -> Tensor:
    """x as flat rows [R, I], tokens [R], zero where they are not active."""
    if call.row_offsets is not None:
        return call.x
    x = call.x
    if call.lengths is not None:
        active = torch.arange(call.T, device=x.device)[:, None] < call.lengths
        x = torch.where(active if call.tokens else active[..., None], x, torch.zeros_like(x))
    return x.flatten(0, 1)


def input_gradient(call: Call, dgates: Tensor) -> Tensor:
    """dgates W_ih, both directions in one product."""
    both, w_ih = dgates[0], call.weights[0].w_ih
    if call.D == 2:
        both, w_ih = torch.cat(tuple(dgates), -1), torch.cat([w.w_ih for w in call.weights])
    return call.in_order((both @ w_ih).view(call.x.shape))


def strides(call: Call, rows: Tensor) -> tuple[int, int]:
    """Elements from step to step and from row to row."""
    return (0, rows.stride(0)) if call.row_offsets is not None else (rows.stride(0), rows.stride(1))


def stacked(of_directions: list[Tensor]) -> Tensor:
    """[D, ...]; without a copy of one direction alone."""
    return of_directions[0].contiguous().unsqueeze(0) if len(of_directions) == 1 else torch.stack(of_directions)


def all_gradients(
    call: Call,
    dgates: Tensor,
    dh0: Tensor,
    dc0: Tensor | None,
    wanted: int,
    of_direction: Callable[[int], tuple[gradients.Recurrent, tuple[Tensor, Tensor] | None]],
) -> tuple[Tensor | None, ...]:
    """What Backend.backward returns. dgates [D, R, G*H] as W_ih sees them; of_direction gives the two last arguments of
    gradients.of_weights."""
    found: list[Tensor | None] = [input_gradient(call, dgates) if wanted & 1 else None, dh0, dc0]
    x = flat_rows(call)
    for d in range(call.D):
        if wanted >> 3 + 5 * d & 31:
            found += (*gradients.of_weights(call, x, dgates[d], *of_direction(d)), None)
        else:
            found += [None] * 5
    return tuple(g if wanted >> k & 1 else None for k, g in enumerate(found))


def on_its_device(call: Call) -> AbstractContextManager:
    """On the device of the operands, with torch's own products in the precision of the call."""
    device = torch.cuda.device(call.x.device) if call.x.is_cuda else contextlib.nullcontext()
    return _in_precision(call.precision, device) if call.dtype == torch.float32 else device


@contextlib.contextmanager
def _in_precision(precision: str, device: AbstractContextManager) -> Iterator[None]:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    with device:
        settings.fp32_precision = precision
        try:
            yield
        finally:
            settings.fp32_precision = before
