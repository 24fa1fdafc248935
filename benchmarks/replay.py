"""Rounds that were measured by turns with those of other sides, shown one side at a time in pytest-benchmark's table.

Tests that use it are marked `pytest.mark.benchmark(timer=replay.clock)`.
"""

from __future__ import annotations

from collections.abc import Sequence

_now = 0.0


def clock() -> float:
    return _now


def show(benchmark, group: str, name: str, seconds: Sequence[float]) -> None:
    left = iter(seconds)

    def advance() -> None:
        global _now
        _now += next(left)

    benchmark.group, benchmark.name = group, name
    benchmark.pedantic(advance, rounds=len(seconds), iterations=1)
