"""The rule of precision: how far from float64 a result may be."""

from __future__ import annotations

import torch
from torch import Tensor


def excess(ours: Tensor, theirs: Tensor, exact: Tensor, dtype: torch.dtype) -> str:
    """What breaks the rule of precision, or "": our distances from float64 may be at most twice those of torch at the
    same dtype, or 4 eps of the tensor's scale where torch is exact.

    Sizes are root mean squares. The largest of some thousand rounding errors varies by more than a factor of two
    between two sums of equal quality, so for it the rule is twice as wide.
    """
    if not exact.numel():
        return ""
    for kind, wider in (("rms", 1), ("max", 2)):
        error, their_error, scale = (norm(t, kind) for t in (ours, theirs, exact))
        allowed = wider * max(2 * their_error, 4 * torch.finfo(dtype).eps * scale)
        if not error <= allowed:
            return f"{kind} error {error:.3g}, allowed {allowed:.3g}, torch's {their_error:.3g}"
    return ""


def norm(values: Tensor, kind: str) -> float:
    if not values.numel():
        return 0.0
    return float(values.abs().max() if kind == "max" else values.square().mean().sqrt())
