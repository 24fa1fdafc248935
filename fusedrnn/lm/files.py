"""Atomic writes: a reader, or a crash, sees the old file or the new one and never half of either. And locks."""

import contextlib
import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def write_atomically(path: Path, data: bytes, keep: Path | None = None) -> None:
    """Write data under a temporary name in path's folder, flush it to the disk, and rename it over path. What was there
    is renamed to keep just before, if that is given. Raises OSError, which names path.
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
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


def lock(folder: Path) -> int | None:
    """A descriptor: until it is closed, or the process has ended, nobody else gets one of this folder. None where the
    platform or the file system has no such locks. Raises BlockingIOError where someone holds it.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
