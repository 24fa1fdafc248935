"""RNN, GRU and LSTM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedrnn import checks, functional, shortcut, stack, states
from fusedrnn.call import Weights
from fusedrnn.modules.base import NO_ROWS, Kept, Options, check_dtype, check_states, same
from fusedrnn.modules.rnn_base import RNNBase


class _Recurrent(Options, RNNBase):
    """RNN, GRU and LSTM but for how they hold their state: one tensor, or (h, c)."""

    _flat_weights: list[Any]
    _name_tensor = ""  # torch.nn.RNN alone says "tensor" in the error about the number of dimensions

    memory = "full"

    def __init__(
        self, mode: str, *args, backend: str = "auto", schedule: str = "auto", memory: str = "full", **kwargs
    ) -> None:
        super().__init__(mode, *args, **kwargs)
        self._set_options(backend=backend, schedule=schedule, memory=memory)

    @property
    def cell(self) -> str:
        """The cell's name in `fusedrnn.cells.CELLS`."""
        return self.mode.lower()

    def forward(self, input, hx=None, *, lengths: Tensor | None = None, resets: Tensor | None = None):
        """As torch.nn: a batch, one sequence or a PackedSequence; returns the outputs in kind, and the last state.

        input may be int64 tokens: [T, B] ([B, T] with batch_first), [T], or a PackedSequence of them.

        Two arguments torch.nn does not have, for a batch: lengths, int64 [B] in any order, the steps of each sequence,
        past which y is zero and the state stays; resets, bool [T, B] ([B, T] with batch_first), where true the state
        returns to zero before that step. ValueError where they do not fit.
        """
        if lengths is None and resets is None and (found := shortcut.run(self, input, hx)) is not None:
            return found
        weights = self._checked_weights()
        rows = NO_ROWS if lengths is None and resets is None else stack.Rows(None, lengths, resets)
        if rows is not NO_ROWS and (
            isinstance(input, PackedSequence) or input.dim() + (input.dtype == torch.int64) < 3
        ):
            raise ValueError("lengths, resets: expected a batch of padded sequences, got one sequence or packed ones")
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, back = input
            hx = self._zeros(data, int(batch_sizes[0])) if hx is None else self.permute_hidden(hx, order)
            self._check(data, hx, batch_sizes)
            y, hx = self._run(data, hx, stack.Rows(batch_sizes), weights)
            return PackedSequence(y, batch_sizes, order, back), self.permute_hidden(hx, back)
        dims = input.dim() + (input.dtype == torch.int64 and input.dim() in (1, 2))
        if dims not in (2, 3):
            name = type(self).__name__
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D{self._name_tensor} instead")
        batch_dim = 0 if self.batch_first else 1
        if dims == 3:
            batch = input.shape[batch_dim]
            fits = weights is not None and self._fits(input) and (hx is None or self._state_fits(hx, batch))
            if hx is None:
                hx = self._zeros(input, batch)
            elif not fits:
                self._check_state_dims(hx, 3, "batched 3-D")
            if not fits:
                self._check(input, hx, None)
            if misfit := "" if rows is NO_ROWS else checks.rows(rows, input, self.batch_first):
                raise ValueError(misfit)
            return self._run(input, hx, rows, weights)
        input = input.unsqueeze(batch_dim)
        if hx is None:
            hx = self._zeros(input, 1)
        else:
            self._check_state_dims(hx, 2, "unbatched 2-D")
            hx = states.mapped(lambda state: state.unsqueeze(1), hx)
        self._check(input, hx, None)
        y, hx = self._run(input, hx, NO_ROWS, weights)
        return y.squeeze(batch_dim), states.mapped(lambda state: state.squeeze(1), hx)

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        if input.dtype != torch.int64 or input.dim() != (2 if batch_sizes is None else 1):
            super().check_input(input, batch_sizes)

    def _run(self, x: Tensor, hx, rows: stack.Rows, weights: tuple[Weights, ...] | None):
        h0, c0 = self._pair(hx)
        outputs = functional.run(
            self.cell,
            x,
            h0,
            c0,
            weights or self._weights(),
            rows,
            self.bidirectional,
            self.batch_first,
            self.dropout if self.training else 0.0,
            self.schedule,
            self.memory,
            self.backend,
        )
        return self._in_kind(*outputs)

    def _in_kind(self, y: Tensor, h_n: Tensor, c_n: Tensor):
        return y, (h_n, c_n) if self.mode == "LSTM" else h_n

    def _pair(self, hx) -> tuple[Tensor, Tensor | None]:
        return hx if self.mode == "LSTM" else (hx, None)

    def _fits(self, x: Tensor) -> bool:
        """Whether `_check` has nothing to say about x, told quickly."""
        w = self._flat_weights[0]
        fits = (x.dtype == w.dtype and x.shape[2] == self.input_size) or (x.dtype == torch.int64 and x.dim() == 2)
        return fits and x.numel() > 0 and x.device == w.device

    def _state_fits(self, hx, batch: int) -> bool:
        """And about a given state."""
        return self._is_state(hx, batch, self.proj_size or self.hidden_size)

    def _is_state(self, state, batch: int, width: int) -> bool:
        if type(state) is not Tensor:
            return False
        w = self._flat_weights[0]
        fits = state.shape == (len(self._all_weights), batch, width)
        return fits and state.dtype == w.dtype and state.device == w.device

    def _check(self, x: Tensor, hx, batch_sizes: Tensor | None) -> None:
        """As torch.nn checks, and then what it leaves to its kernels to find, or to overlook."""
        self.check_forward_args(x, hx, batch_sizes)
        if x.shape[1 if self.batch_first and batch_sizes is None else 0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if x.dtype != torch.int64:
            check_dtype(x, self._flat_weights[0])  # under autocast check_input does not
        for k, w in enumerate(self._flat_weights):
            if w is None:
                raise TypeError(f"expected Tensor as element {k} in argument 2, but got NoneType")
        given = [tensor for state in (hx if self.mode == "LSTM" else (hx,)) for tensor in self._tensors(state)]
        check_states(x, given, self._flat_weights)
        if misfit := "" if batch_sizes is None else checks.packed(batch_sizes, x.shape[0]):
            raise RuntimeError(misfit)

    def _update_flat_weights(self) -> None:
        """Follow parameters that were replaced, as by torch.func.functional_call; torch's own takes 8 us to look."""
        held = self._parameters
        if any(held.get(name) is not w for name, w in zip(self._flat_weights_names, self._flat_weights, strict=True)):
            self._init_flat_weights()

    def _checked_weights(self) -> tuple[Weights, ...] | None:
        """What `_weights` kept; else None, and _flat_weights is up to date."""
        if weights := self._kept_weights():
            return weights
        self._update_flat_weights()
        return None

    def _weights(self) -> tuple[Weights, ...]:
        """As `functional` takes them: layer by layer, forward before reverse."""
        self._update_flat_weights()
        flat, each = self._flat_weights, len(self._all_weights[0])
        weights = tuple(
            Weights(
                flat[k],
                flat[k + 1],
                flat[k + 2] if self.bias else None,
                flat[k + 3] if self.bias else None,
                flat[k + each - 1] if self.proj_size else None,
            )
            for k in range(0, len(flat), each)
        )
        if misfit := checks.weights(self.cell, weights, 2 if self.bidirectional else 1, not self._apart):
            raise RuntimeError(misfit)
        plain = all(type(w) is nn.Parameter for w in flat)  # not what a transform puts in their place
        if plain and same(flat, self._parameters.values()) and not torch.compiler.is_compiling():
            parameters = list(flat)
            self._kept = Kept(parameters, weights, *self._plan(parameters))
        return weights

    def _names_of_weights(self) -> list[str]:
        return self._flat_weights_names

    def _plan(self, parameters: list[Tensor]) -> shortcut.Plan:
        """The short way, where there is one."""
        if self._apart or self.proj_size or (self.dropout and self.training):
            return shortcut.Plan()
        return shortcut.layers(
            self.cell, parameters, self.input_size, self.hidden_size, bidirectional=self.bidirectional, bias=self.bias,
            batch_first=self.batch_first, schedule=self.schedule, memory=self.memory, backend=self.backend,
        )  # fmt: skip

    def _zeros(self, x: Tensor, batch: int):
        return self._zero_state(x, batch, self.proj_size or self.hidden_size)

    def _zero_state(self, x: Tensor, batch: int, width: int) -> states.State:
        like = self._flat_weights[0] if x.dtype == torch.int64 else x
        if self._apart:
            return states.zeros(like, states.shape(len(self._all_weights), batch, width))
        return like.new_zeros(len(self._all_weights), batch, width)

    def _check_state_dims(self, hx, dims: int, what: str) -> None:
        for state in self._tensors(hx):
            if state.dim() != dims:
                raise RuntimeError(f"For {what} input, hx should also be {dims}-D but got {state.dim()}-D tensor")


class RNN(_Recurrent):
    """torch.nn.RNN: h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh), act tanh or relu. See `functional.rnn`."""

    stock = nn.RNN
    _name_tensor = " tensor"

    def __init__(self, *args, **kwargs) -> None:
        _refuse_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)


