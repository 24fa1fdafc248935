"""Which backend runs a problem: the registry, `select`, and `explain`.

Adding a backend is one file under `backends/` and one line in `REGISTRY`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import torch

from fusedrnn import fastest
from fusedrnn.backends.base import Backend, BackendError, Problem
from fusedrnn.backends.cpu import CpuBackend
from fusedrnn.backends.cuda import CudaBackend
from fusedrnn.backends.reference import ReferenceBackend
from fusedrnn.backends.torch import TorchBackend
from fusedrnn.backends.triton import TritonBackend

_BACKENDS = (CpuBackend(), CudaBackend(), TritonBackend(), TorchBackend(), ReferenceBackend())
REGISTRY: dict[str, Backend] = {backend.name: backend for backend in _BACKENDS}


_environment = os.environ.get("FUSEDRNN_BACKEND", "")
default = ""  # what the innermost use_backend names


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the block every layer whose own `backend` is "auto" runs on `name`. ValueError for an unknown name.

    Like torch.backends' flags it holds for the whole process, and compiled code is guarded on it.
    """
    global default
    check_backend(name)
    before, default = default, name
    try:
        yield
    finally:
        default = before


def check_backend(name: str) -> None:
    if name != "auto" and name not in REGISTRY:
        raise ValueError(f"backend: expected one of {', '.join(('auto', *REGISTRY))}, got {name!r}")


def select(problem: Problem, backend: str = "auto") -> str:
    """The name of the backend that runs `problem`.

    A backend that was named, here, by `use_backend` or by FUSEDRNN_BACKEND, is taken or refused, never replaced.
    Raises BackendError with every backend's reasons, of one that was named first.
    """
    backend = requested(backend)
    check_backend(backend)
    if backend == "auto":
        for name in preference(problem):
            if not REGISTRY[name].not_supported_reasons(problem):
                return name
    elif not REGISTRY[backend].not_supported_reasons(problem):
        return backend
    who = "no backend can" if backend == "auto" else f"backend {backend!r} cannot"
    raise BackendError(f"{who} run {problem}. {_all_reasons(problem, backend)}")


def requested(backend: str) -> str:
    """`backend`; where that is "auto", what `use_backend` or else FUSEDRNN_BACKEND, when it was imported, names."""
    if backend != "auto":
        return backend
    return default or _environment or "auto"


def preference(problem: Problem) -> tuple[str, ...]:
    """Backends from the fastest to the slowest, as measured on this kind of device (NOTES.md of benchmarks).

    What was not measured on a GPU goes to torch's library, cuDNN, and what that lacks to the kernels in the order in
    which they are expected to be fast, those last that wait through memory.
    """
    if problem.device != "cuda":
        return ("cpu", "torch", "reference")
    measured = fastest.ON_GPU.get(_capability(), ())
    first = [sizes.backend for sizes in measured if sizes.covers(problem)][:1]
    others = sorted(("cuda", "triton"), key=lambda name: REGISTRY[name].waits_through_memory(problem))
    return tuple(dict.fromkeys((*first, "torch", *others, "reference")))


@functools.cache
def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


def explain(problem: Problem, backend: str = "auto") -> str:
    """One line on what would run `problem` and which schedule it takes, then every other backend's reasons."""
    name = select(problem, backend)
    detail = REGISTRY[name].detail(problem)
    chosen = f"{problem}: {name}, schedule {REGISTRY[name].schedule(problem)}" + (f", {detail}" if detail else "")
    others = [f"  {other.name}: {'; '.join(other.not_supported_reasons(problem)) or 'could run it'}"
              for other in REGISTRY.values() if other.name != name]  # fmt: skip
    return "\n".join([chosen, *others])


def _all_reasons(problem: Problem, first: str) -> str:
    return "; ".join(
        f"{b.name}: {', '.join(b.not_supported_reasons(problem)) or 'can run it'}"
        for b in sorted(REGISTRY.values(), key=lambda b: b.name != first)
    )
