"""The tables of `make gpu`: the chip beside what was published of it, cuDNN on the grid, fusedrnn beside it.

A short form for a terminal, where an entry is microseconds a step and, in brackets, times the floor; a full one, in
markdown, with a line for each problem.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable

from benchmarks.gpu import floors, plan, published
from benchmarks.gpu.micro import Physics
from benchmarks.record import Record, Row
from benchmarks.tables import markdown_heads, markdown_line
from fusedrnn.bench import grid

CLOCKS = ("graph", "events", "wall")
STEPS = 128
TITLE = f"microseconds a step, forward+backward, T={STEPS}, graph replay (times the floor)"


def short(physics: Physics, cudnn: Record, fusedrnn: Record, tests: list[dict]) -> str:
    parts = [_chip(physics), _grids(cudnn.rows), _others(cudnn.rows), _gains(fusedrnn.rows)]
    if tests:
        counted = {kind: sum(t["outcome"] == kind for t in tests) for kind in ("passed", "failed", "skipped")}
        parts.append("gpu tests: " + ", ".join(f"{n} {kind}" for kind, n in counted.items()))
    parts.append(_left(cudnn, fusedrnn))
    return "\n\n".join(part for part in parts if part)


def full(physics: Physics, cudnn: Record, fusedrnn: Record) -> str:
    """Markdown: every problem of either stage, with its floor."""
    heads = ["problem", "side", *(f"{clock} ms (20% to 80%)" for clock in CLOCKS), "ratio", "error", "floor ms", "by"]
    lines = [_chip(physics, markdown=True), "", *markdown_heads(heads)]
    by_problem: dict[str, grid.Problem] = {str(problem): problem for problem in plan.grid()}
    rows = sorted((*cudnn.rows, *fusedrnn.rows), key=lambda row: (row.problem, row.side))
    for (name, side), group in itertools.groupby(rows, key=lambda row: (row.problem, row.side)):
        found = {row.clock: row for row in group}
        floor = floors.floor(by_problem[name], physics) if name in by_problem else None
        times = [_time(found.get(clock)) for clock in CLOCKS]
        best = next(found[clock] for clock in CLOCKS if clock in found)
        ratio = f"{best.ratio.median:.2f}" if best.ratio else ""
        bound = (f"{floor.ms:.4g}", f"{floor.binds}, {floor.design}") if floor else ("", "")
        lines.append(markdown_line([name, side, *times, ratio, f"{best.error:.1g}" if best.error else "", *bound]))
    failures = [f"* {f.problem}, {f.side}: {f.reason}" for f in (*cudnn.failures, *fusedrnn.failures)]
    return "\n".join([*lines, "", *failures, ""])


def _chip(physics: Physics, markdown: bool = False) -> str:
    rows = [(physics.machine.get("gpu", "not measured"), "published", "measured"), *published.rows(physics)]
    if markdown:
        return "\n".join([*markdown_heads(rows[0]), *(markdown_line(row) for row in rows[1:])])
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    return "\n".join(f"{name:{widths[0]}}  {told:{widths[1]}}  {measured}".rstrip() for name, told, measured in rows)


def _grids(rows: Iterable[Row]) -> str:
    """Where cuDNN is strongest, hidden sizes down and batches across; then every precision at a batch of 16."""
    found = {row.problem: row for row in rows if row.clock == "graph" and row.side == grid.TORCH}

    def entry(cell: str, B: int, H: int, precision: str) -> str:
        problem = grid.Problem(cell, str(grid.Size(STEPS, B, H, H)), True, "cuda", precision)
        row = found.get(str(problem))
        if row is None:
            return ""
        over = f" ({row.over_floor.median:.1f})" if row.over_floor else ""
        return f"{1e3 * row.ms.median / STEPS:.2f}{over}"

    lines = []
    for cell in grid.CELLS:
        across = {H: [entry(cell, B, H, "fp16") for B in plan.BATCHES] for H in plan.HIDDEN}
        lines += _block(f"{cell} fp16", "B", plan.BATCHES, {f"H={H}": entries for H, entries in across.items()})
    kinds = itertools.product(plan.PRECISIONS, grid.CELLS)
    across = {f"{cell} {precision}": [entry(cell, 16, H, precision) for H in plan.HIDDEN] for precision, cell in kinds}
    lines += _block("B=16", "H", plan.HIDDEN, across)
    return "\n".join([f"torch.nn, {TITLE}", *lines]) if lines else ""


def _block(title: str, along: str, places: Iterable[int], entries: dict[str, list[str]]) -> list[str]:
    """A line for each of `entries` that has one, under its head."""
    filled = {name: told for name, told in entries.items() if any(told)}
    heads = [f"{title:9}" + "".join(f"{f'{along}={place}':>13}" for place in places)]
    lines = [(f"{name:9}" + "".join(f"{told:>13}" for told in row)).rstrip() for name, row in filled.items()]
    return ["", *heads, *lines] if lines else []


def _others(rows: Iterable[Row]) -> str:
    """Layouts, lengths and named sizes of the LSTM in fp16: milliseconds by each clock."""
    on_the_grid = {str(grid.Size(STEPS, B, H, H)) for B in plan.BATCHES for H in plan.HIDDEN}
    told: dict[str, dict[str, Row]] = {}
    for row in rows:
        cell, size, work, _, precision, *layout = [*row.problem.split(), ""]
        if (cell, work, precision) == ("lstm", "forward+backward", "fp16") and (size not in on_the_grid or any(layout)):
            told.setdefault(row.problem, {})[row.clock] = row
    if not told:
        return ""
    width = max(map(len, told))
    lines = [f"{'torch.nn, milliseconds':{width}}" + "".join(f"{clock:>10}" for clock in CLOCKS)]
    for name, clocks in told.items():
        lines.append(f"{name:{width}}" + "".join(f"{_ms(clocks.get(clock)):>10}" for clock in CLOCKS))
    return "\n".join(lines)


def _ms(row: Row | None) -> str:
    return f"{row.ms.median:.4g}" if row else ""


def _gains(rows: Iterable[Row]) -> str:
    """Geometric means of the ratio, for each side, cell, precision and clock."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row.ratio:
            cell, _, work, _, *rest = row.problem.split()
            precision = rest[0] if rest and rest[0] in grid.PRECISIONS else "ieee"
            groups.setdefault((row.side, cell, precision, work, row.clock), []).append(row.ratio.median)
    lines = [f"{' '.join(group)}: {statistics.geometric_mean(ratios):.2f} over {len(ratios)}, least {min(ratios):.2f}"
             for group, ratios in sorted(groups.items())]  # fmt: skip
    return "\n".join(["torch.nn / fusedrnn, geometric means", *lines]) if lines else ""


def _left(cudnn: Record, fusedrnn: Record) -> str:
    """What a later run has to do."""
    planned = {str(problem) for problem in plan.grid()}
    lines = []
    for name, record in (("torch.nn", cudnn), ("fusedrnn", fusedrnn)):
        measured = {row.problem for row in record.rows}
        failed = {failure.key for failure in record.failures}
        lines.append(f"{name}: {len(measured & planned)} of {len(planned)} problems measured, {len(failed)} failures")
    lost = {row.problem for row in fusedrnn.rows if row.side == "auto" and row.ratio and row.ratio.median < 1}
    lines += [f"lost under auto: {len(lost)}", *(f"  {name}" for name in sorted(lost)[:20])] if lost else []
    return "\n".join(lines)


def _time(row: Row | None) -> str:
    return f"{row.ms.median:.4g} ({row.ms.p20:.4g} to {row.ms.p80:.4g})" if row else ""
