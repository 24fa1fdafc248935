"""Paired timing: every round runs the opponent, the floor and the row itself, so that a ratio compares neighbours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FEWEST_ROUNDS, MOST_ROUNDS = 5, 300


@dataclass(frozen=True)
class Spread:
    """A median with the 20th and the 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(statistics.median(values), fifths[0], fifths[3])


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    """Wall time of one call, of a GPU's work too."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def paired(benchmark, ours, others: dict[str, Callable[[], object]], budget: float, device: str = "cpu"):
    """Time `ours` by pytest-benchmark, and each of `others` before every round of it.

    Returns the seconds of ours and of each other, round by round. `budget`: seconds to spend, within the limits of the
    number of rounds. Within a round the order of the others is reversed every second time.
    """
    runs = [ours, *others.values()]
    for run in runs:  # first calls compile, allocate and fill caches
        run()
    once = sum(seconds(run, device) for run in runs)
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(budget / once)))
    times: dict[str, list[float]] = {name: [] for name in others}

    own: list[float] = []

    def before_round():
        order = list(others.items())
        for name, run in order if len(own) % 2 else reversed(order):
            times[name].append(seconds(run, device))

    def timed():
        own.append(seconds(ours, device))

    benchmark.pedantic(timed, setup=before_round, rounds=rounds, iterations=1)
    return own, {name: values[: len(own)] for name, values in times.items()}


def ratios(over: list[float], under: list[float]) -> Spread:
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def milliseconds(values: list[float]) -> Spread:
    return Spread.of([1e3 * value for value in values])
