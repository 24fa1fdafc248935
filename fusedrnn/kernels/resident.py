"""Kernels with the recurrent weights on chip: a program keeps them and the state of a tile of batch rows, and runs all
steps."""

import triton
import triton.language as tl

from fusedrnn.kernels.cells import reset_gradient, sigmoid
from fusedrnn.kernels.rows import (
    gates_of,
    kept_of,
    load_bias,
    load_tile,
    load_tiles,
    load_weights,
    own_rows,
    place_of,
    place_of_input,
    row_of,
    starts_anew,
    store_tile,
    store_tiles,
)
from fusedrnn.kernels.steps import gradients, new_state, state_before


@triton.jit
def load_gates(w, unit, column, H, K, GATES: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The weights [G*H, K] of all gates; what the cell lacks repeats the first."""
    first = load_weights(w, 0, unit, column, H, K, TRANSPOSED)
    second, third, fourth = first, first, first
    if GATES > 1:
        second = load_weights(w, 1, unit, column, H, K, TRANSPOSED)
        third = load_weights(w, 2, unit, column, H, K, TRANSPOSED)
    if GATES == 4:
        fourth = load_weights(w, 3, unit, column, H, K, TRANSPOSED)
    return first, second, third, fourth


@triton.jit
def product_of_input(x, w, bias, gate: tl.constexpr, unit, H, BIAS: tl.constexpr, PRECISION: tl.constexpr):
    """x W_ih + b of a gate."""
    return tl.dot(x.to(w.dtype), w, input_precision=PRECISION) + load_bias(bias, gate, unit, H, BIAS)


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
    GATES: tl.constexpr = gates_of(CELL)
    KEPT: tl.constexpr = kept_of(CELL)
    LSTM: tl.constexpr = CELL == "lstm"
    INPUTS: tl.constexpr = 1 if CONCAT else GATES  # tiles that a step reads
    d, reverse, b, steps_of = own_rows(lengths, B, T, DIRECTION, LENGTHS, BLOCK_B)
    unit = tl.arange(0, BLOCK_H)
    units = unit < H
    state = (d * B + b) * H
    present = (b < B)[:, None] & units[None, :]

    w0, w1, w2, w3 = load_gates(w_hh + d * GATES * H * H, unit, unit, H, H, GATES, True)
    hn_bias = load_bias(b_hn + d * H, 0, unit, H, CELL == "gru" and BIAS)
    column, columns = unit, units
    if CONCAT:
        column = tl.arange(0, BLOCK_I)
        columns = column < I
        v0, v1, v2, v3 = load_gates(w_ih + d * GATES * H * I, unit, column, H, I, GATES, True)
        bias += d * GATES * H
    else:
        source += d * GATES * H

    h = load_tile(h0, state, unit, present)
    c = h
    if LSTM:
        c = load_tile(c0, state, unit, present)
    t = tl.where(reverse, T - 1, 0).to(tl.int64)
    active = t < steps_of
    place = place_of_input(tokens, row_offsets, t, b, active, source_step, source_batch, token_step, token_batch,
                           TOKENS, PACKED)  # fmt: skip
    p0, p1, p2, p3 = load_tiles(source, place, column, H, active[:, None] & columns[None, :], INPUTS)
    for position in range(T):
        now, active = t, t < steps_of
        rows = active[:, None]
        mask = rows & units[None, :]
        a0, a1, a2, a3 = p0, p1, p2, p3
        if CONCAT:
            a0 = product_of_input(p0, v0, bias, 0, unit, H, BIAS, PRECISION)
            if GATES > 1:
                a1 = product_of_input(p0, v1, bias, 1, unit, H, BIAS, PRECISION)
                a2 = product_of_input(p0, v2, bias, 2, unit, H, BIAS, PRECISION)
            if LSTM:
                a3 = product_of_input(p0, v3, bias, 3, unit, H, BIAS, PRECISION)
        more = position + 1 < T
        t = tl.where(more, tl.where(reverse, t - 1, t + 1), t)
        ahead = more & (t < steps_of)
        place = place_of_input(tokens, row_offsets, t, b, ahead, source_step, source_batch, token_step, token_batch,
                               TOKENS, PACKED)  # fmt: skip
        p0, p1, p2, p3 = load_tiles(source, place, column, H, ahead[:, None] & columns[None, :], INPUTS)
        h_in, c_in = h, c
        if RESETS:
            anew = starts_anew(resets, now, b, reset_step, reset_batch, active)
            h_in = tl.where(anew, 0.0, h)
            c_in = tl.where(anew, 0.0, c)
        operand = h_in.to(w0.dtype)
        a0 += tl.dot(operand, w0, input_precision=PRECISION)
        if GATES > 1:
            a1 += tl.dot(operand, w1, input_precision=PRECISION)
        if LSTM:
            a2 += tl.dot(operand, w2, input_precision=PRECISION)
            a3 += tl.dot(operand, w3, input_precision=PRECISION)
        if GATES == 3:
            a0 = sigmoid(a0)
        if CELL == "gru":
            a3 = tl.dot(operand, w2, input_precision=PRECISION) + hn_bias
        if CELL == "gru_reset_before":
            a2 += tl.dot((a0 * h_in).to(w2.dtype), w2, input_precision=PRECISION)
        after, c_after, k0, k1, k2, k3 = new_state(a0, a1, a2, a3, h_in, c_in, CELL)
        h = tl.where(rows, after, h)
        row = row_of(row_offsets, now, b, B, PACKED)
        if LSTM:
            c = tl.where(rows, c_after, c)
        if SAVE and GATES > 1:
            store_tiles(saved, (d * R + row) * KEPT * H, unit, H, k0, k1, k2, k3, mask, KEPT)
        if SAVE and LSTM:
            store_tile(cells, (d * R + row) * H, unit, c, mask)
        place = place_of(row_offsets, now, b, y_step, y_batch, PACKED) + d * H
        if PACKED:
            store_tile(y, place, unit, h, mask)
        else:
            store_tile(y, place, unit, tl.where(rows, h, 0.0), present)
    store_tile(h_n, state, unit, h, present)
    if LSTM:
        store_tile(c_n, state, unit, c, present)


@triton.jit(do_not_specialize=["T", "B", "R"])
def backward(
    dy, dh_n, dc_n, w_hh, h0, c0, y, saved, cells, row_offsets, lengths, resets,
    dgates, dgates_h, before, reset_h, dh0, dc0,
    T, B, R, H, y_step, y_batch, dy_step, dy_batch, reset_step, reset_batch,
    CELL: tl.constexpr, DIRECTION: tl.constexpr, PACKED: tl.constexpr, LENGTHS: tl.constexpr, RESETS: tl.constexpr,
    DY: tl.constexpr, DH_N: tl.constexpr, DC_N: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Writes what the large products need, [D, R, ...]: dgates as W_ih sees them, in the order of its rows; of the GRU
    dgates_h as W_hh sees them; before, the state each row started from; reset_h, r times that (`gru_reset_before`).
    """
    GATES: tl.constexpr = gates_of(CELL)
    KEPT: tl.constexpr = kept_of(CELL)
    LSTM: tl.constexpr = CELL == "lstm"
    d, reverse, b, steps_of = own_rows(lengths, B, T, DIRECTION, LENGTHS, BLOCK_B)
    unit = tl.arange(0, BLOCK_H)
    units = unit < H
    state = (d * B + b) * H
    present = (b < B)[:, None] & units[None, :]
    w0, w1, w2, w3 = load_gates(w_hh + d * GATES * H * H, unit, unit, H, H, GATES, False)

    dh = tl.zeros([BLOCK_B, BLOCK_H], tl.float32)
    dc = dh
    if DH_N:
        dh = load_tile(dh_n, state, unit, present)
    if LSTM and DC_N:
        dc = load_tile(dc_n, state, unit, present)

    h_first = load_tile(h0, state, unit, present)
    c_first = h_first
    if LSTM:
        c_first = load_tile(c0, state, unit, present)
    for position in range(T):
        t = tl.where(reverse, position, T - 1 - position).to(tl.int64)
        active = t < steps_of
        rows = active[:, None]
        mask = rows & units[None, :]
        row = row_of(row_offsets, t, b, B, PACKED)
        more = position + 1 < T
        t_before = tl.where(more, tl.where(reverse, t + 1, t - 1), t)
        h_in, c_in, anew = state_before(
            y, cells, h_first, c_first, row_offsets, resets, d, t, t_before, more & (t_before < steps_of), active, b,
            unit, present, B, R, H, y_step, y_batch, reset_step, reset_batch, CELL, PACKED, RESETS,
        )  # fmt: skip
        dh_now = dh
        if DY:
            place = place_of(row_offsets, t, b, dy_step, dy_batch, PACKED) + d * H
            dh_now += load_tile(dy, place, unit, mask)
        h_after, c_after = h_in, c_in
        if GATES == 1:
            place = place_of(row_offsets, t, b, y_step, y_batch, PACKED) + d * H
            h_after = load_tile(y, place, unit, mask)
            k0, k1, k2, k3 = h_after, h_after, h_after, h_after
        else:
            k0, k1, k2, k3 = load_tiles(saved, (d * R + row) * KEPT * H, unit, H, mask, KEPT)
        if LSTM:
            c_after = load_tile(cells, (d * R + row) * H, unit, mask)
        d0, d1, d2, d3, through, dc_in = gradients(k0, k1, k2, k3, h_in, c_in, h_after, c_after, dh_now, dc, rows, CELL)

        out = (d * R + row) * GATES * H
        written = mask if PACKED else present
        if CELL == "gru_reset_before":
            q = tl.dot(d2.to(w0.dtype), w2, input_precision=PRECISION)
            d0 = tl.where(rows, reset_gradient(q, h_in, k1), 0.0)
            through += q * k1
            store_tile(reset_h, (d * R + row) * H, unit, tl.where(rows, k1 * h_in, 0.0), written)
        if CELL == "gru":
            store_tiles(dgates_h, out, unit, H, d0, d1, d3, d3, written, GATES)
            through = tl.dot(d3.to(w0.dtype), w2, through, input_precision=PRECISION)
        store_tiles(dgates, out, unit, H, d0, d1, d2, d3, written, GATES)
        dh_in = tl.dot(d0.to(w0.dtype), w0, through, input_precision=PRECISION)
        if GATES > 1:
            dh_in = tl.dot(d1.to(w0.dtype), w1, dh_in, input_precision=PRECISION)
        if LSTM:
            dh_in = tl.dot(d2.to(w0.dtype), w2, dh_in, input_precision=PRECISION)
            dh_in = tl.dot(d3.to(w0.dtype), w3, dh_in, input_precision=PRECISION)
        store_tile(before, (d * R + row) * H, unit, tl.where(rows, h_in, 0.0), written)
        if RESETS:
            dh_in, dc_in = tl.where(anew, 0.0, dh_in), tl.where(anew, 0.0, dc_in)
        dh = tl.where(rows, dh_in, dh)
        dc = tl.where(rows, dc_in, dc)
    store_tile(dh0, state, unit, dh, present)
    if LSTM:
        store_tile(dc0, state, unit, dc, present)
