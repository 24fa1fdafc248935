"""`rnn`, `gru`, `lstm`: the cells as functions of tensors. Formulas, shapes and errors are documented here, once.

Shapes use the legend of `fusedrnn.cells`, and L for layers. All three take

    x              [T, B, I] floats ([B, T, I] with batch_first), any strides, or int64 tokens, the same without I, each
                   standing for a one-hot row (none is built); with batch_sizes [R, I] or [R]
    h0             [L*D, B, P], or None for zeros; P is H where there is no projection
    weights        a `Weights` for each layer and direction: layer 0 forward, layer 0 reverse, layer 1 ...; order and
                   shapes are torch.nn's, the input of a layer above the first is [T, B, D*P]
    bidirectional  D = 2; a row of y holds the forward h, then the reverse h. The reverse weights may have another H
                   and P than the forward ones
    dropout        probability of zeroing an element of the output of every layer but the last; 0 in evaluation. On the
                   CPU the masks are torch.nn's under the same seed
    batch_sizes    int64 [T] on the CPU: x is the data of a torch.nn.utils.rnn.PackedSequence with these sizes
    lengths        int64 [B], any order: row (t, b) takes part iff t < lengths[b]. The other rows of y are zero, those
                   of x get no gradient, and the state passes through them
    resets         bool [T, B] ([B, T] with batch_first): the state is zero before step t, where row (t, b) takes part
    schedule       "hoisted": x W_ih of all steps in one GEMM before the loop; "concat": [x, h] [W_ih; W_hh] in each
                   step; "auto": the backend's measured rule
    memory         "full": the gates of every step are kept for backward; "lean": backward computes them again, which
                   takes longer and, for an LSTM, less than half the memory
    backend        "auto", or a name in `fusedrnn.dispatch.REGISTRY`

and return y [T, B, D*P] ([B, T, D*P] with batch_first, packed [R, D*P]) and h_n [L*D, B, P].

Where the directions differ in H or P, a layer is an op call for each: D*P above reads P + P_reverse, and every state is
a pair, ([L, B, P], [L, B, P_reverse]). h_n and c_n are such pairs for equal sizes too, where h0 or c0 is given as one.

They raise ValueError where an argument does not fit (argument, expected, got), IndexError for a token outside the
vocabulary, and BackendError with every backend's reasons where none, or not the one named, can run the problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fusedrnn import checks, library, stack, states
from fusedrnn.call import Weights
from fusedrnn.cells import CELLS
from fusedrnn.stack import Rows
from fusedrnn.states import State


def rnn(
    x: Tensor,
    h0: State | None,
    weights: Sequence[Weights],
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    schedule: str = "auto",
    memory: str = "full",
    backend: str = "auto",
) -> tuple[Tensor, Tensor | Any]:
    r"""The plain recurrent network of Elman 1990.

        h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)          act: tanh, or relu

    Returns y (h of every step) and h_n. Arguments, shapes and errors: see the module's docstring.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    cell = f"rnn_{nonlinearity}"
    rows, how = Rows(batch_sizes, lengths, resets), (schedule, memory, backend)
    y, h_n, _ = _checked(cell, x, h0, None, weights, rows, bidirectional, batch_first, dropout, *how)
    return y, h_n


def gru(
    x: Tensor,
    h0: State | None,
    weights: Sequence[Weights],
    *,
    reset_after: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    schedule: str = "auto",
    memory: str = "full",
    backend: str = "auto",
) -> tuple[Tensor, Tensor | Any]:
    r"""The gated recurrent unit.

        r = sigmoid(x W_ir^T + b_ir + h W_hr^T + b_hr)          reset gate
        z = sigmoid(x W_iz^T + b_iz + h W_hz^T + b_hz)          update gate
        n = tanh(x W_in^T + b_in + r * (h W_hn^T + b_hn))       candidate
        h = (1 - z) * n + z * h

    reset_after=False is the unit as Cho et al. 2014 (arXiv:1406.1078) print it, the reset gate before the product:
    n = tanh(x W_in^T + b_in + (r * h) W_hn^T + b_hn). The stacking of the gates (r, z, n) and the place of b_hn are
    those of torch.nn.GRU, which has no such option.

    Returns y (h of every step) and h_n. Arguments, shapes and errors: see the module's docstring.
    """
    cell = "gru" if reset_after else "gru_reset_before"
    rows, how = Rows(batch_sizes, lengths, resets), (schedule, memory, backend)
    y, h_n, _ = _checked(cell, x, h0, None, weights, rows, bidirectional, batch_first, dropout, *how)
    return y, h_n


