"""Loads the compiled CUDA kernels (csrc/cuda) where torch can use a GPU. Like `_extension` it never raises and never
prints: on failure it keeps the reason.

They are C functions that take addresses and know nothing of torch or Python: one build serves every version of both,
and one of the same sources for the CPU, by way of csrc/cuda/host, runs all that is above them where there is no GPU.
FUSEDRNN_CUDA_LIBRARY names such a library, or another one, to be loaded whatever torch can use.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

from fusedrnn._elf import is_cut_off

_INTERFACE = 5  # as interface_number in csrc/cuda/kernels.cuh
_FUNCTIONS = {
    "forward": (ctypes.c_char_p, 9),
    "backward": (ctypes.c_char_p, 9),
    "forward_hidden": (ctypes.c_int64, 7),
    "backward_hidden": (ctypes.c_int64, 7),
    "forward_needs": (ctypes.c_int64, 10),
    "backward_needs": (ctypes.c_int64, 10),
    "ctas": (ctypes.c_int64, 0),
    "missing": (ctypes.c_char_p, 0),
    "interface": (ctypes.c_int64, 0),
    "on_host": (ctypes.c_int64, 0),
    "sources": (ctypes.c_char_p, 0),
}  # what each returns, and how many arguments of 64 bits it takes


def path() -> Path:
    """The library that is loaded, or would be."""
    return _path


def reason() -> str:
    """Why the kernels cannot be used; empty when they can."""
    return _reason


def function(name: str):
    """The function fusedrnn_cuda_{name}, where the library is loaded."""
    return _functions[name]


def _load(library: Path, named: bool) -> str:
    if not named and torch.version.cuda is None:
        return "torch is built without CUDA"
    if not library.is_file():
        return f"{library} is not there; with nvcc installed, FUSEDRNN_BUILD=cuda pip install -e . --no-build-isolation"
    try:
        if is_cut_off(library):
            return f"{library} does not load (the file is cut off)"
        loaded = ctypes.CDLL(str(library))
        for name, (result, arguments) in _FUNCTIONS.items():
            found = getattr(loaded, f"fusedrnn_cuda_{name}")
            found.restype, found.argtypes = result, (ctypes.c_int64,) * arguments
            _functions[name] = found
    except (OSError, AttributeError) as error:
        return f"{library} does not load ({error})"
    if (found := _functions["interface"]()) != _INTERFACE:
        return f"{library} has interface {found}, not {_INTERFACE}: build it again"
    return ""


_functions: dict = {}
_named = os.environ.get("FUSEDRNN_CUDA_LIBRARY")
_path = Path(_named or Path(__file__).with_name("_cuda.so"))
_reason = _load(_path, bool(_named))