class GRU(_Recurrent):
    """torch.nn.GRU, and with reset_after=False the textbook's. Formulas: `functional.gru`."""

    stock = nn.GRU
    reset_after = True

    def __init__(self, *args, reset_after: bool = True, **kwargs) -> None:
        _refuse_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)
        self._set_options(backend=self.backend, schedule=self.schedule, reset_after=reset_after)

    @property
    def cell(self) -> str:
        return "gru" if self.reset_after else "gru_reset_before"


class LSTM(_Recurrent):
    """torch.nn.LSTM, with its projection (proj_size). Formulas: `functional.lstm`."""

    stock = nn.LSTM

    def __init__(self, *args, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple:
        hidden = self.get_expected_hidden_size(input, batch_sizes)
        return (*hidden[:2], self.hidden_size) if self.proj_size else hidden

    def check_forward_args(self, input, hidden, batch_sizes) -> None:
        if batch_sizes is not None and input.dtype != torch.int64:
            check_dtype(input, self._flat_weights[0])  # torch.nn.LSTM finds this in packed input only at its GEMM
        self.check_input(input, batch_sizes)
        sizes = self.get_expected_hidden_size(input, batch_sizes), self.get_expected_cell_size(input, batch_sizes)
        for k in (0, 1):
            self.check_hidden_size(hidden[k], sizes[k], f"Expected hidden[{k}] size {{}}, got {{}}")
        if isinstance(hidden, Tensor):
            raise TypeError("lstm(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor")
        if len(hidden) != 2:
            raise RuntimeError("lstm expects two hidden states")

    def _state_fits(self, hx, batch: int) -> bool:
        return (
            type(hx) is tuple
            and len(hx) == 2
            and super()._state_fits(hx[0], batch)
            and self._is_state(hx[1], batch, self.hidden_size)
        )

    def _zeros(self, x: Tensor, batch: int):
        h0 = super()._zeros(x, batch)  # nobody writes to a state
        return h0, self._zero_state(x, batch, self.hidden_size) if self.proj_size else h0

    def _check_state_dims(self, hx, dims: int, what: str) -> None:
        got = [tensor.dim() for k in (0, 1) for tensor in self._tensors(hx[k])]
        if any(one != dims for one in got):
            got_text = ", ".join(f"{one}-D" for one in got)
            raise RuntimeError(f"For {what} input, hx and cx should also be {dims}-D but got ({got_text}) tensors")


def _refuse_projection(kwargs) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
