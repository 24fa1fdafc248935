"""From the rows of `make gpu`, where `auto` is to take which backend: fusedrnn/fastest.py.

A point is the sizes T, B, H of a cell in one precision, with gradients or without. A backend wins it where even the
20th percentile of torch.nn's time over its own is above 1, by the clock of the GPU's events, in every layout
measured. It may not have it where the 80th is below 1, where it failed, or where another backend is clearly faster.
Boxes of sizes are drawn, the largest gain first, that hold points won and none a backend may not have, until every
point won is in one. Between the points of a box nothing was measured: what lies there is taken to be as they are. A
box that begins with the smallest H measured begins with 1, and one that ends with the largest T has no end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch

import fusedrnn
from benchmarks.record import RESULTS, Record
from fusedrnn.backends.base import Fastest
from fusedrnn.bench import grid
from fusedrnn.bench.pairs import Spread
from fusedrnn.dispatch import REGISTRY
from fusedrnn.fastest import ANY
from fusedrnn.lm.files import write_atomically

TABLE = Path(fusedrnn.__file__).with_name("fastest.py")
RIVALS = ("cuda", "triton")
LOST = Spread(0.0, 0.0, 0.0)

Group = tuple[str, str, bool]  # op, precision, training
Point = tuple[int, int, int]  # T, B, H


class Measured(NamedTuple):
    """Of each backend the least ratio at each point: over layouts, and sizes of the input."""

    ratios: dict[str, dict[Point, Spread]]

    @property
    def points(self) -> list[Point]:
        return sorted(set(itertools.chain(*self.ratios.values())))

    def wins(self, backend: str, point: Point) -> bool:
        return self.ratios[backend].get(point, LOST).p20 > 1 and self.may_have(backend, point)

    def may_have(self, backend: str, point: Point) -> bool:
        ratio = self.ratios[backend].get(point)
        if ratio is None:
            return not any(self.wins(other, point) for other in self.ratios if other != backend)
        others = (self.ratios[other].get(point, LOST) for other in self.ratios if other != backend)
        return ratio.p80 >= 1 and not any(other.p20 > max(ratio.p80, 1) for other in others)


def measured(record: Record) -> dict[Group, Measured]:
    """By group. Of a backend's schedules the one counts that it takes itself."""
    found: dict[Group, Measured] = {}

    def note(name: str, side: str, ratio: Spread) -> None:
        problem = grid.Problem.of(name)
        backend, _, schedule = side.partition(" ")
        if backend not in RIVALS or schedule != REGISTRY[backend].schedule(problem.facts):
            return
        group = problem.spec.op, problem.facts.precision_of_products, problem.training
        ratios = found.setdefault(group, Measured({name: {} for name in RIVALS})).ratios[backend]
        size = problem.sizes
        point = size.T, size.B, size.H
        before = ratios.get(point, ratio)
        ratios[point] = Spread(*map(min, zip(_percentiles(before), _percentiles(ratio), strict=True)))

    for row in record.rows:
        if row.clock == "events" and row.ratio is not None:
            note(row.problem, row.side, row.ratio)
    for failure in record.failures:
        note(failure.problem, failure.side, LOST)
    return dict(sorted(found.items()))


def _percentiles(ratio: Spread) -> tuple[float, float, float]:
    return ratio.median, ratio.p20, ratio.p80


def lines(group: Group, given: Measured) -> list[Fastest]:
    """The boxes of a group, in the order in which they are to be asked."""
    axes = [sorted(set(values)) for values in zip(*given.points, strict=True)]
    places = {point: tuple(axis.index(size) for axis, size in zip(axes, point, strict=True)) for point in given.points}
    shape = [len(axis) for axis in axes]
    gains = {backend: torch.zeros(shape, dtype=torch.float64) for backend in given.ratios}
    forbidden = {backend: torch.zeros(shape, dtype=torch.float64) for backend in given.ratios}
    for (point, place), backend in itertools.product(places.items(), given.ratios):
        if given.wins(backend, point):
            gains[backend][place] = math.log(given.ratios[backend][point].median)
        forbidden[backend][place] = not given.may_have(backend, point)
    found = []
    while any(gain.any() for gain in gains.values()):
        best = max(((*_best_box(gains[name], forbidden[name]), name) for name in gains), key=lambda one: one[0])
        _, box, backend = best
        inside = tuple(slice(first, last + 1) for first, last in box)
        for of_backend in (*gains.values(), *forbidden.values()):
            of_backend[inside] = 0
        T, B, H = ((axis[first], axis[last]) for axis, (first, last) in zip(axes, box, strict=True))
        T = T if T[1] < axes[0][-1] else (T[0], ANY)
        H = H if H[0] > axes[2][0] else (1, H[1])
        found.append(Fastest(backend, *group, T, B, H))
    return found


