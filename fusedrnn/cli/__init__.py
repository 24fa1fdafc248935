"""The command line: `fusedrnn train | eval | sample | plot | bench | info`, also as `python -m fusedrnn.cli`.

Whatever the user got wrong is said in one line on standard error, and the exit status is 2.
"""

import argparse
import sys
from collections.abc import Sequence

from fusedrnn import BackendError
from fusedrnn.cli import bench, evaluate, output, plot, sample, train
from fusedrnn.cli.arguments import Parser
from fusedrnn.lm.errors import BadInput

EXTRAS = dict.fromkeys(("matplotlib", "platformdirs", "rich", "safetensors"), "lm") | {"tensorboard": "tensorboard"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. argparse's own errors and --help leave through SystemExit."""
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
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(f"the package {error.name} is missing: pip install 'fusedrnn[{EXTRAS[error.name]}]'")
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
