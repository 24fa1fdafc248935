"""The state of a layer: a tensor, or, where each direction has a hidden size of its own, (forward, reverse)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = Tensor | Sequence[Tensor]


def mapped(function: Callable, state):
    """`function` of every tensor, in the form of `state`: one tensor, (forward, reverse), or (h, c) of either."""
    if isinstance(state, tuple | list):
        return tuple(mapped(function, part) for part in state)
    return function(state)


def shape(rows: int, batch: int, width: int | Sequence[int]) -> tuple:
    """[L*D, B, width], or where there is a width for each direction the [L, B, width] of both."""
    if isinstance(width, Sequence):
        return tuple((rows // len(width), batch, one) for one in width)
    return rows, batch, width


def zeros(like: Tensor, shape: tuple) -> State:
    return tuple(map(like.new_zeros, shape)) if isinstance(shape[0], tuple) else like.new_zeros(shape)


def layers(state: State, directions: int) -> Sequence[State]:
    """The state of each layer: [D, B, P], or [1, B, P] of both directions."""
    if isinstance(state, Tensor):
        return state.split(directions)
    return list(zip(*(one.split(1) for one in state), strict=True))


def joined(states: Sequence[State]) -> State:
    """Undoes `layers`."""
    if isinstance(states[0], Tensor):
        return torch.cat(tuple(states))  # type: ignore[arg-type]
    return tuple(map(torch.cat, zip(*states, strict=True)))
