"""Kernels with the recurrent weights in memory: a tile of units of a tile of batch rows at a time.

STREAMED: one launch. A program has a tile of rows, runs all steps and in each all tiles of units, and its threads meet
where one step's results are the next one's operands. Else a launch is one step of the whole chip, a program has one
tile, and launches follow each other. What a step leaves for the next lies in two places by turns, so that no program
reads what another has written already.

Addresses, lengths and strides come from a table in the device's memory, `TABLES`, so that captured launches can be
replayed on other tensors. ALIGNED: all addresses and strides there are multiples of 16 bytes and elements.
"""

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

TABLES = {
    "forward": (
        "begin", "T", "R", "source_step", "source_batch", "token_step", "token_batch", "y_step", "y_batch",
        "reset_step", "reset_batch", "source", "tokens", "w_ih", "bias", "w_hh", "b_hn", "h", "h_exact", "c", "reset_h",
        "y", "saved", "cells", "row_offsets", "lengths", "resets",
    ),
    "backward": (
        "begin", "T", "R", "dy_step", "dy_batch", "y_step", "y_batch", "reset_step", "reset_batch", "dy",
        "w_hh", "h0", "c0", "y", "saved", "cells", "row_offsets", "lengths", "resets", "dgates", "dgates_h", "before",
        "reset_h", "dh", "through", "dc", "dh0",
    ),
}  # fmt: skip
ENTRIES = max(map(len, TABLES.values()))
# What ALIGNED does not speak of: numbers that are no stride, and what is read an element at a time.
UNALIGNED = (
    "begin", "T", "R", "token_step", "token_batch", "tokens", "dy_step", "dy_batch", "dy", "reset_step",
    "reset_batch", "row_offsets", "lengths", "resets",
)  # fmt: skip


@triton.constexpr_function
def slot(kernel, name):
    return TABLES[kernel].index(name)


@triton.constexpr_function
def phases_of(cell):
    """Products in a row that a step of the cell needs."""
    return 2 if cell == "gru_reset_before" else 1


@triton.constexpr_function
def first_of(cell, phase):
    """The first gate whose input a phase reads."""
    return phase if cell == "gru_reset_before" else 0


@triton.constexpr_function
def count_of(cell, phase):
    """How many gates that is from there on."""
    return 1 + phase if cell == "gru_reset_before" else gates_of(cell)


@triton.jit(do_not_specialize=[f"v{k}" for k in range(27)])
def set_table(
    table, v0: tl.int64, v1: tl.int64, v2: tl.int64, v3: tl.int64, v4: tl.int64, v5: tl.int64, v6: tl.int64,
    v7: tl.int64, v8: tl.int64, v9: tl.int64, v10: tl.int64, v11: tl.int64, v12: tl.int64, v13: tl.int64, v14: tl.int64,
    v15: tl.int64, v16: tl.int64, v17: tl.int64, v18: tl.int64, v19: tl.int64, v20: tl.int64, v21: tl.int64,
    v22: tl.int64, v23: tl.int64, v24: tl.int64, v25: tl.int64, v26: tl.int64,
):  # fmt: skip
    """A kernel, not a copy from the host, because that could not be captured."""
    values = (v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15, v16, v17, v18, v19, v20, v21, v22,
              v23, v24, v25, v26)  # fmt: skip
    for k in tl.static_range(27):
        tl.store(table + k, values[k])


@triton.jit(do_not_specialize=["steps"])
def advance(table, steps):
    """Lets the launches that follow begin so many steps later."""
    tl.store(table, tl.load(table) + steps)


@triton.jit
def number(table, KERNEL: tl.constexpr, NAME: tl.constexpr, ALIGNED: tl.constexpr = False):
    value = tl.load(table + slot(KERNEL, NAME))
    return tl.multiple_of(value, 16) if ALIGNED else value


