"""Forward: a program keeps W_hh and the state of a tile of batch rows on chip and runs all steps."""

import triton
import triton.language as tl

from fusedrnn.kernels.cells import gru, lstm, rnn, sigmoid, tanh
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


@triton.jit
def inputs_of(source, tokens, row_offsets, t, b, active, column, columns, H, step, batch, token_step, token_batch,
              GATES: tl.constexpr, CONCAT: tl.constexpr, TOKENS: tl.constexpr, PACKED: tl.constexpr):  # fmt: skip
    """x W_ih + b of step t, a tile for each of four gates; what the cell lacks repeats the first. CONCAT: x instead."""
    if TOKENS:
        place = place_of(row_offsets, t, b, token_step, token_batch, PACKED)
        start = tl.load(tokens + place, mask=active, other=0) * batch
    else:
        start = place_of(row_offsets, t, b, step, batch, PACKED)
    if not CONCAT:
        start += tl.program_id(1) * GATES * H
    mask = active[:, None] & columns[None, :]
    first = load_tile(source, start, column, mask)
    second, third, fourth = first, first, first
    if GATES > 1 and not CONCAT:
        second, third = load_tile(source, start + H, column, mask), load_tile(source, start + 2 * H, column, mask)
    if GATES == 4 and not CONCAT:
        fourth = load_tile(source, start + 3 * H, column, mask)
    return first, second, third, fourth


@triton.jit
def product_of_input(x, w, bias, PRECISION: tl.constexpr):
    """x W_ih + b of a gate."""
    return tl.dot(x.to(w.dtype), w, input_precision=PRECISION) + bias


@triton.jit
def load_bias(bias, gate: tl.constexpr, unit, H, BIAS: tl.constexpr):
    """b of a gate as a row; zero where there is none."""
    row = tl.zeros_like(unit).to(tl.float32)
    if BIAS:
        row = tl.load(bias + gate * H + unit, mask=unit < H, other=0).to(tl.float32)
    return row[None, :]


