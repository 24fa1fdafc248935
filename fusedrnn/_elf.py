"""Shared libraries of Linux, before they are loaded."""

from __future__ import annotations

import os
import struct
from pathlib import Path


def is_cut_off(library: Path) -> bool:
    """Whether an ELF file ends before its table of sections does, which linkers write last. The loader would map it all
    the same, and the process would end by SIGBUS where it reads beyond the end. False for what is no 64-bit ELF file.
    """
    with library.open("rb") as file:
        header = file.read(64)
        size = os.fstat(file.fileno()).st_size
    if not header.startswith(b"\x7fELF\x02\x01"):
        return False
    if len(header) < 64:
        return True
    (offset,), (entry, entries) = struct.unpack_from("<Q", header, 0x28), struct.unpack_from("<HH", header, 0x3A)
    return size < offset + entry * entries
