"""What was measured: rows, the file they are kept in, and tables of them.

python -m benchmarks.report FILE    what `auto` gained over torch.nn, as markdown tables
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fusedrnn
from benchmarks.pairs import Spread
from fusedrnn.lm.files import write_atomically


@dataclass(frozen=True)
class Row:
    """One side of one problem. Times are milliseconds; `ratio` is the opponent's time over ours in the same round,
    `over_floor` ours over that of the GEMMs alone. None: there is no such thing in this row."""

    problem: str
    side: str
    threads: int
    ms: Spread
    torch_ms: Spread | None = None
    ratio: Spread | None = None
    over_floor: Spread | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        return self.problem, self.side, self.threads


class Record:
    """The rows of this session. A row is added after its gate has passed."""

    KEY = pytest.StashKey["Record"]()

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def save(self, folder: Path) -> Path:
        """Write the rows to the file of this machine and these versions; those of the same key are replaced."""
        machine = describe_machine()
        name = "-".join((machine["processor"], machine["instructions"], machine["gpu"] or "", *machine["versions"]))
        path = folder / (re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") + ".json")
        before = {row.key: row for row in load(path)} if path.exists() else {}
        rows = before | {row.key: row for row in self.rows}
        text = json.dumps(
            {
                "machine": machine,
                "date": datetime.date.today().isoformat(),
                "rows": [_rounded(dataclasses.asdict(row)) for row in rows.values()],
            },
            indent=1,
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode() + b"\n")
        return path


def load(path: Path) -> list[Row]:
    """The rows of a file of results."""
    rows = []
    for fields in json.loads(path.read_text())["rows"]:
        spreads = {k: Spread(**v) if isinstance(v, dict) else v for k, v in fields.items()}
        rows.append(Row(**spreads))
    return rows


def describe_machine() -> dict:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": [f"torch {torch.__version__}", f"fusedrnn {fusedrnn.__version__}"],
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return names[0].strip() if names else platform.machine()


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(rows: list[Row]) -> str:
    """One line a row, grouped by problem; then the geometric means of the rows of `auto`."""
    width = max(len(row.problem) for row in rows)
    heads = f"{'ms':>9}  {'torch ms':>9}  {'ratio (20% to 80%)':>21}  {'over floor':>10}"
    lines = [f"{'':{width}}  threads  {'':12} {heads}"]
    last = None
    for row in sorted(rows, key=lambda r: (r.problem, r.threads)):
        problem, last = (row.problem if row.problem != last else ""), row.problem
        ratio = row.ratio and f"{row.ratio.median:.2f} ({row.ratio.p20:.2f} to {row.ratio.p80:.2f})"
        lines.append(
            f"{problem:{width}}  {row.threads:>7}  {row.side:12} {row.ms.median:9.3f}  "
            f"{row.torch_ms.median if row.torch_ms else float('nan'):9.3f}  {ratio or '':>21}  "
            f"{f'{row.over_floor.median:.2f}' if row.over_floor else '':>10}"
        )
    return "\n".join([*lines, "", *_geometric_means(rows)])


def _geometric_means(rows: list[Row]) -> list[str]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        cell, _, work, *rest = row.problem.split()
        if row.side == "auto" and row.ratio and rest:
            groups.setdefault(f"{cell} {work} {rest[0]}, threads {row.threads}", []).append(row.ratio.median)
    return [f"{name}: geometric mean {statistics.geometric_mean(v):.2f} over {len(v)} rows"
            for name, v in sorted(groups.items())]  # fmt: skip


def markdown(rows: list[Row], threads: int) -> str:
    """What `auto` gained over torch.nn: a table of layers, then one of training steps, ratios with 20% to 80%."""
    found = {row.problem: row.ratio for row in rows if row.side == "auto" and row.threads == threads and row.ratio}
    layers = [problem.split() for problem in found if not problem.startswith("training")]
    columns = sorted({(cell, work, device) for cell, _, work, device in layers})
    sizes = list(dict.fromkeys(size for _, size, *_ in layers))
    lines = _markdown_rows(["size", *(" ".join(column) for column in columns)])
    for size in sizes:
        cells = (found.get(f"{cell} {size} {work} {device}") for cell, work, device in columns)
        lines.append(f"| {size} | {' | '.join(map(_ratio, cells))} |")
    lines += ["", *_markdown_rows(["", "ratio"])]
    lines += [f"| {problem} | {_ratio(ratio)} |" for problem, ratio in found.items() if problem.startswith("training")]
    return "\n".join(lines)


def _markdown_rows(heads: list[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]


def _ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f} ({ratio.p20:.2f} to {ratio.p80:.2f})" if ratio else ""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    kept = load(Path(sys.argv[1]))
    for count in sorted({row.threads for row in kept} - {0}):
        print(f"\nthreads {count}\n\n{markdown(kept, count)}")
