"""Tables of rows: of one run, for a terminal, and of everything a machine has measured, as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.record import Row
from fusedrnn.bench import onnx
from fusedrnn.bench.command import told
from fusedrnn.bench.grid import LAYOUTS, SIZES, TORCH, Problem
from fusedrnn.bench.measure import FLOOR
from fusedrnn.bench.pairs import Spread


def table(rows: list[Row]) -> str:
    """One line a row, grouped by problem; then the geometric means of the rows of `auto`."""
    width = max(len(row.problem) for row in rows)
    heads = f"{'ms':>9}  {'torch ms':>9}  {'ratio (20% to 80%)':>21}  {'over floor':>10}  {'onnxruntime':>11}"
    lines = [f"{'':{width}}  threads  {'':12} {heads}"]
    last = None
    for row in sorted(rows, key=lambda r: (r.problem, r.threads)):
        problem, last = (row.problem if row.problem != last else ""), row.problem
        torch_ms = f"{row.torch_ms.median:.3f}" if row.torch_ms else ""
        lines.append(
            f"{problem:{width}}  {row.threads:>7}  {row.side:12} {row.ms.median:9.3f}  {torch_ms:>9}  "
            f"{told(row.ratio):>21}  {_median(row.over_floor):>10}  {_median(row.onnxruntime_ratio):>11}".rstrip()
        )
    return "\n".join([*lines, "", *_geometric_means(rows)])


def _median(spread: Spread | None) -> str:
    return f"{spread.median:.2f}" if spread else ""


def _geometric_means(rows: list[Row]) -> list[str]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row.side == "auto" and row.ratio and (problem := row.layer) and problem.size in SIZES and not problem.layout:
            parts = problem.cell, problem.work, problem.device, problem.precision
            groups.setdefault(f"{' '.join(parts)}, threads {row.threads}", []).append(row.ratio.median)
    return [
        f"{name}: geometric mean {statistics.geometric_mean(v):.2f} over {len(v)} rows"
        for name, v in sorted(groups.items())
    ]


def markdown_heads(heads: Sequence[str]) -> list[str]:
    return [markdown_line(heads), markdown_line(["---"] * len(heads))]


def markdown_line(entries: Iterable[str]) -> str:
    return f"| {' | '.join(entries)} |"


def lost(ratio: Spread | None) -> bool:
    """Whether even the 80th percentile of a speed-up is below 1."""
    return ratio is not None and ratio.p80 < 1


def _marked(ratio: Spread | None) -> str:
    return f"**{told(ratio)} lost**" if lost(ratio) else told(ratio)


def layers(rows: Iterable[Row]) -> list[str]:
    """A markdown table with a line for each problem and number of threads, and all their sides in it."""
    grouped = _grouped(row for row in rows if row.layer)
    rivals = {side for sides in grouped.values() for side in sides} - {TORCH, "auto", FLOOR}
    others = sorted(rivals, key=lambda side: (side == onnx.SIDE, side))
    heads = ["", "threads", "`torch.nn` ms", "GEMMs ms", "`auto` ms", "`auto`", "`auto` against onnxruntime"]
    heads += ["`auto` over GEMMs", "`auto` takes", *(f"`{side}`" for side in others)]
    lines = markdown_heads(heads)
    for (name, threads), sides in sorted(grouped.items(), key=lambda item: (_order(item[0][0]), item[0][1])):
        auto = sides.get("auto")
        spreads = [sides[side].ms if side in sides else None for side in (TORCH, FLOOR, "auto")]
        entries = [name, str(threads), *(f"{ms.median:.3f}" if ms else "" for ms in spreads)]
        if auto:
            entries += [_marked(auto.ratio), _marked(auto.onnxruntime_ratio), _median(auto.over_floor)]
        else:
            entries += [""] * 3
        entries.append((auto and auto.backend) or "")
        lines.append(markdown_line([*entries, *(_marked(sides[s].ratio) if s in sides else "" for s in others)]))
    return lines


def _grouped(rows: Iterable[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    groups: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.problem, row.threads), {})[row.side] = row
    return groups


def _order(name: str) -> tuple:
    """Of the lines: the grid's own sizes first, in its order."""
    problem = Problem.of(name)
    place = list(SIZES).index(problem.size) if problem.size in SIZES else len(SIZES)
    size = problem.sizes
    return place, (size.T, size.B, size.I, size.H), problem.cell, LAYOUTS.index(problem.layout)


def others(rows: Iterable[Row]) -> list[str]:
    """A markdown table of training steps, cold starts and cuts."""
    lines = markdown_heads(
        ["", "side", "threads", "ms (20% to 80%)", "`torch.nn` ms", "ratio", "over a warm call, the better cut"]
    )
    for row in sorted((row for row in rows if not row.layer), key=lambda row: (row.problem, row.threads)):
        torch_ms = f"{row.torch_ms.median:.2f}" if row.torch_ms else ""
        threads = str(row.threads or "")
        lines.append(
            markdown_line(
                [row.problem, row.side, threads, told(row.ms), torch_ms, _marked(row.ratio), told(row.over_floor)]
            )
        )
    return lines
