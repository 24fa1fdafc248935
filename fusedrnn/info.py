"""`python -m fusedrnn.info`: versions, what is built, and each backend with its facts and why it is not available.

python -m fusedrnn.info                           what is here
python -m fusedrnn.info --matrix                  the support matrix, as markdown
python -m fusedrnn.info --write-readme README.md  puts the matrix between the README's markers
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import fusedrnn
from fusedrnn import _cuda_library, _extension
from fusedrnn.backends import cpu
from fusedrnn.backends.base import FEATURES, Backend
from fusedrnn.cells import CELLS
from fusedrnn.dispatch import REGISTRY


def main(argv: Sequence[str] = ()) -> int:
    """Prints what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fusedrnn.info", description="What is built and available here.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--matrix", action="store_true", help="print the support matrix as markdown")
    what.add_argument("--write-readme", type=Path, metavar="FILE", help="put the matrix between FILE's markers")
    arguments = parser.parse_args(argv)
    if arguments.matrix:
        print(support_matrix())
    elif arguments.write_readme:
        readme = arguments.write_readme
        try:
            readme.write_text(with_matrix(readme.read_text(encoding="utf-8")), encoding="utf-8")
        except (OSError, ValueError) as error:
            parser.error(f"{readme}: {error}")
    else:
        print(report())
    return 0


def report() -> str:
    facts = {
        "fusedrnn": f"{fusedrnn.__version__} in {Path(fusedrnn.__file__).parent}",
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'}",
        "triton": _version("triton"),
        "compiler": _compiler(),
        "processor": f"{platform.machine()}, torch uses {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()}",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "CPU library": f"{_extension.path()}, loaded" if _extension.is_loaded() else _extension.reason(),
        "instructions": _instruction_sets(),
        "CUDA library": _cuda_library.reason() or f"{_cuda_library.path()}, loaded",
        "environment": ", ".join(f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith("FUSEDRNN_")) or "-",
    }
    lines = [f"{name:<12} {value}" for name, value in facts.items()]
    for backend in REGISTRY.values():
        lines += ["", f"backend {backend.name}: {backend.unavailable_reason() or 'available'}"]
        facts = _facts(backend) | {"cells": _listed(backend.cells), "beyond dense": _listed(backend.features)}
        lines += [f"  {fact:<14} {value}" for fact, value in facts.items()]
    return "\n".join(lines)


def support_matrix() -> str:
    """A markdown table of every backend's declared facts."""
    columns = {backend.name: _facts(backend) | _supports(backend) for backend in REGISTRY.values()}
    rows = [["", *(f"`{name}`" for name in columns)], ["---"] * (len(columns) + 1)]
    rows += [[fact, *(facts[fact] for facts in columns.values())] for fact in next(iter(columns.values()))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def with_matrix(readme: str) -> str:
    """`readme` with the present matrix between its markers. Raises ValueError where it has none."""
    return with_between(readme, "support-matrix", support_matrix())


def with_between(text: str, name: str, content: str) -> str:
    """`text` with content between the markers of that name. Raises ValueError where it has none."""
    begin, end = (f"<!-- {name}:{edge} -->" for edge in ("begin", "end"))
    before, begins, rest = text.partition(begin)
    _, ends, after = rest.partition(end)
    if not (begins and ends):
        raise ValueError(f"expected the markers {begin} and {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def _facts(backend: Backend) -> dict[str, str]:
    return {
        "devices": _listed(backend.devices),
        "dtypes": _listed(str(dtype).removeprefix("torch.") for dtype in backend.dtypes),
        "schedules": _listed(backend.schedules) or "its own",
        "deterministic": "yes" if backend.deterministic else "no",
    }


def _supports(backend: Backend) -> dict[str, str]:
    marks = {cell: cell in backend.cells for cell in CELLS} | {name: name in backend.features for name in FEATURES}
    return {name: "yes" if supported else "–" for name, supported in marks.items()}


def _instruction_sets() -> str:
    names = cpu.instruction_sets()
    return ", ".join(f"{name} (in use)" if name == cpu.instruction_set() else name for name in names) or "-"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(values))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _compiler() -> str:
    command = os.environ.get("CXX") or "g++"
    try:
        found = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{command} is not there"
    return found.stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
