"""Where the rows of a step lie, which of them are active, and tiles [rows, units] in and out of memory.

Row (t, b) of what the kernels keep is row_offsets[t] + b of packed input, else t * B + b. It is active iff
t < lengths[b].
"""

import triton
import triton.language as tl


@triton.jit
def is_reverse(DIRECTION: tl.constexpr):
    """Whether this program walks from the last step to the first: direction 1, and the second of both (2)."""
    if DIRECTION == 2:
        return tl.program_id(1) == 1
    return DIRECTION == 1


@triton.jit
def lengths_of(lengths, b, B, T, LENGTHS: tl.constexpr):
    """Steps of each row; 0 where there is no such row."""
    if LENGTHS:
        return tl.load(lengths + b, mask=b < B, other=0)
    return tl.where(b < B, T, 0).to(tl.int64)


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
def load_tile(base, start, unit, mask):
    return tl.load(base + start[:, None] + unit[None, :], mask=mask, other=0).to(tl.float32)


@triton.jit
def store_tile(base, start, unit, tile, mask):
    tl.store(base + start[:, None] + unit[None, :], tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_weights(w, gate: tl.constexpr, unit, column, H, K, TRANSPOSED: tl.constexpr):
    """W of one gate [H, K], its rows are units: as it lies, or transposed."""
    row, col = unit[:, None], column[None, :]
    if TRANSPOSED:
        row, col = unit[None, :], column[:, None]
    return tl.load(w + (gate * H + row) * K + col, mask=(row < H) & (col < K), other=0)


@triton.jit
def starts_anew(resets, t, b, step, batch, mask):
    """resets[t, b], as a column."""
    return (tl.load(resets + t * step + b * batch, mask=mask, other=0) != 0)[:, None]
