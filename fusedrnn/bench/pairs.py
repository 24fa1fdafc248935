"""Paired timing: every round runs all sides, so that a ratio compares neighbours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

FEWEST_ROUNDS, MOST_ROUNDS = 5, 300
TURN, MOST_CALLS = 1e-3, 20  # seconds that a turn of short calls is to take, and how many it has at most
WARMED = 5e-3  # seconds; a call that takes longer warms its caches itself
BETWEEN_POOLS = 0.01  # seconds after which the threads of another pool have stopped waiting actively

Timed = Callable[[], float]
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """A median with the 20th and the 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(statistics.median(values), fifths[0], fifths[3])


def seconds(run: Callable[[], object], device: str = "cpu", calls: int = 1) -> float:
    """Wall time of one call, of a GPU's work too: the mean of `calls`."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(sides: Mapping[str, Timed], rounds: int) -> Times:
    """Seconds of each side, round by round; within a round the order is reversed every second time."""
    times: Times = {side: [] for side in sides}
    for index in range(rounds):
        for side in sorted(sides, reverse=bool(index % 2)):
            times[side].append(sides[side]())
    return times


def paired(runs: Mapping[str, Callable[[], object]], budget: float, device: str = "cpu", pools: bool = False) -> Times:
    """Seconds a call of each run, round by round. `budget`: seconds for all, within the limits of the number of rounds.

    Each has run before. Short calls are made several times a turn, after one that is not timed: the side before left
    its own data in the caches. `pools`: some runs have threads of their own, so every turn begins when those before
    have gone to sleep.
    """
    once = {side: seconds(run, device) for side, run in runs.items()}
    calls = {side: max(1, min(MOST_CALLS, int(TURN / spent))) for side, spent in once.items()}
    pause = BETWEEN_POOLS if pools else 0.0

    def turn(side: str) -> Timed:
        def timed() -> float:
            if pause:
                time.sleep(pause)
            if once[side] < WARMED:
                runs[side]()
            return seconds(runs[side], device, calls[side])

        return timed

    spent = sum(pause + once[side] * (calls[side] + (once[side] < WARMED)) for side in runs)
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(budget / spent)))
    return interleaved({side: turn(side) for side in runs}, rounds)


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def milliseconds(values: Sequence[float]) -> Spread:
    return Spread.of([1e3 * value for value in values])