def lstm(
    x: Tensor,
    hx: tuple[State, State] | None,
    weights: Sequence[Weights],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    schedule: str = "auto",
    memory: str = "full",
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor | Any, Tensor | Any]]:
    r"""The long short-term memory of Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.

        i = sigmoid(x W_ii^T + b_ii + h W_hi^T + b_hi)          input gate
        f = sigmoid(x W_if^T + b_if + h W_hf^T + b_hf)          forget gate
        g = tanh(x W_ig^T + b_ig + h W_hg^T + b_hg)             candidate
        o = sigmoid(x W_io^T + b_io + h W_ho^T + b_ho)          output gate
        c = f * c + i * g
        h = o * tanh(c)                                         with a projection: h = (o * tanh(c)) w_hr^T

    hx is (h0, c0), c0 [L*D, B, H]; the projection w_hr [P, H] (Sak et al. 2014, arXiv:1402.1128) is part of `Weights`.
    Returns y (h of every step) and (h_n, c_n). Arguments, shapes and errors: see the module's docstring.
    """
    if hx is not None and len(hx) != 2:
        raise ValueError(f"hx: expected (h0, c0), got {len(hx)} tensors")
    h0, c0 = (None, None) if hx is None else hx
    rows, how = Rows(batch_sizes, lengths, resets), (schedule, memory, backend)
    y, h_n, c_n = _checked("lstm", x, h0, c0, weights, rows, bidirectional, batch_first, dropout, *how)
    return y, (h_n, c_n)


def _checked(cell, x, h0, c0, weights, rows, bidirectional, batch_first, dropout, schedule, memory, backend):
    """`run` over what a user passed: check it, and supply zero states."""
    D = 2 if bidirectional else 1
    _raise(checks.options(dropout, schedule, memory) or checks.weights(cell, weights, D))
    _raise(checks.rows(rows, x, batch_first))
    w = weights[0]
    packed = rows.batch_sizes is not None
    tokens = x.dtype == torch.int64
    sizes = x.shape[: 1 if packed else 2]
    B = int(rows.batch_sizes[0]) if packed else sizes[0 if batch_first else 1]
    I, gates = w.w_ih.shape[1], len(CELLS[cell].gates)
    P, H = [one.w_hh.shape[1] for one in weights[:D]], [one.w_ih.shape[0] // gates for one in weights[:D]]
    given_apart = any(isinstance(state, tuple | list) for state in (h0, c0))
    apart = D == 2 and (given_apart or P[0] != P[1] or H[0] != H[1])
    shapes = [states.shape(len(weights), B, width if apart else width[0]) for width in (P, H)]
    device = w.w_ih.device
    cast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(device.type)
    dtype = None if cast and w.w_ih.dtype != torch.float64 else w.w_ih.dtype
    _raise(checks.tensor("x", x, sizes if tokens else (*sizes, I), torch.int64 if tokens else dtype, device))
    like = w.w_ih if tokens else x
    h0 = states.zeros(like, shapes[0]) if h0 is None else h0
    _raise(checks.state("h0", h0, shapes[0], dtype, device))
    if cell == "lstm":
        c0 = states.zeros(like, shapes[1]) if c0 is None else c0
        _raise(checks.state("c0", c0, shapes[1], dtype, device))
    return run(cell, x, h0, c0, weights, rows, bidirectional, batch_first, dropout, schedule, memory, backend)


def _raise(misfit: str) -> None:
    if misfit:
        raise ValueError(misfit)


def run(
    cell: str,
    x: Tensor,
    h0: State,
    c0: State | None,
    weights: Sequence[Weights],
    rows: Rows,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    schedule: str,
    memory: str,
    backend: str,
) -> tuple[Tensor, Any, Any]:
    """All layers, over arguments that were checked. Returns y, h_n and c_n in the form of h0 and c0.

    c_n is empty where the cell has none.
    """
    batch_major = batch_first and rows.batch_sizes is None
    if batch_major:
        x = x.transpose(0, 1)
    if batch_first and rows.resets is not None:
        rows = rows._replace(resets=rows.resets.transpose(0, 1))
    if torch._C._is_any_autocast_enabled():
        x, h0, c0, weights = autocast(x, h0, c0, weights, of_state=CELLS[cell].op == "gru")
    how = (rows, 2 if bidirectional else 1, batch_major, schedule, memory, backend)
    if not dropout and (found := library.run(cell, x, h0, c0, weights, *how)):
        return found
    return stack.run(cell, x, h0, c0, weights, *how, dropout)


def autocast(x: Tensor, h0: State, c0: State | None, weights: Sequence[Weights], of_state: bool) -> tuple:
    """Cast as torch's autocast does; of_state: on the CPU to the state's dtype where that is wider."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or weights[0].w_ih.dtype == torch.float64:
        return x, h0, c0, weights
    dtype = torch.get_autocast_dtype(device)
    if of_state and device == "cpu":
        state = h0 if c0 is None else c0
        dtype = torch.promote_types(dtype, (state if isinstance(state, Tensor) else state[0]).dtype)

    def cast(tensor):
        return tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor

    weights = tuple(Weights._make(map(cast, w)) for w in weights)
    return cast(x), states.mapped(cast, h0), states.mapped(cast, c0), weights
