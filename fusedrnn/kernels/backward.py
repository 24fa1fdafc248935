"""Backward: the reverse of the loop, from cotangents to dgates and the gradients of the first state."""

import triton
import triton.language as tl

from fusedrnn.kernels.cells import gru_gradient, lstm_gradient, rnn_gradient
from fusedrnn.kernels.rows import (
    is_reverse,
    lengths_of,
    load_tile,
    load_weights,
    place_of,
    row_of,
    starts_anew,
    store_tile,
)  # fmt: skip


@triton.jit(do_not_specialize=["T", "B", "R"])
def backward(
    dy, dh_n, dc_n, w_hh, h0, c0, y, saved, cells, row_offsets, lengths, resets,
    dgates, dgates_h, before, reset_h, dh0, dc0,
    T, B, R, H, y_step, y_batch, dy_step, dy_batch, dy_unit, reset_step, reset_batch,
    CELL: tl.constexpr, DIRECTION: tl.constexpr, PACKED: tl.constexpr, LENGTHS: tl.constexpr, RESETS: tl.constexpr,
    DY: tl.constexpr, DH_N: tl.constexpr, DC_N: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Writes what the large products need, [D, R, ...]: dgates as W_ih sees them, in the order of its rows; of the GRU
    dgates_h as W_hh sees them; before, the state each row started from; reset_h, r times that (`gru_reset_before`).
    """
    LSTM: tl.constexpr = CELL == "lstm"
    RNN: tl.constexpr = CELL == "rnn_tanh" or CELL == "rnn_relu"
    GATES: tl.constexpr = 4 if LSTM else 1 if RNN else 3
    KEPT: tl.constexpr = 4 if CELL == "gru" or LSTM else 3
    d = tl.program_id(1).to(tl.int64)
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)
    unit = tl.arange(0, BLOCK_H)
    units = unit < H
    reverse = is_reverse(DIRECTION)
    steps_of = lengths_of(lengths, b, B, T, LENGTHS)
    state = (d * B + b) * H
    present = (b < B)[:, None] & units[None, :]

    w = w_hh + d * GATES * H * H
    w0 = load_weights(w, 0, unit, unit, H, H, False)
    if GATES > 1:
        w1 = load_weights(w, 1, unit, unit, H, H, False)
        w2 = load_weights(w, 2, unit, unit, H, H, False)
    if LSTM:
        w3 = load_weights(w, 3, unit, unit, H, H, False)

    h_first = load_tile(h0, state, unit, present)
    c_first = h_first
    dh = tl.zeros([BLOCK_B, BLOCK_H], tl.float32)
    dc = dh
    if DH_N:
        dh = load_tile(dh_n, state, unit, present)
    if LSTM:
        c_first = load_tile(c0, state, unit, present)
        if DC_N:
            dc = load_tile(dc_n, state, unit, present)

    for position in range(T):
        t = tl.where(reverse, position, T - 1 - position).to(tl.int64)
        active = t < steps_of
        rows = active[:, None]
        mask = rows & units[None, :]
        row = row_of(row_offsets, t, b, B, PACKED)
        more = position + 1 < T
        t_before = tl.where(more, tl.where(reverse, t + 1, t - 1), t)
        continues = more & (t_before < steps_of)  # else the row starts from h0
        keeps_on = continues[:, None]
        row_before = row_of(row_offsets, t_before, b, B, PACKED)
        place_before = place_of(row_offsets, t_before, b, y_step, y_batch, PACKED) + d * H
        h_in = tl.where(keeps_on, load_tile(y, place_before, unit, keeps_on & units[None, :]), h_first)
        c_in = c_first
        if LSTM:
            start = (d * R + row_before) * H
            c_in = tl.where(keeps_on, load_tile(cells, start, unit, keeps_on & units[None, :]), c_first)
        if RESETS:
            anew = starts_anew(resets, t, b, reset_step, reset_batch, active)
            h_in = tl.where(anew, 0.0, h_in)
            c_in = tl.where(anew, 0.0, c_in)

        dh_now = dh
        if DY:
            place = place_of(row_offsets, t, b, dy_step, dy_batch, PACKED) + d * H * dy_unit
            dh_now += load_tile(dy, place, unit * dy_unit, mask)
        kept = (d * R + row) * KEPT * H
        out = (d * R + row) * GATES * H
        written = mask if PACKED else present
        if RNN:
            place = place_of(row_offsets, t, b, y_step, y_batch, PACKED) + d * H
            da = rnn_gradient(load_tile(y, place, unit, mask), dh_now, CELL == "rnn_relu")
            da = tl.where(rows, da, 0.0)
            store_tile(dgates, out, unit, da, written)
            dh_in = tl.dot(da.to(w0.dtype), w0, input_precision=PRECISION)
        elif LSTM:
            i = load_tile(saved, kept, unit, mask)
            f = load_tile(saved, kept + H, unit, mask)
            g = load_tile(saved, kept + 2 * H, unit, mask)
            o = load_tile(saved, kept + 3 * H, unit, mask)
            c = load_tile(cells, (d * R + row) * H, unit, mask)
            di, df, dg, do, dc_in = lstm_gradient(i, f, g, o, c_in, c, dh_now, dc)
            di, df = tl.where(rows, di, 0.0), tl.where(rows, df, 0.0)
            dg, do = tl.where(rows, dg, 0.0), tl.where(rows, do, 0.0)
            store_tile(dgates, out, unit, di, written)
            store_tile(dgates, out + H, unit, df, written)
            store_tile(dgates, out + 2 * H, unit, dg, written)
            store_tile(dgates, out + 3 * H, unit, do, written)
            dh_in = tl.dot(di.to(w0.dtype), w0, input_precision=PRECISION)
            dh_in = tl.dot(df.to(w0.dtype), w1, dh_in, input_precision=PRECISION)
            dh_in = tl.dot(dg.to(w0.dtype), w2, dh_in, input_precision=PRECISION)
            dh_in = tl.dot(do.to(w0.dtype), w3, dh_in, input_precision=PRECISION)
            if RESETS:
                dc_in = tl.where(anew, 0.0, dc_in)
            dc = tl.where(rows, dc_in, dc)
        else:
            n = load_tile(saved, kept, unit, mask)
            r = load_tile(saved, kept + H, unit, mask)
            z = load_tile(saved, kept + 2 * H, unit, mask)
            dn, dz = gru_gradient(n, z, h_in, dh_now)
            dn, dz = tl.where(rows, dn, 0.0), tl.where(rows, dz, 0.0)
            if CELL == "gru":
                hn = load_tile(saved, kept + 3 * H, unit, mask)
                dr = dn * hn * r * (1 - r)
                dn_h = dn * r
                store_tile(dgates_h, out, unit, dr, written)
                store_tile(dgates_h, out + H, unit, dz, written)
                store_tile(dgates_h, out + 2 * H, unit, dn_h, written)
                dh_in = tl.dot(dn_h.to(w0.dtype), w2, dh_now * z, input_precision=PRECISION)
            else:
                q = tl.dot(dn.to(w0.dtype), w2, input_precision=PRECISION)
                dr = tl.where(rows, q * h_in * r * (1 - r), 0.0)
                store_tile(reset_h, (d * R + row) * H, unit, tl.where(rows, r * h_in, 0.0), written)
                dh_in = dh_now * z + q * r
            store_tile(dgates, out, unit, dr, written)
            store_tile(dgates, out + H, unit, dz, written)
            store_tile(dgates, out + 2 * H, unit, dn, written)
            dh_in = tl.dot(dr.to(w0.dtype), w0, dh_in, input_precision=PRECISION)
            dh_in = tl.dot(dz.to(w0.dtype), w1, dh_in, input_precision=PRECISION)
        store_tile(before, (d * R + row) * H, unit, tl.where(rows, h_in, 0.0), written)
        if RESETS:
            dh_in = tl.where(anew, 0.0, dh_in)
        dh = tl.where(rows, dh_in, dh)
    store_tile(dh0, state, unit, dh, present)
    if LSTM:
        store_tile(dc0, state, unit, dc, present)
