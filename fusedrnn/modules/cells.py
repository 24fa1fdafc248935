"""RNNCell, GRUCell and LSTMCell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusedrnn import checks, functional, shortcut
from fusedrnn.call import Weights
from fusedrnn.cells import CELLS
from fusedrnn.modules.base import NO_ROWS, Kept, Options, check_dtype, check_states, same


class _Cell(Options, nn.RNNCellBase):
    """RNNCell, GRUCell and LSTMCell: one step, on the same kernels. Each has its own `cell`."""

    def __init__(self, input_size, hidden_size, bias, gates, device, dtype, backend, schedule) -> None:
        super().__init__(input_size, hidden_size, bias, gates, device=device, dtype=dtype)
        self._set_options(backend=backend, schedule=schedule)

    @property
    def cell(self) -> str:
        """Its name in `fusedrnn.cells.CELLS`. RuntimeError where it has none."""
        raise NotImplementedError

    def _step(self, input: Tensor, states: tuple[Tensor, ...] | None) -> list[Tensor]:
        """The states after one step. input [B, I], [I], tokens [B] or one token; states [B, H] or [H], None: zeros."""
        weights = self._weights()
        dims = input.dim() + (input.dtype == torch.int64 and input.dim() in (0, 1))
        if dims not in (1, 2):
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if states is not None:
            self._check_state_dims(states)
        x = input if dims == 2 else input.unsqueeze(0)
        if states is None:
            like = weights[0].w_ih if x.dtype == torch.int64 else x
            zeros = torch.zeros((x.shape[0], self.hidden_size), dtype=like.dtype, device=x.device)
            states = (zeros,) * CELLS[self.cell].states
        elif dims == 1:
            states = tuple(s.unsqueeze(0) for s in states)
        self._check(x, states, weights[0])
        h0, c0 = (s.unsqueeze(0) for s in states) if len(states) == 2 else (states[0].unsqueeze(0), None)
        x = x.unsqueeze(0)
        outputs = self._run(x, h0, c0, weights)
        after = [s.squeeze(0) for s in outputs[1 : 1 + len(states)]]
        return after if dims == 2 else [s.squeeze(0) for s in after]

    def _run(self, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Weights]) -> tuple[Tensor, Any, Any]:
        how = (self.schedule, "full", self.backend)
        return functional.run(self.cell, x, h0, c0, weights, NO_ROWS, False, False, 0.0, *how)

    def _weights(self) -> tuple[Weights, ...]:
        """Asked for once: one that is parametrized is computed whenever it is asked for."""
        if weights := self._kept_weights():
            return weights
        cell, held = self.cell, self._parameters.values()
        weights = (Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh),)
        if misfit := checks.weights(cell, weights, 1):
            raise RuntimeError(misfit)
        if same(weights[0][:4], held) and type(weights[0].w_ih) is nn.Parameter and not torch.compiler.is_compiling():
            plan = shortcut.step(cell, weights[0][:4], self.hidden_size, schedule=self.schedule, backend=self.backend)
            self._kept = Kept(list(held), weights, *plan)
        return weights

    def _names_of_weights(self) -> list[str]:
        return ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]

    def _check_state_dims(self, states) -> None:
        if states[0].dim() not in (1, 2):
            name = type(self).__name__
            raise ValueError(f"{name}: Expected hidden to be 1D or 2D, got {states[0].dim()}D instead")

    def _check(self, x: Tensor, states: tuple[Tensor, ...], weights: Weights) -> None:
        if x.dtype != torch.int64 or x.dim() == 2:
            if x.shape[1] != self.input_size:
                raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}")
            check_dtype(x, weights.w_ih)
        for k, state in enumerate(states):
            if state.shape[0] != x.shape[0]:
                raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match hidden{k} batch size {state.shape[0]}")
            if state.dim() != 2 or state.shape[1] != self.hidden_size:
                got = f"got {state.size(1)}, expected {self.hidden_size}"
                raise RuntimeError(f"hidden{k} has inconsistent hidden_size: {got}")
        check_states(x, states, (weights.w_ih, weights.w_hh))


class RNNCell(_Cell):
    """torch.nn.RNNCell: one step of `functional.rnn`."""

    stock = nn.RNNCell
    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device=None, dtype=None, *, backend: str = "auto", schedule: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, 1, device, dtype, backend, schedule)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if (found := shortcut.run(self, input, hx)) is not None:
            return found
        return self._step(input, None if hx is None else (hx,))[0]

    @property
    def cell(self) -> str:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return f"rnn_{self.nonlinearity}"


class GRUCell(_Cell):
    """torch.nn.GRUCell: one step of `functional.gru`; reset_after=False as there."""

    stock = nn.GRUCell
    reset_after = True

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None,
        *, reset_after: bool = True, backend: str = "auto", schedule: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, 3, device, dtype, backend, schedule)
        self._set_options(backend=backend, schedule=schedule, reset_after=reset_after)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if (found := shortcut.run(self, input, hx)) is not None:
            return found
        return self._step(input, None if hx is None else (hx,))[0]

    @property
    def cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"


class LSTMCell(_Cell):
    """torch.nn.LSTMCell: one step of `functional.lstm`."""

    stock = nn.LSTMCell

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None,
        *, backend: str = "auto", schedule: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, 4, device, dtype, backend, schedule)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if (found := shortcut.run(self, input, hx)) is not None:
            return found
        h, c = self._step(input, hx)
        return h, c

    @property
    def cell(self) -> str:
        return "lstm"

    def _run(self, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Weights]) -> tuple[Tensor, Any, Any]:
        if not torch._C._is_any_autocast_enabled():
            return super()._run(x, h0, c0, weights)
        given = functional.autocast(x, h0, c0, weights, of_state=True)
        with torch.autocast(x.device.type, enabled=False):
            return super()._run(*given)

    def _check_state_dims(self, states) -> None:
        for k, state in enumerate(states):
            if state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{k}] to be 1D or 2D, got {state.dim()}D instead")
        if isinstance(states, Tensor):
            raise TypeError("lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor")
        if len(states) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
