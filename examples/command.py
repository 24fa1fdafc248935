"""The command line of every program here: `python examples/NAME.py [--quick]`."""

import argparse
import sys
from collections.abc import Callable

from fusedrnn.lm import BadInput


def run(program: Callable[[bool], object]) -> None:
    """Call it with whether --quick was asked for. What was wrong with the input is said in one line, with exit status
    2; help is the docstring of the program's file.
    """
    about = program.__globals__["__doc__"]  # type: ignore[attr-defined]
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller run, of some seconds")
    arguments = parser.parse_args()
    try:
        program(arguments.quick)
    except BadInput as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        sys.exit(2)
