"""The cells: what each one computes per step, in which order its gates lie, and what its backward needs.

Legend used in shapes throughout the package:

    T  steps            I  input size                 G  gates stacked in `w_ih` (RNN 1, GRU 3, LSTM 4)
    B  batch            H  hidden size                D  directions (1 or 2)
    R  rows: T * B, time-major (row t * B + b), or the number of rows of a packed sequence
    P  size of the output and of `h`: the projection size where there is one, else H

`x` holds I features per row, or one int64 token per row standing for a one-hot row of width I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CellSpec:
    """One cell.

    name   what `cell=` takes
    op     the raw op that runs it: `fusedrnn::{op}_forward`
    gates  row blocks of `w_ih`, `w_hh`, `b_ih`, `b_hh`, top to bottom, as torch.nn stacks them
    saved  blocks of H values a row that forward keeps for backward, in the order of the tensor `saved`
    states 2 where the cell has a cell state `c` beside `h`
    """

    name: str
    op: str
    gates: tuple[str, ...]
    saved: tuple[str, ...]
    states: int = 1


CELLS = {
    spec.name: spec
    for spec in (
        CellSpec("rnn_tanh", "rnn", ("h",), ()),
        CellSpec("rnn_relu", "rnn", ("h",), ()),
        # (n, r, z, W_hn h): dgates for W_ih are windows 0..2, those for W_hh windows 1..3 of the same four blocks.
        CellSpec("gru", "gru", ("r", "z", "n"), ("n", "r", "z", "hn")),
        CellSpec("gru_reset_before", "gru", ("r", "z", "n"), ("n", "r", "z")),
        CellSpec("lstm", "lstm", ("i", "f", "g", "o"), ("i", "f", "g", "o"), states=2),
    )
}
OPS = ("rnn", "gru", "lstm")

SAVE = ("none", "full", "lean")
SCHEDULES = ("auto", "concat", "hoisted")
PRECISIONS = ("ieee", "tf32")
LEAN_CHUNK = 32  # save="lean" keeps `cells` at t = 0, LEAN_CHUNK, 2 LEAN_CHUNK, ... (the state before that step)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of gates, accumulators, `c` and of `h` inside a call: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def saved_shape(spec: CellSpec, save: str, directions: int, rows: int, hidden: int) -> tuple[int, ...]:
    """Shape of `saved`, in the dtype of the weights: [D, R, len(spec.saved), H]; empty unless save="full"."""
    if save != "full" or not spec.saved:
        return (0,)
    return (directions, rows, len(spec.saved), hidden)


def cells_shape(spec: CellSpec, save: str, directions: int, steps: int, rows: int, batch: int, hidden: int) -> tuple:
    """Shape of `cells`, in `state_dtype`: c of every row [D, R, H] (full), c before each chunk [D, C, B, H] (lean)."""
    if spec.states == 1 or save == "none":
        return (0,)
    if save == "full":
        return (directions, rows, hidden)
    return (directions, -(-steps // LEAN_CHUNK), batch, hidden)
