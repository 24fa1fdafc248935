"""torch's own recurrent kernels: oneDNN on the CPU, cuDNN on a GPU."""

from __future__ import annotations

import torch

from fusedrnn.backends.base import Backend, Problem


class TorchBackend(Backend):
    name = "torch"
    devices = frozenset(("cpu", "cuda"))
    dtypes = frozenset((torch.float32,))

    def unavailable_reason(self) -> str | None:
        return "not written yet"

    def schedule(self, problem: Problem) -> str:
        return "hoisted"

    def faster_than_cpu_kernel(self, problem: Problem) -> bool:
        """The measured rule by which `auto` prefers this backend to the compiled kernels on the CPU."""
        return False