def _best_box(gains: torch.Tensor, forbidden: torch.Tensor) -> tuple[float, list[tuple[int, int]]]:
    """The greatest gain of a box without anything forbidden, and its first and last place on each axis; of boxes of the
    same gain a smallest."""
    ends = [torch.combinations(torch.arange(n + 1)) for n in gains.shape]  # first, last + 1
    sums = []
    for values in (gains, forbidden, torch.ones_like(gains)):
        for axis, pairs in enumerate(ends):
            run = torch.nn.functional.pad(values.movedim(axis, -1), (1, 0)).cumsum(-1)
            values = (run[..., pairs[:, 1]] - run[..., pairs[:, 0]]).movedim(-1, axis)
        sums.append(values)
    gain, banned, size = sums
    gain = torch.where(banned > 0, -math.inf, gain)
    best = gain.max()
    size = torch.where(gain >= best - 1e-9, size, math.inf)
    at = torch.unravel_index(size.argmin(), size.shape)
    box = [(int(pairs[k, 0]), int(pairs[k, 1]) - 1) for pairs, k in zip(ends, at, strict=True)]
    return float(best), box


def tables(folder: Path) -> dict[tuple[int, int], tuple[list[str], list[Fastest]]]:
    """By compute capability the files of results, and the lines they give."""
    files: dict[tuple[int, int], list[Path]] = {}
    for path in sorted(folder.glob("*-fusedrnn.json")):
        capability = json.loads(path.read_text())["machine"]["gpu_capability"]
        files.setdefault((capability[0], capability[1]), []).append(path)
    found = {}
    for capability, paths in sorted(files.items()):
        record = Record()
        for path in paths:
            record = Record.load(path).over(record)
        groups = measured(record).items()
        found[capability] = [path.name for path in paths], list(itertools.chain(*itertools.starmap(lines, groups)))
    return found


HEAD = '''"""\
Where on a GPU which backend was measured to be the fastest, by compute capability. The first line counts that covers
a problem; what none covers goes to torch's library.

Written by `python -m benchmarks.gpu.fastest --write` from what `make gpu` left in benchmarks/results.
"""

from fusedrnn.backends.base import Fastest

ANY = 2**62  # no last

'''


def source(found: dict[tuple[int, int], tuple[list[str], list[Fastest]]]) -> str:
    """fusedrnn/fastest.py."""
    table = "ON_GPU: dict[tuple[int, int], tuple[Fastest, ...]] = {"
    if not found:
        return f"{HEAD}# No GPU has been measured.\n{table}}}\n"
    parts = [f"{HEAD}{table}\n"]
    for capability, (names, fastest) in found.items():
        parts += [f"    # {name}\n" for name in names]
        entries = [f"        {_line(one)},\n" for one in fastest]
        parts += [f"    {capability}: (\n", *entries, "    ),\n"] if entries else [f"    {capability}: (),\n"]
    return "".join([*parts, "}\n"])


def _line(one: Fastest) -> str:
    sizes = (f"{name}=({first}, {'ANY' if last == ANY else last})"
             for name, (first, last) in zip("TBH", one[4:], strict=True))  # fmt: skip
    return f'Fastest("{one.backend}", "{one.op}", "{one.precision}", {one.training}, {", ".join(sizes)})'


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.fastest", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the files of make gpu")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    options = parser.parse_args()
    text = source(tables(options.results))
    if options.write:
        write_atomically(TABLE, text.encode())
    print(text, end="")


if __name__ == "__main__":
    main()
