"""The compiled CPU kernels (csrc/cpu): the whole time loop of a layer in one call, forward and backward."""

from __future__ import annotations

import torch

from fusedrnn import _extension
from fusedrnn.backends.base import Backend, Problem


class CpuBackend(Backend):
    name = "cpu"
    devices = frozenset(("cpu",))
    dtypes = frozenset((torch.float32, torch.float64))
    cells = frozenset(("rnn_tanh", "rnn_relu", "gru", "lstm"))
    features = frozenset(("bidirectional", "tokens", "packed", "lengths"))

    def unavailable_reason(self) -> str | None:
        return None if _extension.is_loaded() else f"the compiled library is missing: {_extension.reason()}"

    def schedule(self, problem: Problem) -> str:
        if problem.schedule != "auto":
            return problem.schedule
        return "hoisted"
