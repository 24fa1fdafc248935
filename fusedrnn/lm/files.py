"""Atomic writes: a reader, or a crash, sees the old file or the new one and never half of either."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes, keep: Path | None = None) -> None:
    """Write data under a temporary name in path's folder, flush it to the disk, and rename it over path. What was there
    is renamed to keep just before, if that is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
