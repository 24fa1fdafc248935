"""Loads the compiled kernels once, when the package is imported. It never raises and never prints: on failure it keeps
the reason, which the `cpu` backend and `python -m fusedrnn.info` give to whoever asks.

FUSEDRNN_LIBRARY names another library to load instead of the one that the build puts beside this file.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fusedrnn._elf import is_cut_off

# The schemas of the ops in csrc/bindings.cpp, as a number: `fusedrnn_cpu::version` returns the one it was built with.
# Raise both together.
ABI = 10

_REBUILD = "rebuild with `pip install -e . --no-build-isolation`"


def path() -> Path:
    """The library that is loaded, or would be."""
    return _path


def is_loaded() -> bool:
    return not _reason


def reason() -> str:
    """Why the compiled kernels cannot be used; empty when they can."""
    return _reason


def _load(library: Path) -> str:
    if not library.is_file():
        return f"{library} is not there; with a C++20 compiler installed, {_REBUILD}"
    try:
        if is_cut_off(library):
            return f"{library} does not load (the file is cut off); {_REBUILD}"
        torch.ops.load_library(library)
        built_for = torch.ops.fusedrnn_cpu.version()
    except (OSError, AttributeError, RuntimeError) as error:
        return f"{library} does not load ({error.__cause__ or error}); {_REBUILD}"
    if built_for != ABI:
        return f"{library} was built from other sources (its ops are version {built_for}, not {ABI}); {_REBUILD}"
    return ""


_path = Path(os.environ.get("FUSEDRNN_LIBRARY") or Path(__file__).with_name("_cpu.so"))
_reason = _load(_path)
