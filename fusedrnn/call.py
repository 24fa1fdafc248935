"""`Call`: the operands and options of one layer over one sequence, named. The raw ops pass them flat, see ops.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusedrnn.cells import CELLS, CellSpec


class Weights(NamedTuple):
    """One direction of one layer, as torch.nn names them: [G*H, I], [G*H, P], [G*H], [G*H], [P, H]. None: absent."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None


class Call(NamedTuple):
    """One layer over one sequence.

    x            [T, B, I] floats or [T, B] int64 tokens, any strides; packed: [R, I] or [R]
    h0, c0       [D, B, P] and [D, B, H]; c0 is None where the cell has no cell state
    weights      one entry a direction
    reverse      per direction, whether it runs from the last step to the first
    row_offsets  packed: int64 [T], row (t, b) is row_offsets[t] + b; else None
    lengths      int64 [B]; row (t, b) is active iff t < lengths[b]; None: all are. Packed input always has it
    resets       bool [T, B]; the state is set to zero before step t; None: never
    batch_first  y (and the gradient of x) lie batch-major in memory; the shapes here are time-major all the same
    """

    cell: str
    x: Tensor
    h0: Tensor
    c0: Tensor | None
    weights: tuple[Weights, ...]
    reverse: tuple[bool, ...]
    row_offsets: Tensor | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    batch_first: bool = False
    schedule: str = "auto"
    save: str = "none"
    precision: str = "ieee"

    @property
    def spec(self) -> CellSpec:
        return CELLS[self.cell]

    @property
    def tokens(self) -> bool:
        return self.x.dtype == torch.int64

    @property
    def dtype(self) -> torch.dtype:
        return self.weights[0].w_ih.dtype

    @property
    def T(self) -> int:
        return self.x.shape[0] if self.row_offsets is None else self.row_offsets.shape[0]

    @property
    def B(self) -> int:
        return self.h0.shape[1]

    @property
    def R(self) -> int:
        return self.T * self.B if self.row_offsets is None else self.x.shape[0]

    @property
    def D(self) -> int:
        return len(self.weights)

    @property
    def I(self) -> int:
        return self.weights[0].w_ih.shape[1]

    @property
    def H(self) -> int:
        return self.weights[0].w_ih.shape[0] // len(self.spec.gates)

    @property
    def P(self) -> int:
        return self.weights[0].w_hh.shape[1]

    @property
    def direction(self) -> int:
        """0: forward, 1: reverse, 2: both."""
        return 2 if len(self.reverse) == 2 else int(self.reverse[0])

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.x.shape[: 1 if self.row_offsets is not None else 2], self.D * self.P)

    def new_rows(self, width: int) -> Tensor:
        """An uninitialised [T, B, width] (packed: [R, width]) in the memory order asked for.

        No view: autograd lets nobody write to one that a Function returned.
        """
        shape = (*self.y_shape[:-1], width)
        like = self.weights[0].w_ih
        if self.batch_first and self.row_offsets is None:
            return like.new_empty_strided(shape, (width, shape[0] * width, 1))
        return like.new_empty(shape)

    def in_order(self, rows: Tensor) -> Tensor:
        """`rows`, which are dense as they are numbered, in the memory order asked for."""
        return self.new_rows(rows.shape[-1]).copy_(rows) if self.batch_first else rows
