"""Processes that end together with all they started: what lives on would run beside timings."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

GRACE = 2  # seconds between SIGTERM and SIGKILL


def run(command: Sequence[str | Path], seconds: float | None = None, **options) -> subprocess.CompletedProcess:
    """subprocess.run in a process group of its own, of which nothing is left. Raises TimeoutExpired, with all that was
    said, as text."""
    with _sigterm_kept() as let_come, subprocess.Popen(command, text=True, process_group=0, **options) as process:
        try:
            let_come()
            said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as late:
            _end(process)
            late.output, late.stderr = process.communicate()
            raise
        finally:
            _end(process)
    return subprocess.CompletedProcess(command, process.returncode, *said)


def captured(command: Sequence[str | Path], seconds: float | None = None, **options) -> subprocess.CompletedProcess:
    """The same with its output."""
    return run(command, seconds, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[Callable[[], None]]:
    """Keeps SIGTERM until what is given is called: what has begun and has no name yet could not be ended."""
    came: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda *_: came.append(1))

    def let_come() -> None:
        signal.signal(signal.SIGTERM, handler)
        if came:
            came.clear()
            signal.raise_signal(signal.SIGTERM)

    try:
        yield let_come
    finally:
        let_come()


def leave_on_sigterm() -> None:
    """Has this process leave by an exception, in which `run` ends what it began: that is in other groups."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
