"""What the kernels are to reach on a CPU, and whether the rows of a machine do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.record import Row
from fusedrnn.bench.grid import CELLS, SIZES, TORCH
from fusedrnn.bench.pairs import Spread

TRAINING = {"rnn": 4.0, "gru": 4.5, "lstm": 2.0}
TRAINING_BF16 = {"rnn": 3.0, "gru": 3.0, "lstm": 1.2}
INFERENCE = 1.2
LEVEL = 1.0  # the 80th percentile of a row that is not lost
LEVEL_ON_TORCH = 0.97  # the same where `auto` takes torch.nn's library
OVER_FLOOR = {64: 2.0, 256: 1.3}  # at that H; of 256 and above
IMPORT_MS = 60.0
OVER_BETTER_CUT = 1.1
STEPS = {
    **{("rnn", 64): 3.0, ("gru", 64): 5.0, ("lstm", 64): 1.8},
    **{("rnn", 256): 2.0, ("gru", 256): 2.5, ("lstm", 256): 1.4},
}
SAMPLING = {"rnn": 2.0, "gru": 2.0, "lstm": 5.0}  # characters a second, at 256 units


@dataclass(frozen=True)
class Target:
    """`reached`: None where there is nothing to reach, or nothing measured."""

    what: str
    wanted: str
    measured: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        return {True: "reached", False: "**missed**", None: ""}[self.reached]


def targets(rows: Iterable[Row]) -> list[Target]:
    """Of the rows at the largest number of threads."""
    rows = list(rows)
    threads = max((row.threads for row in rows), default=0)
    auto = [row for row in rows if row.side == "auto" and row.threads in (0, threads)]
    found = [_mean(auto, f"{cell}, float32, forward+backward", cell, "ieee", goal)
             for cell, goal in TRAINING.items()]  # fmt: skip
    found.append(_no_loss("float32, forward+backward", [r for r in auto if _is(r, True, "ieee")], _torch_ratio))
    found += [_floor(auto, H, goal) for H, goal in OVER_FLOOR.items()]
    found += [_mean(auto, f"{cell}, bf16, forward+backward", cell, "bf16", goal)
              for cell, goal in TRAINING_BF16.items()]  # fmt: skip
    inference = [row for row in auto if _is(row, False, "ieee") and row.onnxruntime_ratio]
    means = [row.onnxruntime_ratio.median for row in inference if row.onnxruntime_ratio and _is_of_the_grid(row)]
    what = "float32, forward, against onnxruntime"
    found.append(_at_least(f"{what}: geometric mean", means, INFERENCE, len(CELLS) * len(SIZES)))
    found.append(_no_loss(what, inference, lambda row: row.onnxruntime_ratio))
    found += _cold_start(auto)
    found += _cuts([row for row in rows if row.threads == threads])
    for (cell, hidden), goal in STEPS.items():
        name = f"training step {cell} {hidden}"
        found.append(_at_least(name, [r.ratio.median for r in auto if r.problem == name and r.ratio], goal))
    for cell, goal in SAMPLING.items():
        name = f"sampling {cell} 256"
        found.append(_at_least(name, [r.ratio.median for r in auto if r.problem == name and r.ratio], goal))
    rest = [row for row in rows if row.side == "rest" and row.threads == threads]
    found += [Target(f"{row.problem}: all but the layer", "", f"{row.ms.median:.2f} ms", None) for row in rest]
    return found


def _is(row: Row, training: bool, precision: str) -> bool:
    problem = row.layer
    return problem is not None and (problem.training, problem.precision, problem.device) == (training, precision, "cpu")


def _is_of_the_grid(row: Row) -> bool:
    problem = row.layer
    return problem is not None and problem.size in SIZES and not problem.layout


def _torch_ratio(row: Row) -> Spread | None:
    return row.ratio


def _mean(rows: list[Row], what: str, cell: str, precision: str, goal: float) -> Target:
    own = [row for row in rows if _is(row, True, precision) and _is_of_the_grid(row)]
    medians = [row.ratio.median for row in own if row.ratio and row.problem.startswith(f"{cell} ")]
    return _at_least(f"{what}, against {TORCH}: geometric mean", medians, goal, len(SIZES))


def _at_least(what: str, medians: list[float], goal: float, rows: int = 1) -> Target:
    """Of a geometric mean, judged where all rows are there."""
    wanted = f"at least {goal:g}"
    if not medians:
        return Target(what, wanted, "not measured", None)
    mean = statistics.geometric_mean(medians)
    of = f" over {len(medians)} of {rows} rows" if rows > 1 else ""
    return Target(what, wanted, f"{mean:.2f}{of}", mean >= goal if len(medians) == rows else None)


def _no_loss(what: str, rows: list[Row], ratio_of: Callable[[Row], Spread | None]) -> Target:
    besides = f", {LEVEL_ON_TORCH:g} where auto takes torch" if ratio_of is _torch_ratio else ""
    what, wanted = f"{what}: rows whose 80th percentile is below {LEVEL:g}{besides}", "none"
    if not rows:
        return Target(what, wanted, "not measured", None)
    lost = []
    for row in rows:
        level = LEVEL_ON_TORCH if row.backend == "torch" and ratio_of is _torch_ratio else LEVEL
        ratio = ratio_of(row)
        if ratio and ratio.p80 < level:
            lost.append(f"{row.problem} {ratio.median:.2f}")
    return Target(what, wanted, f"{len(lost)} of {len(rows)}" + "".join(f"; {name}" for name in lost), not lost)


def _floor(rows: list[Row], H: int, goal: float) -> Target:
    """Rows of that H, the largest of OVER_FLOOR standing for all above it."""
    sizes = H, max(s.H for s in SIZES.values()) if max(OVER_FLOOR) == H else H
    what = f"float32, forward+backward, over the GEMMs alone, H {'>=' if sizes[1] > H else '='} {H}"
    own = [row for row in rows if _is(row, True, "ieee") and _is_of_the_grid(row)]
    near = {row.problem: row.over_floor.median for row in own
            if row.over_floor and row.layer and sizes[0] <= row.layer.sizes.H <= sizes[1]}  # fmt: skip
    if not near:
        return Target(what, f"at most {goal:g}", "not measured", None)
    beyond = {name: value for name, value in near.items() if value > goal}
    told = [f"{name} {value:.2f}" for name, value in sorted(beyond.items(), key=lambda item: -item[1])]
    return Target(what, f"at most {goal:g}", "; ".join([f"beyond it {len(beyond)} of {len(near)}", *told]), not beyond)


def _cold_start(rows: list[Row]) -> list[Target]:
    found = {row.problem: row for row in rows}
    imported, new = found.get("cold start, import"), found.get("cold start, new length")
    targets = []
    if imported:
        ms = imported.ms.median
        targets.append(Target("import after torch", f"at most {IMPORT_MS:g} ms", f"{ms:.0f} ms", ms <= IMPORT_MS))
    if new and new.over_floor:
        over = new.over_floor
        measured = f"{over.median:.2f} ({over.p20:.2f} to {over.p80:.2f}) of its time"
        targets.append(Target("a call at a new length", "no slower than a warm one", measured, over.p20 <= 1))
    return targets


def _cuts(rows: list[Row]) -> list[Target]:
    """The model's choice beside the better of all, the worst of them."""
    over = {row.problem: row.over_floor.median for row in rows
            if row.problem.startswith("cut of ") and row.side == "model" and row.over_floor}  # fmt: skip
    if not over:
        return []
    worst = max(over, key=lambda name: over[name])
    measured = f"{statistics.geometric_mean(over.values()):.2f} over {len(over)} sizes; {worst} {over[worst]:.2f}"
    wanted = f"at most {OVER_BETTER_CUT:g}"
    return [Target("the model's cut over the better one", wanted, measured, over[worst] <= OVER_BETTER_CUT)]
