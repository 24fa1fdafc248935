"""Where the rows of a step lie, which of them are active, and tiles [rows, units] in and out of memory.

Row (t, b) of what the kernels keep is row_offsets[t] + b of packed input, else t * B + b. It is active iff
t < lengths[b].
"""

import triton
import triton.language as tl


@triton.constexpr_function
def gates_of(cell):
    """Blocks of H rows in the weights."""
    return {"lstm": 4, "gru": 3, "gru_reset_before": 3}.get(cell, 1)


@triton.constexpr_function
def kept_of(cell):
    """Blocks of H values kept of each row for backward (an RNN keeps none)."""
    return 3 if cell == "gru_reset_before" else 4


@triton.jit
def own_rows(lengths, B, T, DIRECTION: tl.constexpr, LENGTHS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Of this program: its direction, whether that walks from the last step to the first (1, and the second of both,
    2), its batch rows, and their steps, 0 where there is no such row."""
    d = tl.program_id(1).to(tl.int64)
    reverse = d == 1 if DIRECTION == 2 else DIRECTION == 1
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)
    if LENGTHS:
        steps_of = tl.load(lengths + b, mask=b < B, other=0)
    else:
        steps_of = tl.where(b < B, T, 0).to(tl.int64)
    return d, reverse, b, steps_of


@triton.jit
def row_of(row_offsets, t, b, B, PACKED: tl.constexpr):
    if PACKED:
        return tl.load(row_offsets + t) + b
    return t * B + b


@triton.jit
def place_of(row_offsets, t, b, step, batch, PACKED: tl.constexpr):
    """Where row (t, b) of a tensor [T, B, ...] with these strides, or a packed one with rows `batch` apart, begins."""
    if PACKED:
        return (tl.load(row_offsets + t) + b) * batch
    return t * step + b * batch


@triton.jit
def place_of_input(tokens, row_offsets, t, b, active, step, batch, token_step, token_batch, TOKENS: tl.constexpr,
                   PACKED: tl.constexpr):  # fmt: skip
    """The same of the input; of tokens, in the table whose rows are `batch` apart."""
    if TOKENS:
        place = place_of(row_offsets, t, b, token_step, token_batch, PACKED)
        return tl.load(tokens + place, mask=active, other=0) * batch
    return place_of(row_offsets, t, b, step, batch, PACKED)


@triton.jit
def load_tile(base, start, unit, mask):
    return tl.load(base + start[:, None] + unit[None, :], mask=mask, other=0).to(tl.float32)


@triton.jit
def store_tile(base, start, unit, tile, mask):
    tl.store(base + start[:, None] + unit[None, :], tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_tiles(base, start, unit, H, mask, COUNT: tl.constexpr):
    """Four tiles, H apart; beyond COUNT the first again."""
    first = load_tile(base, start, unit, mask)
    second, third, fourth = first, first, first
    if COUNT > 1:
        second = load_tile(base, start + H, unit, mask)
    if COUNT > 2:
        third = load_tile(base, start + 2 * H, unit, mask)
    if COUNT > 3:
        fourth = load_tile(base, start + 3 * H, unit, mask)
    return first, second, third, fourth


@triton.jit
def store_tiles(base, start, unit, H, first, second, third, fourth, mask, COUNT: tl.constexpr):
    """COUNT of four tiles, H apart."""
    store_tile(base, start, unit, first, mask)
    if COUNT > 1:
        store_tile(base, start + H, unit, second, mask)
    if COUNT > 2:
        store_tile(base, start + 2 * H, unit, third, mask)
    if COUNT > 3:
        store_tile(base, start + 3 * H, unit, fourth, mask)


@triton.jit
def load_weights(w, gate: tl.constexpr, unit, column, H, K, TRANSPOSED: tl.constexpr):
    """W of one gate [H, K], its rows are units: as it lies, or transposed."""
    row, col = unit[:, None], column[None, :]
    if TRANSPOSED:
        row, col = unit[None, :], column[:, None]
    return tl.load(w + (gate * H + row) * K + col, mask=(row < H) & (col < K), other=0)


@triton.jit
def load_bias(bias, gate: tl.constexpr, unit, H, BIAS: tl.constexpr):
    """b of a gate as a row; zero where there is none."""
    row = tl.zeros_like(unit).to(tl.float32)
    if BIAS:
        row = tl.load(bias + gate * H + unit, mask=unit < H, other=0).to(tl.float32)
    return row[None, :]


@triton.jit
def starts_anew(resets, t, b, step, batch, mask):
    """resets[t, b], as a column."""
    return (tl.load(resets + t * step + b * batch, mask=mask, other=0) != 0)[:, None]
