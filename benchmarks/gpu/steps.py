"""Whole training steps on a GPU, of fusedrnn and of torch.nn: launched one by one, and replayed as one graph.

A problem is a model, a precision, and whether graphs are measured: those come apart, since after a capture that failed
a process cannot go on. Either way every side is compared with torch.nn launched one by one, on the wall's clock.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import string
from dataclasses import dataclass

from benchmarks.gpu.layers import GRAPH
from benchmarks.record import Record, Row
from benchmarks.training_steps import MODELS, Steps, check_losses
from fusedrnn.bench import grid, pairs
from fusedrnn.lm.corpus import Corpus

ROUNDING = {"tf32": 2**-11, "bf16": 2**-8, "ieee": 1e-6}  # of a loss near 1; the unit roundoff, of float32 some of them
BUDGET = 2.0  # seconds of timing
SECONDS = 2.0 + BUDGET  # a guess at what a problem takes: kernels compiled, the gate, the timing
AIMED_AT = 10.0  # times torch.nn's steps, launched one by one


@dataclass(frozen=True)
class Problem:
    cell: str
    hidden: int
    clip: float
    precision: str
    graph: bool
    device: str = "cuda"

    def __str__(self) -> str:
        parts = ("training step", self.cell, self.hidden, self.device, self.precision, "graph" if self.graph else "")
        return " ".join(map(str, parts)).rstrip()

    @property
    def sides(self) -> tuple[str, ...]:
        """Beside torch.nn, whose steps are launched one by one."""
        return (f"{grid.TORCH} {GRAPH}", f"auto {GRAPH}") if self.graph else ("auto",)


def problems() -> list[Problem]:
    """Those with a target first."""
    of_models = itertools.product(ROUNDING, MODELS)
    return [Problem(*model, precision, graph) for precision, model in of_models for graph in (True, False)]


def text() -> Corpus:
    """Random letters, the same everywhere."""
    letters = random.Random(0).choices(string.ascii_lowercase + " ", k=12_000)
    return Corpus("random letters", "".join(letters).encode(), "course", 0)


def measure(problem: Problem, budget: float) -> Record:
    """A row for each side. Raises GateError, and ConfigError where a step cannot be captured."""
    record, corpus = Record(), text()
    with grid.float32_precision(problem.precision):
        runs = {side: _steps(problem, corpus, side) for side in (grid.TORCH, *problem.sides)}
        exact = _steps(problem, corpus, "exact")
        exact.trainer.model.double()
        check_losses(runs, exact, ROUNDING[problem.precision])
        times = pairs.paired({side: steps.epoch for side, steps in runs.items()}, budget, problem.device)
    for side, epochs in times.items():
        ms = pairs.milliseconds([epoch / len(exact.trainer.batches) for epoch in epochs])
        row = Row(str(problem), side, 0, ms)
        if side != grid.TORCH:
            row = dataclasses.replace(row, ratio=pairs.ratios(times[grid.TORCH], epochs))
        record.rows.append(row)
    return record


def _steps(problem: Problem, corpus: Corpus, side: str) -> Steps:
    """exact is torch.nn too, to be made float64."""
    return Steps(
        corpus,
        problem.device,
        library="fusedrnn" if side.startswith("auto") else "torch",
        graph=side.endswith(GRAPH),
        amp="bf16" if problem.precision == "bf16" and side != "exact" else "none",
        cell=problem.cell,
        hidden=problem.hidden,
        clip=problem.clip,
    )


def table(rows: list[Row]) -> str:
    """Milliseconds of each side, and how many times torch.nn's speed that is."""
    found = {(row.problem, row.side): row for row in rows}
    plain = [problem for problem in problems() if not problem.graph]
    columns = [(grid.TORCH, False), ("auto", False), (f"{grid.TORCH} {GRAPH}", True), (f"auto {GRAPH}", True)]
    lines = []
    for problem in plain:
        entries = [_entry(found.get((str(dataclasses.replace(problem, graph=graph)), side))) for side, graph in columns]
        if any(entries):
            lines.append(f"{problem!s:36}" + "".join(f"{entry:>22}" for entry in entries))
    if not lines:
        return ""
    title = f"{'ms a step (times torch.nn)':36}" + "".join(f"{side:>22}" for side, _ in columns)
    return "\n".join([title, *map(str.rstrip, lines), f"aimed at: {AIMED_AT:g} times, as a graph"])


def _entry(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.ms.median:.3g}" + (f" ({row.ratio.median:.2f})" if row.ratio else "")
