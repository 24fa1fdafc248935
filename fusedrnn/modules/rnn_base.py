"""torch.nn.RNNBase, with a hidden size for each direction."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from fusedrnn import states


class RNNBase(nn.RNNBase):
    """torch.nn.RNNBase, but that with bidirectional=True hidden_size may be a pair, (forward, reverse).

    Parameters keep their names: weight_ih_l0 [G*H, I], weight_ih_l0_reverse [G*H_reverse, I], and above the first layer
    I = H + H_reverse. Each is drawn from U(-1/sqrt(H), 1/sqrt(H)) with the H of its direction.
    """

    hidden_size: Any
    _apart = False  # whether each direction has a hidden size, and a state, of its own

    def __init__(self, mode: str, *args, **kwargs) -> None:
        sizes = args[1] if len(args) > 1 else kwargs.get("hidden_size")
        if isinstance(sizes, tuple):
            given = inspect.signature(nn.RNNBase).bind(mode, *args, **kwargs).arguments
            if given.get("bidirectional"):
                self._init_apart(sizes, given)
                return
        super().__init__(mode, *args, **kwargs)

    def _init_apart(self, sizes: tuple, given: dict[str, Any]) -> None:
        _check_sizes(sizes, given.get("proj_size"))
        # All but the shapes is as for one size; on the meta device nothing is drawn.
        super().__init__(**given | {"hidden_size": sizes[0], "device": "meta"})
        gates = getattr(self, self._all_weights[0][0]).shape[0] // sizes[0]
        for k, (names, H) in enumerate(zip(self._all_weights, itertools.cycle(sizes), strict=False)):
            I = self.input_size if k < 2 else sum(sizes)
            shapes = (gates * H, I), (gates * H, H), (gates * H,), (gates * H,)
            for name, shape in zip(names, shapes, strict=False):
                weight = torch.empty(shape, device=given.get("device"), dtype=given.get("dtype"))
                setattr(self, name, nn.Parameter(weight))
        self.hidden_size, self._apart = sizes, True
        self._init_flat_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if not self._apart:
            super().reset_parameters()
            return
        for names, H in zip(self._all_weights, itertools.cycle(self.hidden_size), strict=False):
            for name in names:
                nn.init.uniform_(getattr(self, name), -1 / math.sqrt(H), 1 / math.sqrt(H))

    def flatten_parameters(self) -> None:
        if not self._apart:  # cuDNN has one size
            super().flatten_parameters()

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple:
        return states.shape(*super().get_expected_hidden_size(input, batch_sizes))

    def check_hidden_size(
        self, hx: Any, expected_hidden_size: tuple, msg: str = "Expected hidden size {}, got {}"
    ) -> None:
        if not self._apart:
            super().check_hidden_size(hx, expected_hidden_size, msg)
        elif states.mapped(Tensor.size, hx) != expected_hidden_size:
            raise RuntimeError(msg.format(expected_hidden_size, states.mapped(lambda state: list(state.size()), hx)))

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        return hx if permutation is None else states.mapped(lambda state: state.index_select(1, permutation), hx)

    def _tensors(self, state: Any) -> Any:
        """Those of h, or of c: one, or one a direction."""
        return state if self._apart and isinstance(state, tuple | list) else (state,)


def _check_sizes(sizes: tuple, proj_size: int | None) -> None:
    if len(sizes) != 2:
        raise ValueError(f"hidden_size should be one size or two, (forward, reverse), got: {sizes}")
    for size in sizes:
        if not isinstance(size, int):
            raise TypeError(f"hidden_size should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError("hidden_size must be greater than zero")
    if proj_size:
        raise ValueError(f"proj_size should be zero where hidden_size has two sizes, got: {proj_size}")
