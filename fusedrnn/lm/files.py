"""Atomic writes: a reader, or a crash, sees the old file or the new one and never half of either."""

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write data under a temporary name in path's folder, flush it to the disk, and rename it over path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
