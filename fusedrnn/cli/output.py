"""Standard output, which may take no letter beyond ASCII, or be a pipe that nobody reads any more."""

import io
import os
import sys


def show_anything() -> None:
    """What the encoding lacks is printed as a question mark."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def discard() -> None:
    """What is printed from now on goes nowhere, also what was not flushed yet."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
