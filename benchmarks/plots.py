"""The report's plots."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from benchmarks.record import Row
from fusedrnn.bench.grid import CELLS, SIZES, TORCH, Problem
from fusedrnn.bench.measure import FLOOR
from fusedrnn.bench.pairs import Spread

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.45"  # told apart by the colour-blind, as are the markers
BARS = "points: median of paired rounds; bars: 20th to 80th percentile"
VARIED = "d2l-256"
VARIABLES = {"T": "T, time steps", "B": "B, sequences", "H": "H, hidden units", "threads": "threads"}
SERIES = {TORCH: (ORANGE, "D", TORCH), "auto": (BLUE, "o", "fusedrnn"), FLOOR: (GREY, "s", "GEMMs alone")}

Panels = dict[str, dict[str, dict[str, Spread]]]  # cell, series, size: value


def draw(rows: Iterable[Row], caption: str) -> dict[str, tuple[str, bytes]]:
    """By file name: the title and the PNG of every plot that there are rows for."""
    rows = [row for row in rows if row.layer and row.layer.device == "cpu"]
    threads = max((row.threads for row in rows), default=0)
    times = f"time of {TORCH} / time of fusedrnn; right of the line fusedrnn is faster"
    kinds: dict[str, tuple[str, str, Panels]] = {
        "training": ("Forward and backward, float32", times, _gains(rows, True, "ieee", _ratio)),
        "inference": ("Forward, float32", times, _gains(rows, False, "ieee", _ratio)),
        "training-bf16": ("Forward and backward, bf16", times, _gains(rows, True, "bf16", _ratio)),
        "inference-bf16": ("Forward, bf16", times, _gains(rows, False, "bf16", _ratio)),
        "onnxruntime": (
            "Forward, float32, against onnxruntime",
            "time of onnxruntime / time of fusedrnn; right of the line fusedrnn is faster",
            _gains(rows, False, "ieee", lambda row: row.onnxruntime_ratio),
        ),
        "floor": (
            f"Forward and backward, float32, {threads} threads: distance to the GEMMs alone",
            "time / time of the GEMMs of all steps; left is better",
            _distances(rows, threads),
        ),
    }
    found = {}
    for name, (title, label, panels) in kinds.items():
        if any(panels.values()):
            found[name] = (title, _png(_dots(title, label, caption, panels)))
    scaling = _scaling(rows, threads)
    if _varied(scaling):
        title = "Forward and backward, float32, around T=35, B=32, I=28, H=256"
        found["scaling"] = (title, _png(_lines(title, caption, scaling)))
    return found


def _ratio(row: Row) -> Spread | None:
    return row.ratio


def _on_the_grid(problem: Problem, training: bool, precision: str) -> bool:
    return problem.size in SIZES and (problem.training, problem.precision) == (training, precision)


def _label(problem: Problem) -> str:
    s = problem.sizes
    return f"{problem.size} {problem.layout}" if problem.layout else f"{problem.size}  ({s.T}×{s.B}, {s.I}, {s.H})"


def _gains(rows: list[Row], training: bool, precision: str, value: Callable[[Row], Spread | None]) -> Panels:
    """Of `auto`, a series for each number of threads, the most first."""
    panels: Panels = {}
    for row in sorted(rows, key=lambda row: -row.threads):
        problem, spread = row.layer, value(row)
        if problem and spread and row.side == "auto" and _on_the_grid(problem, training, precision):
            series = f"{row.threads} thread{'s' * (row.threads > 1)}"
            panels.setdefault(problem.cell, {}).setdefault(series, {})[_label(problem)] = spread
    return panels


def _distances(rows: list[Row], threads: int) -> Panels:
    panels: Panels = {}
    for side, series in (("auto", "fusedrnn"), (TORCH, TORCH)):
        for row in rows:
            problem = row.layer
            if not problem or (row.side, row.threads) != (side, threads) or not _on_the_grid(problem, True, "ieee"):
                continue
            if row.over_floor:
                panels.setdefault(problem.cell, {}).setdefault(series, {})[_label(problem)] = row.over_floor
    return panels


def _dots(title: str, label: str, caption: str, panels: Panels) -> Figure:
    """A panel for each cell, a line for each size, the largest values of the first series on top."""
    values: dict[str, list[float]] = {}
    for all_series in panels.values():
        for size, spread in next(iter(all_series.values())).items():
            values.setdefault(size, []).append(spread.median)
    sizes = sorted(values, key=lambda size: statistics.geometric_mean(values[size]))
    figure = _figure(10.5, 2.1 + 0.36 * len(sizes))
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    drawn = [s for all_series in panels.values() for sizes_ in all_series.values() for s in sizes_.values()]
    low, high = min(0.8, *(s.p20 for s in drawn)), max(1.25, *(s.p80 for s in drawn))
    for one, cell in zip(axes, (cell for cell in CELLS if cell in panels), strict=True):
        one.axvline(1, color="black", linewidth=1.2, zorder=1)
        for k, (series, found) in enumerate(panels[cell].items()):
            shown = [size for size in sizes if size in found]
            places = [sizes.index(size) + (0.16 if k == 0 else -0.16) for size in shown]
            colour, marker = ((BLUE, "o"), (ORANGE, "D"), (GREY, "s"))[min(k, 2)]
            _with_bars(one, [found[s] for s in shown], places, colour, marker, series, horizontal=True)
            for size, place in zip(shown, places, strict=True) if k == 0 else ():
                median, across = f"{found[size].median:.2f}", one.get_yaxis_transform()
                one.text(0.985, place, median, transform=across, ha="right", va="center", fontsize=8, color=colour)
        one.set_xscale("log")
        one.set_xlim(low / 1.15, high * (high / low) ** 0.2)
        _plain_log(one.xaxis, low, high)
        one.set_ylim(-0.6, len(sizes) - 0.4)
        one.set_title(CELLS[cell][0], fontsize=10)
        one.grid(axis="x", color="0.9")
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(sizes)), sizes, fontsize=9)
    first = axes[0].get_legend_handles_labels()[1][0]
    numbers = f"numbers: {first}; sizes: T×B, inputs, hidden units"
    return _titled(figure, axes[0], title, f"{label} (log scale)\n{BARS}; {numbers}\n{caption}")


Curves = dict[str, dict[str, dict[str, dict[int, Spread]]]]  # cell, what is varied, side, its value: milliseconds


def _scaling(rows: list[Row], threads: int) -> Curves:
    """What was varied from VARIED, one at a time: sizes at the largest number of threads, and threads."""
    start = vars(SIZES[VARIED])
    curves: Curves = {cell: {name: {} for name in VARIABLES} for cell in CELLS}
    for row in rows:
        problem = row.layer
        if not problem or problem.layout or (problem.training, problem.precision) != (True, "ieee"):
            continue
        values = vars(problem.sizes) | {"threads": row.threads}
        changed = {name for name, value in (start | {"threads": threads}).items() if values[name] != value}
        for name in VARIABLES if row.side in SERIES else ():
            if changed <= {name}:
                curves[problem.cell][name].setdefault(row.side, {})[values[name]] = row.ms
    return {cell: varied for cell, varied in curves.items() if any(varied.values())}


def _varied(curves: Curves) -> list[str]:
    """Names in VARIABLES of which there is more than one value."""
    return [name for name in VARIABLES
            if any(len(values) > 1 for varied in curves.values() for values in varied[name].values())]  # fmt: skip


def _lines(title: str, caption: str, curves: Curves) -> Figure:
    names = _varied(curves)
    figure = _figure(10.5, 1.6 + 2.3 * len(curves))
    axes = figure.subplots(len(curves), len(names), sharex="col", sharey="row", squeeze=False)
    for line, (cell, varied) in zip(axes, curves.items(), strict=True):
        for one, name in zip(line, names, strict=True):
            ticks = {value for values in varied[name].values() for value in values}
            for side, (colour, marker, series) in SERIES.items():
                found = dict(sorted(varied[name].get(side, {}).items()))
                one.plot(list(found), [s.median for s in found.values()], color=colour, linewidth=1.2)
                _with_bars(one, list(found.values()), list(found), colour, marker, series, horizontal=False)
            one.set_xscale("log")
            one.set_yscale("log")
            one.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
            for axis in (one.xaxis, one.yaxis):
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_locator(NullLocator())
            one.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            one.grid(color="0.9")
            one.spines[["top", "right"]].set_visible(False)
            one.tick_params(labelsize=8)
        line[0].set_ylabel(f"{CELLS[cell][0]}: ms a call", fontsize=9)
    for one, name in zip(axes[-1], names, strict=True):
        one.set_xlabel(VARIABLES[name], fontsize=9)
    return _titled(figure, axes[0][0], title, f"both axes log scale; {BARS}\n{caption}")


def _titled(figure: Figure, axes: Axes, title: str, below: str) -> Figure:
    """With a title, the legend of the axes, and what there is to say below."""
    figure.suptitle(f"{title}\n", fontsize=12, x=0.01, ha="left")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False, fontsize=9)
    figure.supxlabel(below, fontsize=8)
    return figure


def _with_bars(
    axes: Axes, spreads: list[Spread], places: list[Any], colour: str, marker: str, series: str, horizontal: bool
) -> None:
    medians = [s.median for s in spreads]
    bars = [[s.median - s.p20 for s in spreads], [s.p80 - s.median for s in spreads]]
    style: Mapping[str, Any] = dict(fmt=marker, color=colour, markersize=5, elinewidth=1.6, label=series, zorder=3)
    if horizontal:
        axes.errorbar(medians, places, xerr=bars, **style)
    else:
        axes.errorbar(places, medians, yerr=bars, **style)


def _plain_log(axis: Any, low: float, high: float) -> None:
    """Ticks in plain numbers, as many as have room."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 4 else (0.8, 1, 1.2, 1.5, 2, 3, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
