"""The plain backend: the reference loop forward, and the backward derived by hand, in torch operations on any device.

It runs everything the contract names, and is what the compiled kernels are compared with.
The derivation is in the docstring of `fusedrnn.autograd`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusedrnn import gradients, reference
from fusedrnn.backends.base import Backend, Outputs, Problem
from fusedrnn.call import Call
from fusedrnn.cells import state_dtype


class ReferenceBackend(Backend):
    name = "reference"
    devices = frozenset(("cpu", "cuda", "meta"))
    dtypes = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    schedules = frozenset(("hoisted",))

    def schedule(self, problem: Problem) -> str:
        return "hoisted"

    def forward(self, call: Call) -> Outputs:
        if call.x.is_meta:
            return self.new_outputs(call)
        y, h_n, c_n, saved, cells = reference.forward(call._replace(batch_first=False))
        return call.in_order(y), h_n, c_n, saved, cells

    def backward(self, call, dy, dh_n, dc_n, y, saved, cells, wanted):
        if call.save == "lean":
            *_, saved, cells = reference.forward(call._replace(save="full"))
        rows = reference.Rows(call)
        dtype = state_dtype(call.dtype)
        grads: list[Tensor | None] = [None, None, None]
        dx, dh0, dc0 = [], [], []
        for d in range(call.D):
            one = _Direction(call, d, rows, dtype, dy, dh_n, dc_n, y, saved, cells)
            dgates_x, dgates_h, dh, dc, dw_hr = one.loop()
            dh0.append(dh)
            dc0.append(dc)
            if wanted & 1:
                dx.append(dgates_x @ one.weights.w_ih)
            grads += one.weight_gradients(dgates_x, dgates_h, dw_hr)
        if wanted & 1:
            grads[0] = call.new_rows(call.I).copy_(rows.rows(torch.stack(dx).sum(0)))
        grads[1] = torch.stack(dh0).to(call.dtype)
        grads[2] = torch.stack(dc0).to(call.dtype) if call.c0 is not None else None
        return tuple(g if wanted >> k & 1 else None for k, g in enumerate(grads))


class _Direction:
    """The reverse loop of one direction, on a padded [T, B, ...] grid."""

    def __init__(self, call: Call, d: int, rows: reference.Rows, dtype, dy, dh_n, dc_n, y, saved, cells):
        self.call, self.d, self.rows, self.dtype = call, d, rows, dtype
        self.weights = reference.cast(call.weights[d], dtype)
        P = call.P
        shape = (call.T, call.B, P)
        zeros = call.h0.new_zeros
        self.y = rows.grid(y[..., d * P : (d + 1) * P]).to(dtype)
        self.dy = zeros(shape, dtype=dtype) if dy is None else rows.grid(dy[..., d * P : (d + 1) * P]).to(dtype)
        self.dh = zeros(shape[1:], dtype=dtype) if dh_n is None else dh_n[d].to(dtype)
        self.dc: Tensor | None = None
        if call.c0 is not None:
            self.dc = zeros((call.B, call.H), dtype=dtype) if dc_n is None else dc_n[d].to(dtype)
            self.c = rows.grid(cells[d] if call.row_offsets is not None else cells[d].view(call.T, call.B, call.H))
        if call.spec.saved:
            kept = (
                saved[d]
                if call.row_offsets is not None
                else saved[d].view(call.T, call.B, len(call.spec.saved), call.H)
            )
            self.saved = rows.grid(kept).to(dtype)
        self.h_prev = reference.states_before(call, d, rows, call.h0[d].to(dtype), self.y)
        self.c_prev: Tensor | None = None
        if call.c0 is not None:
            self.c_prev = reference.states_before(call, d, rows, call.c0[d].to(dtype), self.c)
        if call.cell == "gru_reset_before":
            self.reset_h = torch.empty_like(self.y)  # r * h_prev, which W_hn multiplies

    def loop(self):
        """Walk the steps backwards. Returns dgates seen by W_ih and by W_hh [T, B, G*H], dh0, dc0 and dW_hr."""
        call = self.call
        shape = (call.T, call.B, len(call.spec.gates) * call.H)
        dgates_x = self.dh.new_zeros(shape)
        dgates_h = self.dh.new_zeros(shape) if call.cell == "gru" else dgates_x
        dh, dc = self.dh, self.dc
        dw_hr = None if self.weights.w_hr is None else torch.zeros_like(self.weights.w_hr)
        for t in reversed(reference.steps(call, self.d)):
            h_prev, c_prev = self.h_prev[t], None if self.c_prev is None else self.c_prev[t]
            active = None if self.rows.active is None else self.rows.active[t][:, None]
            dh_t = dh + self.dy[t]
            gx, gh, dh_new, dc_new = self._step(t, dh_t, dc, h_prev, c_prev, dw_hr, active)
            if call.resets is not None:
                reset = call.resets[t][:, None]
                dh_new = dh_new.masked_fill(reset, 0)
                dc_new = None if dc_new is None else dc_new.masked_fill(reset, 0)
            if active is not None:
                gx, gh = (torch.where(active, g, torch.zeros_like(g)) for g in (gx, gh))
                dh_new = torch.where(active, dh_new, dh)
                dc_new = None if dc is None or dc_new is None else torch.where(active, dc_new, dc)
            dgates_x[t] = gx
            if dgates_h is not dgates_x:
                dgates_h[t] = gh
            dh, dc = dh_new, dc_new
        return dgates_x, dgates_h, dh, dc, dw_hr

    def _step(self, t, dh, dc, h_prev, c_prev, dw_hr, active) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """dgates for W_ih and W_hh [B, G*H], dh and dc before the step, from dh and dc after it."""
        w_hh, H, cell = self.weights.w_hh, self.call.H, self.call.cell
        if cell in ("rnn_tanh", "rnn_relu"):
            y = self.y[t]
            da = dh * (1 - y * y) if cell == "rnn_tanh" else dh.masked_fill(y <= 0, 0)
            return da, da, da @ w_hh, None
        if cell == "gru":
            n, r, z, hn = self.saved[t].unbind(-2)
            dn = dh * (1 - z) * (1 - n * n)
            dz = dh * (h_prev - n) * z * (1 - z)
            dr = dn * hn * r * (1 - r)
            gh = torch.cat((dr, dz, dn * r), -1)
            return torch.cat((dr, dz, dn), -1), gh, dh * z + gh @ w_hh, None
        if cell == "gru_reset_before":
            n, r, z = self.saved[t].unbind(-2)
            dn = dh * (1 - z) * (1 - n * n)
            dz = dh * (h_prev - n) * z * (1 - z)
            drh = dn @ w_hh[2 * H :]
            dr = drh * h_prev * r * (1 - r)
            self.reset_h[t] = r * h_prev
            gx = torch.cat((dr, dz, dn), -1)
            return gx, gx, dh * z + drh * r + gx[:, : 2 * H] @ w_hh[: 2 * H], None
        i, f, g, o = self.saved[t].unbind(-2)
        tanh_c = torch.tanh(self.c[t])
        if dw_hr is not None:
            dh_rows = dh if active is None else torch.where(active, dh, torch.zeros_like(dh))
            out = o * tanh_c if active is None else torch.where(active, o * tanh_c, torch.zeros_like(o))
            dw_hr += dh_rows.t() @ out
            dh = dh @ self.weights.w_hr
        do = dh * tanh_c * o * (1 - o)
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        gx = torch.cat((dc * g * i * (1 - i), dc * c_prev * f * (1 - f), dc * i * (1 - g * g), do), -1)
        return gx, gx, gx @ w_hh, dc * f

    def weight_gradients(self, dgates_x, dgates_h, dw_hr) -> list[Tensor | None]:
        """dW_ih, dW_hh, db_ih, db_hh, dW_hr: large GEMMs and sums over all rows."""
        call = self.call
        x = self.rows.grid(call.x)
        if not call.tokens:
            x = self.rows.where_active(x).to(self.dtype)
        reset_h = self.reset_h.flatten(0, 1) if call.cell == "gru_reset_before" else None
        x, gx, gh, h_prev = (t.flatten(0, 1) for t in (x, dgates_x, dgates_h, self.h_prev))
        grads = (*gradients.of_weights(call, x, gx, gradients.recurrent(call, gh, h_prev, reset_h)), dw_hr)
        return [None if g is None else g.to(call.dtype) for g in grads]
