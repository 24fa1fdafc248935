"""What the commands' parsers share."""

import argparse
import math
from typing import NoReturn, TypeAlias

import torch

from fusedrnn.lm.config import LIBRARIES, THREADS
from fusedrnn.lm.corpus import LANGUAGE_MODEL_CORPORA
from fusedrnn.lm.errors import ConfigError

DEVICES = ("cpu", "cuda")

CORPUS = f"{', '.join(LANGUAGE_MODEL_CORPORA)}, or the path of a UTF-8 text file"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        unsaid = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        return action.help if unsaid else super()._get_help_string(action)


def count(text: str) -> int:
    """An integer of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def threads(text: str) -> int:
    """What torch takes: an integer that THREADS allows."""
    if not THREADS.allowed(number := int(text)):
        raise argparse.ArgumentTypeError(f"must be {THREADS.words}, got {number}")
    return number


def filled(text: str) -> str:
    """A name or a path."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def seconds(text: str) -> float:
    """More than 0."""
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return number


def seed(text: str) -> int:
    """An integer that torch takes as a seed."""
    if not 0 <= (number := int(text)) < 2**63:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**63 - 1, got {number}")
    return number


def add_threads(group: "argparse._ActionsContainer") -> None:
    group.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: torch's choice)")


def add_device(group: "argparse._ActionsContainer", about: str) -> None:
    group.add_argument("--device", choices=DEVICES, default="cpu", help=about)


def check_device(name: str) -> None:
    """Raises ConfigError where it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device, or this torch was built without CUDA: see `fusedrnn info`")


def add_data(group: "argparse._ActionsContainer") -> None:
    group.add_argument(
        "--data", type=filled, metavar="PATH", help="file or folder to take a named corpus from before any other place"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """The run folder to read, and what runs its model."""
    parser.add_argument("run", type=filled, metavar="RUN", help="run folder that `fusedrnn train` left")
    parser.add_argument(
        "--library", choices=LIBRARIES, help="torch: the control, torch.nn fed with one-hot rows (default: as trained)"
    )
    parser.add_argument("--backend", default="auto", help="backend of the fused layers, see `fusedrnn info`")
    add_device(parser, "where to run it")
