"""The gradients of one direction's weights: large products and sums over all rows, after the loop over time.

N is the number of rows, which are zero where they are not active.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusedrnn.call import Call

# Of the gates in their order, one or more at a time: dgates as their rows of W_hh see them [N, k*H], and the state that
# those rows multiply [N, P].
Recurrent = Sequence[tuple[Tensor, Tensor]]


def recurrent(call: Call, dgates_h: Tensor, before: Tensor, reset_h: Tensor | None) -> Recurrent:
    """Of dgates_h [N, G*H] and the state that each row started from; reset_h: r times it where W_hn multiplies that."""
    if reset_h is None:
        return ((dgates_h, before),)
    H = call.H
    return (dgates_h[:, : 2 * H], before), (dgates_h[:, 2 * H :], reset_h)


def of_weights(
    call: Call, x: Tensor, dgates: Tensor, recurrent: Recurrent, biases: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """dW_ih, dW_hh, db_ih, db_hh, in the dtype of dgates; no biases where the layer has none.

    x [N, I] or tokens [N], dgates as W_ih sees them [N, G*H]; biases: their gradients where they are known already.
    """
    if call.tokens:
        # index_add_ is not repeatable on a GPU; this sorts there.
        by_token = dgates.new_zeros(call.I, dgates.shape[1]).index_put_((x,), dgates, accumulate=True)
        dw_ih = by_token.t().contiguous()
    else:
        dw_ih = dgates.t() @ x
    dw_hh = _joined([dgates_h.t() @ state for dgates_h, state in recurrent])
    if call.weights[0].b_ih is None:
        return dw_ih, dw_hh, None, None
    if biases is None:
        biases = dgates.sum(0), _joined([dgates_h.sum(0) for dgates_h, _ in recurrent])
    return dw_ih, dw_hh, *biases


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
