"""Tables of what was measured.

python -m benchmarks.report FILE    what `auto` gained over torch.nn, as markdown tables
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.pairs import Spread
from benchmarks.record import Record, Row


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
    lines = markdown_heads(["size", *(" ".join(column) for column in columns)])
    for size in sizes:
        cells = (found.get(f"{cell} {size} {work} {device}") for cell, work, device in columns)
        lines.append(markdown_line([size, *map(_ratio, cells)]))
    lines += ["", *markdown_heads(["", "ratio"])]
    steps = [(problem, ratio) for problem, ratio in found.items() if problem.startswith("training")]
    lines += [markdown_line([problem, _ratio(ratio)]) for problem, ratio in steps]
    return "\n".join(lines)


def markdown_heads(heads: Sequence[str]) -> list[str]:
    return [markdown_line(heads), markdown_line(["---"] * len(heads))]


def markdown_line(entries: Iterable[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _ratio(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f} ({ratio.p20:.2f} to {ratio.p80:.2f})" if ratio else ""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    kept = Record.load(Path(sys.argv[1])).rows
    for count in sorted({row.threads for row in kept} - {0}):
        print(f"\nthreads {count}\n\n{markdown(kept, count)}")