@triton.jit(do_not_specialize=["T", "B", "R"])
def forward(
    source, tokens, w_ih, bias, w_hh, b_hn, h0, c0, y, h_n, c_n, saved, cells, row_offsets, lengths, resets,
    T, B, R, I, H, source_step, source_batch, token_step, token_batch, y_step, y_batch, reset_step, reset_batch,
    CELL: tl.constexpr, DIRECTION: tl.constexpr, CONCAT: tl.constexpr, TOKENS: tl.constexpr, PACKED: tl.constexpr,
    LENGTHS: tl.constexpr, RESETS: tl.constexpr, SAVE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """source: x W_ih + b [T, B, D*G*H] at strides, packed [R, D*G*H], or the table [I, D*G*H] of tokens; CONCAT: x,
    which w_ih [D, G*H, I] and bias [D, G*H] meet here. w_hh [D, G*H, H], b_hn [D, H] (GRU), the rest as in
    `Backend.forward`."""
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
    w0 = load_weights(w, 0, unit, unit, H, H, True)
    if GATES > 1:
        w1 = load_weights(w, 1, unit, unit, H, H, True)
        w2 = load_weights(w, 2, unit, unit, H, H, True)
    if LSTM:
        w3 = load_weights(w, 3, unit, unit, H, H, True)
    hn_bias = load_bias(b_hn + d * H, 0, unit, H, CELL == "gru" and BIAS)
    column, columns = unit, units
    if CONCAT:
        column = tl.arange(0, BLOCK_I)
        columns = column < I
        v = w_ih + d * GATES * H * I
        bias += d * GATES * H
        v0, bias0 = load_weights(v, 0, unit, column, H, I, True), load_bias(bias, 0, unit, H, BIAS)
        if GATES > 1:
            v1, bias1 = load_weights(v, 1, unit, column, H, I, True), load_bias(bias, 1, unit, H, BIAS)
            v2, bias2 = load_weights(v, 2, unit, column, H, I, True), load_bias(bias, 2, unit, H, BIAS)
        if LSTM:
            v3, bias3 = load_weights(v, 3, unit, column, H, I, True), load_bias(bias, 3, unit, H, BIAS)

    h = load_tile(h0, state, unit, present)
    c = h
    if LSTM:
        c = load_tile(c0, state, unit, present)
    t = tl.where(reverse, T - 1, 0).to(tl.int64)
    p0, p1, p2, p3 = inputs_of(source, tokens, row_offsets, t, b, t < steps_of, column, columns, H, source_step,
                               source_batch, token_step, token_batch, GATES, CONCAT, TOKENS, PACKED)  # fmt: skip
    for position in range(T):
        now, active = t, t < steps_of
        rows = active[:, None]
        mask = rows & units[None, :]
        a0, a1, a2, a3 = p0, p1, p2, p3
        if CONCAT:
            x = p0
            a0 = product_of_input(x, v0, bias0, PRECISION)
            if GATES > 1:
                a1 = product_of_input(x, v1, bias1, PRECISION)
                a2 = product_of_input(x, v2, bias2, PRECISION)
            if LSTM:
                a3 = product_of_input(x, v3, bias3, PRECISION)
        more = position + 1 < T
        t = tl.where(more, tl.where(reverse, t - 1, t + 1), t)
        p0, p1, p2, p3 = inputs_of(source, tokens, row_offsets, t, b, more & (t < steps_of), column, columns, H,
                                   source_step, source_batch, token_step, token_batch, GATES, CONCAT, TOKENS,
                                   PACKED)  # fmt: skip
        h_in, c_in = h, c
        if RESETS:
            anew = starts_anew(resets, now, b, reset_step, reset_batch, active)
            h_in = tl.where(anew, 0.0, h)
            c_in = tl.where(anew, 0.0, c)
        row = row_of(row_offsets, now, b, B, PACKED)
        kept = saved + (d * R + row)[:, None] * KEPT * H + unit[None, :]
        operand = h_in.to(w0.dtype)
        a0 += tl.dot(operand, w0, input_precision=PRECISION)
        if RNN:
            after = rnn(a0, CELL == "rnn_relu")
        elif LSTM:
            i = sigmoid(a0)
            f = sigmoid(a1 + tl.dot(operand, w1, input_precision=PRECISION))
            g = tanh(a2 + tl.dot(operand, w2, input_precision=PRECISION))
            o = sigmoid(a3 + tl.dot(operand, w3, input_precision=PRECISION))
            after, c_after = lstm(i, f, g, o, c_in)
            c = tl.where(rows, c_after, c)
            if SAVE:
                tl.store(kept, i.to(saved.dtype.element_ty), mask=mask)
                tl.store(kept + H, f.to(saved.dtype.element_ty), mask=mask)
                tl.store(kept + 2 * H, g.to(saved.dtype.element_ty), mask=mask)
                tl.store(kept + 3 * H, o.to(saved.dtype.element_ty), mask=mask)
                store_tile(cells, (d * R + row) * H, unit, c, mask)
        else:
            r = sigmoid(a0)
            z = sigmoid(a1 + tl.dot(operand, w1, input_precision=PRECISION))
            if CELL == "gru":
                hn = tl.dot(operand, w2, input_precision=PRECISION) + hn_bias
                n = tanh(a2 + r * hn)
            else:
                n = tanh(a2 + tl.dot((r * h_in).to(w2.dtype), w2, input_precision=PRECISION))
            after = gru(r, z, n, h_in)
            if SAVE:
                tl.store(kept, n.to(saved.dtype.element_ty), mask=mask)
                tl.store(kept + H, r.to(saved.dtype.element_ty), mask=mask)
                tl.store(kept + 2 * H, z.to(saved.dtype.element_ty), mask=mask)
                if CELL == "gru":
                    tl.store(kept + 3 * H, hn.to(saved.dtype.element_ty), mask=mask)
        h = tl.where(rows, after, h)
        place = place_of(row_offsets, now, b, y_step, y_batch, PACKED) + d * H
        if PACKED:
            store_tile(y, place, unit, h, mask)
        else:
            store_tile(y, place, unit, tl.where(rows, h, 0.0), present)
    store_tile(h_n, state, unit, h, present)
    if LSTM:
        store_tile(c_n, state, unit, c, present)
