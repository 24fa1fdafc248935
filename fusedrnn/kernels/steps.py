"""The middle of a step, which all loops share: forward from pre-activations to the new state, backward from what a
step left and the cotangents of its state to the cotangents of its pre-activations."""

import triton
import triton.language as tl

from fusedrnn.kernels.cells import (
    gru,
    gru_gradient,
    lstm,
    lstm_gradient,
    reset_gradient,
    rnn,
    rnn_gradient,
    sigmoid,
    tanh,
)
from fusedrnn.kernels.rows import load_tile, place_of, row_of, starts_anew


@triton.jit
def new_state(a0, a1, a2, a3, h, c, CELL: tl.constexpr):
    """h, c, and the four tiles to keep, of the state before and the gates' pre-activations, x's and h's parts added.
    The GRUs have their r in a0 already; of `gru` a2 is x W_in + b_in and a3 is h W_hn + b_hn."""
    if CELL == "lstm":
        i, f, g, o = sigmoid(a0), sigmoid(a1), tanh(a2), sigmoid(a3)
        after, c = lstm(i, f, g, o, c)
        return after, c, i, f, g, o
    elif CELL == "gru" or CELL == "gru_reset_before":
        r, z = a0, sigmoid(a1)
        n = tanh(a2 + r * a3) if CELL == "gru" else tanh(a2)
        return gru(r, z, n, h), c, n, r, z, a3
    else:
        after = rnn(a0, CELL == "rnn_relu")
        return after, c, after, after, after, after


@triton.jit
def state_before(y, cells, h_first, c_first, row_offsets, resets, d, t, t_before, continues, active, b, unit, present,
                 B, R, H, y_step, y_batch, reset_step, reset_batch, CELL: tl.constexpr, PACKED: tl.constexpr,
                 RESETS: tl.constexpr):  # fmt: skip
    """The h and c that step t began with: where a row continues, what step `t_before` wrote, else the first state; and,
    as a column, which rows began anew."""
    keeps_on = continues[:, None]
    place = place_of(row_offsets, t_before, b, y_step, y_batch, PACKED) + d * H
    h = tl.where(keeps_on, load_tile(y, place, unit, keeps_on & present), h_first)
    c = c_first
    if CELL == "lstm":
        start = (d * R + row_of(row_offsets, t_before, b, B, PACKED)) * H
        c = tl.where(keeps_on, load_tile(cells, start, unit, keeps_on & present), c_first)
    anew = active[:, None] & False
    if RESETS:
        anew = starts_anew(resets, t, b, reset_step, reset_batch, active)
        h, c = tl.where(anew, 0.0, h), tl.where(anew, 0.0, c)
    return h, c, anew


@triton.jit
def gradients(k0, k1, k2, k3, h, c, h_after, c_after, dh, dc, rows, CELL: tl.constexpr):
    """Cotangents of the pre-activations, zero but in `rows`, then of h, what does not pass through W_hh, and of c.

    k0 to k3 were kept by `new_state`. Of `gru` the fourth is that of h W_hn. Of `gru_reset_before` the first is left
    out: it needs the product of the third (`reset_gradient`).
    """
    through = tl.zeros_like(dh)
    if CELL == "lstm":
        d0, d1, d2, d3, dc = lstm_gradient(k0, k1, k2, k3, c, c_after, dh, dc)
    elif CELL == "gru" or CELL == "gru_reset_before":
        d2, d1 = gru_gradient(k0, k2, h, dh)
        d0, d3 = d2, d2
        if CELL == "gru":
            d0, d3 = reset_gradient(d2, k3, k1), d2 * k1
        through = dh * k2
    else:
        d0 = rnn_gradient(h_after, dh, CELL == "rnn_relu")
        d1, d2, d3 = d0, d0, d0
    return (
        tl.where(rows, d0, 0.0),
        tl.where(rows, d1, 0.0),
        tl.where(rows, d2, 0.0),
        tl.where(rows, d3, 0.0),
        through,
        dc,
    )
