"""The gradients of one direction's weights: large products and sums over all rows, after the loop over time."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedrnn.call import Call


def of_weights(
    call: Call, x: Tensor, dgates: Tensor, dgates_h: Tensor, before: Tensor, reset_h: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """dW_ih, dW_hh, db_ih, db_hh, in the dtype of dgates; no biases where the layer has none.

    Of N rows, zero where they are not active: x [N, I] or tokens [N], dgates as W_ih and as W_hh sees them [N, G*H],
    before, the state each started from, [N, P], and, where W_hn multiplies that, r times it.
    """
    if call.tokens:
        # index_add_ is not repeatable on a GPU; this sorts there.
        by_token = dgates.new_zeros(call.I, dgates.shape[1]).index_put_((x,), dgates, accumulate=True)
        dw_ih = by_token.t().contiguous()
    else:
        dw_ih = dgates.t() @ x
    if reset_h is None:
        dw_hh = dgates_h.t() @ before
    else:
        H = call.H
        dw_hh = torch.cat((dgates_h[:, : 2 * H].t() @ before, dgates_h[:, 2 * H :].t() @ reset_h))
    if call.weights[0].b_ih is None:
        return dw_ih, dw_hh, None, None
    return dw_ih, dw_hh, dgates.sum(0), dgates_h.sum(0)
