"""What layers and cells share: the options that torch.nn does not have, and checks of states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusedrnn import checks, dispatch, functional

NO_ROWS = functional.Rows()


class Options(nn.Module):
    """The options torch.nn does not have. A default is kept on the class, so that pickles of either kind fit."""

    backend = "auto"
    schedule = "auto"

    def _set_options(self, **options) -> None:
        dispatch.check_backend(options["backend"])
        if misfit := checks.options(0.0, options["schedule"]):
            raise ValueError(misfit)
        for name, value in options.items():
            if value != getattr(self, name):
                setattr(self, name, value)

    def extra_repr(self) -> str:
        shown = (f", {name}={getattr(self, name)}" for name in ("reset_after", "schedule", "backend")
                 if name in self.__dict__ and getattr(self, name) != getattr(type(self), name))  # fmt: skip
        return super().extra_repr() + "".join(shown)


def check_states(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for what, tensors in (("hidden", states), ("parameter", weights)):
        for tensor in tensors:
            if tensor.device != x.device:
                raise RuntimeError(
                    f"Input and {what} tensors are not at the same device, "
                    f"found input tensor at {x.device} and {what} tensor at {tensor.device}"
                )
    for state in states:
        check_dtype(state, weights[0])


def check_dtype(tensor: Tensor, weight: Tensor) -> None:
    if tensor.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        got, wanted = (t.type().rpartition(".")[2].removesuffix("Tensor") for t in (tensor, weight))
        raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {got} and {wanted}")