@triton.jit
def address(table, KERNEL: tl.constexpr, NAME: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(table + slot(KERNEL, NAME)).to(tl.pointer_type(TYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def add_products(s0, s1, s2, s3, base, start, rows, w, unit, H, K, FIRST: tl.constexpr, COUNT: tl.constexpr,
                 BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """To COUNT sums the products of rows of K values with gates FIRST, FIRST + 1, ... of w [G*H, K], transposed."""
    for k in range(0, K, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        part = tl.load(base + start[:, None] + column[None, :], mask=rows & (column < K)[None, :], other=0)
        s0 = tl.dot(part, load_weights(w, FIRST, unit, column, H, K, True), s0, input_precision=PRECISION)
        if COUNT > 1:
            s1 = tl.dot(part, load_weights(w, FIRST + 1, unit, column, H, K, True), s1, input_precision=PRECISION)
        if COUNT > 2:
            s2 = tl.dot(part, load_weights(w, FIRST + 2, unit, column, H, K, True), s2, input_precision=PRECISION)
        if COUNT > 3:
            s3 = tl.dot(part, load_weights(w, FIRST + 3, unit, column, H, K, True), s3, input_precision=PRECISION)
    return s0, s1, s2, s3


@triton.jit
def add_product_of_gates(total, base, start, rows, w, unit, H, FIRST, LAST, BLOCK_K: tl.constexpr,
                         PRECISION: tl.constexpr):  # fmt: skip
    """total + values FIRST to LAST of rows, cotangents of gates, times the same rows of w [G*H, H]."""
    for k in range(FIRST, LAST, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        part = tl.load(base + start[:, None] + column[None, :], mask=rows & (column < LAST)[None, :], other=0)
        mask = (column < LAST)[:, None] & (unit < H)[None, :]
        weights = tl.load(w + column.to(tl.int64)[:, None] * H + unit[None, :], mask=mask, other=0)
        total = tl.dot(part, weights, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["step", "B"])
def forward(
    table, step, B, I, H,
    CELL: tl.constexpr, DIRECTION: tl.constexpr, CONCAT: tl.constexpr, TOKENS: tl.constexpr, PACKED: tl.constexpr,
    LENGTHS: tl.constexpr, RESETS: tl.constexpr, SAVE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    TYPE: tl.constexpr, ALIGNED: tl.constexpr, STREAMED: tl.constexpr, PHASE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As the resident kernel, which see; not STREAMED: phase PHASE of step `begin + step`. h [2, D, B, H], of the GRUs
    h_exact in float32 as well, c [2, D, B, H]: the state before even steps, and before odd ones. reset_h [D, B, H]:
    r * h of `gru_reset_before`."""
    GATES: tl.constexpr = gates_of(CELL)
    KEPT: tl.constexpr = kept_of(CELL)
    LSTM: tl.constexpr = CELL == "lstm"
    T, R = number(table, "forward", "T"), number(table, "forward", "R")
    source_step = number(table, "forward", "source_step", ALIGNED)
    source_batch = number(table, "forward", "source_batch", ALIGNED)
    token_step, token_batch = number(table, "forward", "token_step"), number(table, "forward", "token_batch")
    y_step, y_batch = number(table, "forward", "y_step", ALIGNED), number(table, "forward", "y_batch", ALIGNED)
    reset_step, reset_batch = number(table, "forward", "reset_step"), number(table, "forward", "reset_batch")
    source = address(table, "forward", "source", TYPE, ALIGNED)
    tokens = address(table, "forward", "tokens", tl.int64, False)
    w_ih = address(table, "forward", "w_ih", TYPE, ALIGNED)
    bias = address(table, "forward", "bias", TYPE, ALIGNED)
    w_hh = address(table, "forward", "w_hh", TYPE, ALIGNED)
    b_hn = address(table, "forward", "b_hn", TYPE, ALIGNED)
    h_all = address(table, "forward", "h", TYPE, ALIGNED)
    h_exact = address(table, "forward", "h_exact", tl.float32, ALIGNED)
    c_all = address(table, "forward", "c", tl.float32, ALIGNED)
    reset_h = address(table, "forward", "reset_h", TYPE, ALIGNED)
    y = address(table, "forward", "y", TYPE, ALIGNED)
    saved = address(table, "forward", "saved", TYPE, ALIGNED)
    cells = address(table, "forward", "cells", tl.float32, ALIGNED)
    row_offsets = address(table, "forward", "row_offsets", tl.int64, False)
    lengths = address(table, "forward", "lengths", tl.int64, False)
    resets = address(table, "forward", "resets", tl.int8, False)

    d, reverse, b, steps_of = own_rows(lengths, B, T, DIRECTION, LENGTHS, BLOCK_B)
    exists = (b < B)[:, None]
    state = (d * B + b) * H
    states = tl.num_programs(1).to(tl.int64) * B * H
    w_hh += d * GATES * H * H
    b_hn += d * H
    if CONCAT:
        w_ih += d * GATES * H * I
        bias += d * GATES * H
    else:
        source += d * GATES * H
    begin = 0 if STREAMED else tl.load(table) + step
    end = T if STREAMED else tl.minimum(begin + 1, T)
    first_tile = 0 if STREAMED else tl.program_id(2)
    last_tile = tl.cdiv(H, BLOCK_N) if STREAMED else first_tile + 1

    for position in range(begin, end):
        t = tl.where(reverse, T - 1 - position, position).to(tl.int64)
        now, after = (position % 2) * states, (1 - position % 2) * states
        active = t < steps_of
        rows = active[:, None]
        row = row_of(row_offsets, t, b, B, PACKED)
        place = place_of_input(tokens, row_offsets, t, b, active, source_step, source_batch, token_step, token_batch,
                               TOKENS, PACKED)  # fmt: skip
        place_of_y = place_of(row_offsets, t, b, y_step, y_batch, PACKED) + d * H
        continues = exists
        if RESETS:
            continues = exists & ~starts_anew(resets, t, b, reset_step, reset_batch, active)
        for phase in tl.static_range(0 if STREAMED else PHASE, phases_of(CELL) if STREAMED else PHASE + 1):
            for tile in range(first_tile, last_tile):
                unit = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
                units = (unit < H)[None, :]
                mask, present = rows & units, exists & units
                c, h = tl.zeros([BLOCK_B, BLOCK_N], tl.float32), tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
                if GATES == 3:
                    h = load_tile(h_exact, now + state, unit, present)
                elif LENGTHS:
                    h = load_tile(h_all, now + state, unit, present)
                if LSTM:
                    c = load_tile(c_all, now + state, unit, present)
                h_in, c_in = h, c
                if RESETS:
                    h_in, c_in = tl.where(continues, h, 0.0), tl.where(continues, c, 0.0)

                if CONCAT:
                    s0 = tl.zeros_like(h) + load_bias(bias, first_of(CELL, phase), unit, H, BIAS)
                    s1, s2, s3 = s0, s0, s0
                    if count_of(CELL, phase) > 1:
                        s1 = tl.zeros_like(h) + load_bias(bias, first_of(CELL, phase) + 1, unit, H, BIAS)
                    if count_of(CELL, phase) > 2:
                        s2 = tl.zeros_like(h) + load_bias(bias, 2, unit, H, BIAS)
                    if count_of(CELL, phase) > 3:
                        s3 = tl.zeros_like(h) + load_bias(bias, 3, unit, H, BIAS)
                    s0, s1, s2, s3 = add_products(s0, s1, s2, s3, source, place, rows, w_ih, unit, H, I,
                                                  first_of(CELL, phase), count_of(CELL, phase), BLOCK_K,
                                                  PRECISION)  # fmt: skip
                else:
                    start = place + first_of(CELL, phase) * H
                    s0, s1, s2, s3 = load_tiles(source, start, unit, H, mask, count_of(CELL, phase))

                if CELL == "gru":
                    s3 = tl.zeros_like(h) + load_bias(b_hn, 0, unit, H, BIAS)
                    s0, s1, s3, _ = add_products(s0, s1, s3, s3, h_all + now, state, continues, w_hh, unit, H, H, 0, 3,
                                                 BLOCK_K, PRECISION)  # fmt: skip
                    s0 = sigmoid(s0)
                elif CELL == "gru_reset_before":
                    s0, _, _, _ = add_products(s0, s1, s2, s3, h_all + now, state, continues, w_hh, unit, H, H, phase,
                                               1, BLOCK_K, PRECISION)  # fmt: skip
                    if phase == 0:
                        r = sigmoid(s0)
                        store_tile(reset_h, state, unit, r * h_in, present)
                        if SAVE:
                            store_tile(saved, (d * R + row) * KEPT * H + H, unit, r, mask)
                    else:
                        s2, _, _, _ = add_products(s1, s1, s2, s3, reset_h, state, exists, w_hh, unit, H, H, 2, 1,
                                                   BLOCK_K, PRECISION)  # fmt: skip
                        s1, s0 = s0, s2
                        if SAVE:
                            s0 = load_tile(saved, (d * R + row) * KEPT * H + H, unit, mask)
                else:
                    s0, s1, s2, s3 = add_products(s0, s1, s2, s3, h_all + now, state, continues, w_hh, unit, H, H, 0,
                                                  GATES, BLOCK_K, PRECISION)  # fmt: skip

                if phase == phases_of(CELL) - 1:
                    h_new, c_new, k0, k1, k2, k3 = new_state(s0, s1, s2, s3, h_in, c_in, CELL)
                    h = tl.where(rows, h_new, h)
                    store_tile(h_all + after, state, unit, h, present)
                    if GATES == 3:
                        store_tile(h_exact + after, state, unit, h, present)
                    if LSTM:
                        c = tl.where(rows, c_new, c)
                        store_tile(c_all + after, state, unit, c, present)
                    if SAVE and GATES > 1:
                        store_tiles(saved, (d * R + row) * KEPT * H, unit, H, k0, k1, k2, k3, mask, KEPT)
                    if SAVE and LSTM:
                        store_tile(cells, (d * R + row) * H, unit, c, mask)
                    if PACKED:
                        store_tile(y, place_of_y, unit, h, mask)
                    else:
                        store_tile(y, place_of_y, unit, tl.where(rows, h, 0.0), present)
            if STREAMED:
                tl.debug_barrier()


@triton.jit(do_not_specialize=["step", "B"])
def backward(
    table, step, B, H,
    CELL: tl.constexpr, DIRECTION: tl.constexpr, PACKED: tl.constexpr, LENGTHS: tl.constexpr, RESETS: tl.constexpr,
    DY: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr, STREAMED: tl.constexpr,
    PHASE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """As the resident kernel, which see, in T + 1 steps: each begins with the product of the dgates that the one before
    wrote, and the last is that alone. dh, dc [2, D, B, H], what does not pass through W_hh, before even steps, and
    before odd ones; through [D, B, H]: dh between the phases of `gru_reset_before`."""
    GATES: tl.constexpr = gates_of(CELL)
    KEPT: tl.constexpr = kept_of(CELL)
    LSTM: tl.constexpr = CELL == "lstm"
    FIRST_PRODUCT: tl.constexpr = 2 if CELL == "gru_reset_before" else GATES  # gates of it
    T, R = number(table, "backward", "T"), number(table, "backward", "R")
    dy_step, dy_batch = number(table, "backward", "dy_step"), number(table, "backward", "dy_batch")
    y_step, y_batch = number(table, "backward", "y_step", ALIGNED), number(table, "backward", "y_batch", ALIGNED)
    reset_step, reset_batch = number(table, "backward", "reset_step"), number(table, "backward", "reset_batch")
    dy = address(table, "backward", "dy", TYPE, False)
    w_hh = address(table, "backward", "w_hh", TYPE, ALIGNED)
    h0, c0 = address(table, "backward", "h0", TYPE, ALIGNED), address(table, "backward", "c0", TYPE, ALIGNED)
    y = address(table, "backward", "y", TYPE, ALIGNED)
    saved = address(table, "backward", "saved", TYPE, ALIGNED)
    cells = address(table, "backward", "cells", tl.float32, ALIGNED)
    row_offsets = address(table, "backward", "row_offsets", tl.int64, False)
    lengths = address(table, "backward", "lengths", tl.int64, False)
    resets = address(table, "backward", "resets", tl.int8, False)
    dgates = address(table, "backward", "dgates", TYPE, ALIGNED)
    dgates_h = address(table, "backward", "dgates_h", TYPE, ALIGNED)
    before = address(table, "backward", "before", TYPE, ALIGNED)
    reset_h = address(table, "backward", "reset_h", TYPE, ALIGNED)
    dh_all = address(table, "backward", "dh", tl.float32, ALIGNED)
    through_all = address(table, "backward", "through", tl.float32, ALIGNED)
    dc_all = address(table, "backward", "dc", tl.float32, ALIGNED)
    dh0 = address(table, "backward", "dh0", TYPE, ALIGNED)

    d, reverse, b, steps_of = own_rows(lengths, B, T, DIRECTION, LENGTHS, BLOCK_B)
    exists = (b < B)[:, None]
    state = (d * B + b) * H
    states = tl.num_programs(1).to(tl.int64) * B * H
    w_hh += d * GATES * H * H
    begin = 0 if STREAMED else tl.load(table) + step
    end = T + 1 if STREAMED else tl.minimum(begin + 1, T + 1)
    first_tile = 0 if STREAMED else tl.program_id(2)
    last_tile = tl.cdiv(H, BLOCK_N) if STREAMED else first_tile + 1

    for position in range(begin, end):
        more = position < T
        backwards = tl.where(reverse, 1, -1)  # t of the next step of this loop less that of this
        t = tl.where(reverse, position, T - 1 - position).to(tl.int64)
        t_later = tl.where(position > 0, t - backwards, t)
        was_active = (position > 0) & (t_later < steps_of)
        t = tl.where(more, t, t_later)
        t_before = tl.where(position + 1 < T, t + backwards, t)
        now, after = (position % 2) * states, (1 - position % 2) * states
        active = more & (t < steps_of)
        rows = active[:, None]
        row = row_of(row_offsets, t, b, B, PACKED)
        row_later = row_of(row_offsets, t_later, b, B, PACKED)
        out = (d * R + row) * GATES * H
        kept = (d * R + row) * KEPT * H
        place_of_dy = place_of(row_offsets, t, b, dy_step, dy_batch, PACKED) + d * H
        place_of_y = place_of(row_offsets, t, b, y_step, y_batch, PACKED) + d * H
        continued = was_active[:, None]
        if RESETS:
            continued = continued & ~starts_anew(resets, t_later, b, reset_step, reset_batch, was_active)
        continues = (position + 1 < T) & (t_before < steps_of)
        for phase in tl.static_range(0 if STREAMED else PHASE, phases_of(CELL) if STREAMED else PHASE + 1):
            for tile in range(first_tile, last_tile):
                unit = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
                units = (unit < H)[None, :]
                mask, present = rows & units, exists & units
                written = mask if PACKED else present
                first = present & ~continues[:, None]
                h_first = load_tile(h0, state, unit, first)
                c_first = load_tile(c0, state, unit, first) if LSTM else h_first
                h_in, c_in, anew = state_before(
                    y, cells, h_first, c_first, row_offsets, resets, d, t, t_before, continues, active, b, unit,
                    present, B, R, H, y_step, y_batch, reset_step, reset_batch, CELL, PACKED, RESETS,
                )  # fmt: skip
                if phase == 0:
                    dh = load_tile(dh_all, now + state, unit, present)
                    start = (d * R + row_later) * GATES * H
                    dh = add_product_of_gates(dh, dgates_h, start, continued, w_hh, unit, H, 0, FIRST_PRODUCT * H,
                                              BLOCK_K, PRECISION)  # fmt: skip
                    if more:
                        dc, h_after, c_after = dh, h_in, c_in
                        if LSTM:
                            dc = load_tile(dc_all, now + state, unit, present)
                            c_after = load_tile(cells, (d * R + row) * H, unit, mask)
                        if GATES == 1:
                            h_after = load_tile(y, place_of_y, unit, mask)
                            k0, k1, k2, k3 = h_after, h_after, h_after, h_after
                        else:
                            k0, k1, k2, k3 = load_tiles(saved, kept, unit, H, mask, KEPT)
                        dh_now = dh
                        if DY:
                            dh_now += load_tile(dy, place_of_dy, unit, mask)
                        d0, d1, d2, d3, through, dc_in = gradients(k0, k1, k2, k3, h_in, c_in, h_after, c_after, dh_now,
                                                                   dc, rows, CELL)  # fmt: skip
                        through = tl.where(rows, tl.where(anew, 0.0, through), dh)
                        if CELL == "gru_reset_before":
                            store_tiles(dgates, out + H, unit, H, d1, d2, d2, d2, written, 2)
                            store_tile(through_all, state, unit, through, present)
                        else:
                            store_tiles(dgates, out, unit, H, d0, d1, d2, d3, written, GATES)
                            store_tile(dh_all + after, state, unit, through, present)
                        if CELL == "gru":
                            store_tiles(dgates_h, out, unit, H, d0, d1, d3, d3, written, 3)
                        if LSTM:
                            dc = tl.where(rows, tl.where(anew, 0.0, dc_in), dc)
                            store_tile(dc_all + after, state, unit, dc, present)
                        store_tile(before, (d * R + row) * H, unit, tl.where(rows, h_in, 0.0), written)
                    else:
                        store_tile(dh0, state, unit, dh, present)
                elif more:
                    q = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
                    q = add_product_of_gates(q, dgates, out, rows, w_hh, unit, H, 2 * H, 3 * H, BLOCK_K, PRECISION)
                    r = load_tile(saved, kept + H, unit, mask)
                    store_tile(dgates, out, unit, tl.where(rows, reset_gradient(q, h_in, r), 0.0), written)
                    store_tile(reset_h, (d * R + row) * H, unit, tl.where(rows, r * h_in, 0.0), written)
                    through = load_tile(through_all, state, unit, present)
                    through += tl.where(rows & ~anew, q * r, 0.0)
                    store_tile(dh_all + after, state, unit, through, present)
            if STREAMED:
                tl.debug_barrier()
