"""What was measured, and the files it is kept in: one for each machine, its versions and kind of measurement.

`results/schema.json` says what such a file holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import torch

import fusedrnn
from fusedrnn.bench.grid import Problem
from fusedrnn.bench.pairs import Spread
from fusedrnn.lm.files import write_atomically

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Row:
    """One side of one problem. Times are milliseconds; `ratio` is the time of torch.nn over this side's in the same
    round, `onnxruntime_ratio` that of onnxruntime over it, `over_floor` this side's over the floor: on a CPU the GEMMs
    alone, on a GPU `gpu.floors`, of a call at a new length a warm one, of a cut the best one. None: no such thing in
    this row.

    `clock`: "wall"; on a GPU also "events", the time between events around the call, and "graph", the same around the
    replay of a captured graph. `threads`: 0 where their number does not matter. `error`: the largest distance of a
    result from float64, relative to that result's norm. `backend`: what `auto` took.
    """

    problem: str
    side: str
    threads: int
    ms: Spread
    torch_ms: Spread | None = None
    ratio: Spread | None = None
    over_floor: Spread | None = None
    clock: str = "wall"
    error: float | None = None
    onnxruntime_ratio: Spread | None = None
    backend: str | None = None

    @property
    def layer(self) -> Problem | None:
        """The problem, where the row is of one: not of a training step or a cold start."""
        with contextlib.suppress(ValueError):
            return Problem.of(self.problem)
        return None

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.problem, self.side, self.threads, self.clock


@dataclass(frozen=True)
class Failure:
    """A row that could not be measured, and why: its gate was red, memory was short, a capture was refused."""

    problem: str
    side: str
    reason: str

    @property
    def key(self) -> tuple[str, str]:
        return self.problem, self.side


@dataclass
class Record:
    """Rows of one machine. A row is added after its gate has passed."""

    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Record:
        """What the file holds; nothing where there is none."""
        if not path.exists():
            return cls()
        kept = json.loads(path.read_text())
        rows = [Row(**{k: Spread(**v) if isinstance(v, dict) else v for k, v in fields.items()})
                for fields in kept["rows"]]  # fmt: skip
        return cls(rows, [Failure(**fields) for fields in kept.get("failures", [])])

    @property
    def problems(self) -> set[str]:
        """Those that were tried."""
        return {kept.problem for kept in (*self.rows, *self.failures)}

    def over(self, earlier: Record) -> Record:
        """Both; of the same key, this one's. A failure is forgotten once its row was measured."""
        rows = {row.key: row for row in (*earlier.rows, *self.rows)}
        measured = {(row.problem, row.side) for row in self.rows}
        failures = {f.key: f for f in (*earlier.failures, *self.failures) if f.key not in measured}
        return Record(list(rows.values()), list(failures.values()))

    def save(self, path: Path) -> None:
        """Write the file, over what it held."""
        merged = self.over(Record.load(path))
        given = {"rows": [dataclasses.asdict(row) for row in merged.rows]}
        if merged.failures:
            given["failures"] = [dataclasses.asdict(failure) for failure in merged.failures]
        save(path, given)


def save(path: Path, lists: dict[str, list[dict]]) -> None:
    """Write a file of results: the machine, the date, and lists, a line for each of their entries."""
    parts = [f'"machine": {json.dumps(describe_machine(), indent=1)}', f'"date": "{datetime.date.today().isoformat()}"']
    for name, entries in lists.items():
        lines = ",\n".join(json.dumps(_rounded(entry)) for entry in entries)
        parts.append(f'"{name}": [\n{lines}\n]')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())


def file_name(*parts: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-") + ".json"


@functools.cache  # asking the driver starts a process
def describe_machine() -> dict:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "gpu_capability": torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        "driver": _driver() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": [f"torch {torch.__version__}", f"fusedrnn {fusedrnn.__version__}"],
        "gpu_versions": _gpu_versions() if torch.cuda.is_available() else [],
        "peers": _installed("onnxruntime"),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return names[0].strip() if names else platform.machine()


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def _gpu_versions() -> list[str]:
    return [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}", *_installed("triton")]


def _installed(package: str) -> list[str]:
    """Its name and version; nothing where it is not installed."""
    try:
        return [f"{package} {importlib.metadata.version(package)}"]
    except importlib.metadata.PackageNotFoundError:
        return []


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
