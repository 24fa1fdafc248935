"""Where the time of a layer's training call goes: the two ops of its kernels, and all that is around them.

python -m benchmarks.parts [CELL SIZE ...], e.g. `lstm d2l-256`; without arguments the whole grid.

A line: milliseconds of the call, of the forward op, of the backward op, of the rest (the module, autograd, Python), and
of the GEMMs alone; what the ops take over the GEMMs. Medians of rounds of both, torch's number of threads, float32.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

from fusedrnn.backends import cpu
from fusedrnn.bench import grid

BUDGET, FEWEST_ROUNDS = 1.0, 7  # seconds for both sides


class Clocked:
    """A function that knows the seconds of its last call."""

    def __init__(self, run: Callable) -> None:
        self.run = run
        self.seconds = 0.0

    def __call__(self, *arguments):
        start = time.perf_counter()
        outputs = self.run(*arguments)
        self.seconds = time.perf_counter() - start
        return outputs


def parts(cell: str, size: str) -> str:
    problem = grid.Problem(cell, size, training=True)
    clocked: list[cpu.Layer] = []
    told = cpu.layer_with_gradients

    def with_clocks(*arguments) -> cpu.Layer:
        layer = told(*arguments)
        clocked.append(layer._replace(forward=Clocked(layer.forward), backward=Clocked(layer.backward)))
        return clocked[-1]

    cpu.layer_with_gradients = with_clocks
    try:
        x, dy = grid.inputs(problem)
        call = Clocked(grid.layer(grid.module_of(problem, "cpu"), problem, x, dy))
        floor = Clocked(grid.floor(problem))
        rounds, end = [], time.perf_counter() + BUDGET
        while len(rounds) < FEWEST_ROUNDS or time.perf_counter() < end:
            for side in (floor, floor, call, call):  # the first of two finds the caches full of the other's
                side()
            forward, backward = (op.seconds for op in clocked[0][:2])
            ops = forward + backward
            rounds.append((call.seconds, forward, backward, call.seconds - ops, floor.seconds, ops / floor.seconds))
    finally:
        cpu.layer_with_gradients = told
    *seconds, over = map(statistics.median, zip(*rounds, strict=True))
    return f"{problem!s:34}{''.join(f'{1e3 * s:9.3f}' for s in seconds)}{over:9.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parts", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="CELL SIZE", help="by turns; none: the whole grid")
    names = parser.parse_args(arguments).names
    problems = list(zip(names[::2], names[1::2], strict=False)) or list(itertools.product(grid.CELLS, grid.SIZES))
    for name, known in zip(names, itertools.cycle((grid.CELLS, grid.SIZES)), strict=False):
        if name not in known:
            parser.error(f"expected one of {', '.join(known)}, got {name!r}")
    if len(names) % 2:
        parser.error(f"{names[-1]} of which size?")
    print(f"{'ms':34}{'call':>9}{'forward':>9}{'backward':>9}{'rest':>9}{'GEMMs':>9}{'over':>9}")
    for cell, size in problems:
        print(parts(cell, size), flush=True)


if __name__ == "__main__":
    main()
