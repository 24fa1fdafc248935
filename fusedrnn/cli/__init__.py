"""The command line: `fusedrnn train | eval | sample | plot | bench | info`, also as `python -m fusedrnn.cli`.

Whatever the user got wrong is said in one line on standard error, and the exit status is 2.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from fusedrnn import BackendError
from fusedrnn.cli import bench, evaluate, output, plot, sample, train
from fusedrnn.cli.arguments import Parser
from fusedrnn.lm.errors import BadInput

EXTRAS = dict.fromkeys(("matplotlib", "platformdirs", "rich", "safetensors"), "lm") | {"tensorboard": "tensorboard"}

TOO_LARGE = re.compile("can't allocate memory|out of memory|calculation overflowed|Overflow when unpacking")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. argparse's own errors and --help leave through SystemExit."""
    output.show_anything()
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
        return status
    except (BadInput, BackendError) as error:
        return _fail(str(error))
    except BrokenPipeError:
        output.discard()
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'system'}: {error.strerror}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("fusedrnn", "torch"):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            return _fail(f"the package {error.name} is missing: pip install 'fusedrnn[{EXTRAS[error.name]}]'")
        return _fail(f"a package cannot be imported: {error}")
    except (MemoryError, RuntimeError, TypeError) as error:
        if not (isinstance(error, MemoryError) or TOO_LARGE.search(str(error))):
            raise
        first, _, _ = str(error).partition("\n")
        return _fail(f"memory is short, or a size beyond what torch counts: {first}")
    except KeyboardInterrupt:
        print("fusedrnn: interrupted", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    print(f"fusedrnn: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fusedrnn", description="Recurrent networks on fused kernels: train, evaluate, sample, time, inspect."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for module in (train, evaluate, sample, plot, bench):
        module.add(commands)
    info = commands.add_parser("info", help="versions, what is built, what is available and why not")
    info.set_defaults(command=_info)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    from fusedrnn import info

    return info.main()
