"""The definition: each cell as a plain loop over time in differentiable torch operations.

Everything else in this package is proven against `forward`. It is also what forward-mode differentiation and double
backward run on. Formulas: see `fusedrnn.functional`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn.call import Call, Weights
from fusedrnn.cells import LEAN_CHUNK, state_dtype


def step(cell: str, gx: Tensor, h: Tensor, c: Tensor | None, w: Weights) -> tuple[Tensor, Tensor | None, tuple]:
    """One step. gx = x W_ih^T + b_ih [B, G*H], h [B, P], c [B, H] -> new h, new c, the blocks of `CellSpec.saved`."""
    if cell == "rnn_tanh":
        return torch.tanh(gx + F.linear(h, w.w_hh, w.b_hh)), None, ()
    if cell == "rnn_relu":
        return torch.relu(gx + F.linear(h, w.w_hh, w.b_hh)), None, ()
    if cell == "gru":
        gh_r, gh_z, hn = F.linear(h, w.w_hh, w.b_hh).chunk(3, -1)
        gx_r, gx_z, gx_n = gx.chunk(3, -1)
        r, z = torch.sigmoid(gx_r + gh_r), torch.sigmoid(gx_z + gh_z)
        n = torch.tanh(gx_n + r * hn)
        return (1 - z) * n + z * h, None, (n, r, z, hn)
    if cell == "gru_reset_before":
        H = gx.shape[-1] // 3
        b_rz, b_n = (None, None) if w.b_hh is None else (w.b_hh[: 2 * H], w.b_hh[2 * H :])
        r, z = torch.sigmoid(gx[..., : 2 * H] + F.linear(h, w.w_hh[: 2 * H], b_rz)).chunk(2, -1)
        n = torch.tanh(gx[..., 2 * H :] + F.linear(r * h, w.w_hh[2 * H :], b_n))
        return (1 - z) * n + z * h, None, (n, r, z)
    assert c is not None
    i, f, g, o = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(4, -1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return h if w.w_hr is None else F.linear(h, w.w_hr), c, (i, f, g, o)


class Rows:
    """Rows of a call as a padded time-major grid: packed rows are spread over [T, B, ...] and gathered back."""

    def __init__(self, call: Call):
        self.T, self.B = call.T, call.B
        self.active: Tensor | None = None  # bool [T, B]; None: every row is active
        self._at: Tensor | None = None  # packed: [T, B], the row that holds (t, b), any valid row where inactive
        self._flat: Tensor | None = None  # packed: [R], t * B + b of every row
        device = call.x.device
        if call.lengths is not None:
            self.active = torch.arange(self.T, device=device)[:, None] < call.lengths
        if call.row_offsets is not None:
            batch = torch.arange(self.B, device=device)
            rows = torch.arange(call.R, device=device)
            self._at = (call.row_offsets[:, None] + batch).clamp(max=max(call.R - 1, 0))
            step_of = torch.searchsorted(call.row_offsets, rows, right=True) - 1
            self._flat = step_of * self.B + rows - call.row_offsets[step_of]

    def grid(self, rows: Tensor) -> Tensor:
        """Packed [R, ...] -> [T, B, ...] (inactive rows hold arbitrary values); dense input is returned as it is."""
        return rows if self._at is None else rows[self._at]

    def where_active(self, grid: Tensor) -> Tensor:
        """Zeros in the other rows, which may hold anything, even nan: a gradient of zero times that would be nan."""
        return grid if self.active is None else torch.where(self.active[..., None], grid, 0)

    def rows(self, grid: Tensor) -> Tensor:
        """[T, B, ...] -> packed [R, ...]; dense input is returned as it is."""
        return grid if self._flat is None else grid.flatten(0, 1)[self._flat]


def cast(weights: Weights, dtype: torch.dtype) -> Weights:
    w_ih, w_hh, *rest = weights
    return Weights(w_ih.to(dtype), w_hh.to(dtype), *(None if w is None else w.to(dtype) for w in rest))


def steps(call: Call, direction: int) -> range:
    return range(call.T - 1, -1, -1) if call.reverse[direction] else range(call.T)


def input_gates(call: Call, direction: int, rows: Rows, dtype: torch.dtype) -> Tensor:
    """x W_ih^T + b_ih for every row [T, B, G*H]; for tokens a gather from W_ih^T."""
    w_ih, b_ih = call.weights[direction].w_ih.to(dtype), call.weights[direction].b_ih
    b_ih = None if b_ih is None else b_ih.to(dtype)
    if not call.tokens:
        return F.linear(rows.where_active(rows.grid(call.x)).to(dtype), w_ih, b_ih)
    gathered = F.embedding(rows.grid(call.x), w_ih.t())
    return gathered if b_ih is None else gathered + b_ih


def states_before(call: Call, direction: int, rows: Rows, first: Tensor, after: Tensor) -> Tensor:
    """h or c before every step [T, B, ..], from those after it and the `first` [B, ..]; arbitrary in inactive rows."""
    if call.reverse[direction]:
        before = torch.cat((after[1:], first[None]))
        if rows.active is not None:  # a reverse row starts from h0 where its last step lies
            started = torch.cat((rows.active[1:], torch.zeros_like(rows.active[:1])))
            before = torch.where(started[..., None], before, first)
    else:
        before = torch.cat((first[None], after[:-1]))
    return before if call.resets is None else before.masked_fill(call.resets[..., None], 0)


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the layer differentiably. Returns y, h_n, c_n, saved, cells as `Backend.forward` does."""
    dtype, spec, like = state_dtype(call.dtype), call.spec, call.weights[0].w_ih
    rows = Rows(call)
    outputs, h_last, c_last, saved, cells = [], [], [], [], []
    for d in range(call.D):
        weights = cast(call.weights[d], dtype)
        gx = input_gates(call, d, rows, dtype)
        h = call.h0[d].to(dtype)
        c = None if call.c0 is None else call.c0[d].to(dtype)
        ys: list = [None] * call.T
        kept: list = [None] * call.T
        cs: list = [None] * call.T
        chunk_starts = []
        for count, t in enumerate(steps(call, d)):
            if count % LEAN_CHUNK == 0 and c is not None:
                chunk_starts.append(c)
            h_in, c_in = h, c
            if call.resets is not None:
                reset = call.resets[t][:, None]
                h_in, c_in = h.masked_fill(reset, 0), None if c is None else c.masked_fill(reset, 0)
            h_new, c_new, kept_t = step(call.cell, gx[t], h_in, c_in, weights)
            if rows.active is None:
                h, c, ys[t] = h_new, c_new, h_new
            else:
                active = rows.active[t][:, None]
                h = torch.where(active, h_new, h)
                c = None if c is None or c_new is None else torch.where(active, c_new, c)
                ys[t] = torch.where(active, h_new, torch.zeros_like(h_new))
            cs[t] = c
            if kept_t:
                kept[t] = torch.stack(kept_t, -2)  # [B, len(saved), H]
        outputs.append(torch.stack(ys))
        h_last.append(h)
        if c is not None:
            c_last.append(c)
        if call.save == "full" and kept_t:
            saved.append(rows.rows(torch.stack(kept)).reshape(call.R, len(spec.saved), call.H))
        if call.save == "full" and c is not None:
            cells.append(rows.rows(torch.stack(cs)).reshape(call.R, call.H))
        if call.save == "lean" and c is not None:
            cells.append(torch.stack(chunk_starts))
    y = rows.rows(torch.cat(outputs, -1)).to(call.dtype)
    if call.batch_first and call.row_offsets is None:
        y = y.transpose(0, 1).contiguous().transpose(0, 1)
    empty = like.new_empty(0)
    return (
        y,
        torch.stack(h_last).to(call.dtype),
        torch.stack(c_last).to(call.dtype) if c_last else empty,
        torch.stack(saved).to(call.dtype) if saved else like.new_empty(0),
        torch.stack(cells) if cells else like.new_empty(0, dtype=dtype),
    )
