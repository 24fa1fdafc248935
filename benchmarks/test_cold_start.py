"""What is paid once: importing, the first call of a process, the first call at a new length beside a warm one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from benchmarks import replay
from benchmarks.record import Row
from fusedrnn.bench.grid import TORCH
from fusedrnn.bench.pairs import interleaved, milliseconds, ratios

pytestmark = pytest.mark.benchmark(timer=replay.clock)

PROCESSES = 10

# Prints seconds: of the import after torch, of the first call; then medians, of the first calls at lengths that are new
# and of calls at one that is not, by turns.
PROGRAM = """
import statistics, time, torch
def since(start):
    return time.perf_counter() - start
start = time.perf_counter()
import {library}
print(since(start))
layer = {library}.GRU(28, 256)
def call(length):
    x = torch.randn(length, 32, 28)
    start = time.perf_counter()
    layer(x)[0].sum().backward()
    return since(start)
print(call(35))
for _ in range(20):
    call(35)
new, warm = zip(*((call(length), call(35)) for length in (*range(30, 35), *range(36, 41))))
print(statistics.median(new))
print(statistics.median(warm))
"""
EVENTS = ("import", "first call", "new length", "warm call")


def events(library: str) -> list[float]:
    code = PROGRAM.replace("{library}", library)
    # An installed package comes with its bytecode, which an environment may forbid a checkout to write.
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=usual)
    return [float(line) for line in run.stdout.split()]


@pytest.fixture(scope="module")
def processes() -> dict[str, dict[str, list[float]]]:
    """Seconds of each event, process by process, of both libraries by turns."""
    found: dict[str, list[list[float]]] = {TORCH: [], "fusedrnn": []}

    def turn(library: str):
        def run() -> float:
            found[library].append(events(library))
            return sum(found[library][-1])

        return run

    interleaved({library: turn(library) for library in found}, PROCESSES)
    return {library: dict(zip(EVENTS, zip(*runs, strict=True), strict=True)) for library, runs in found.items()}


@pytest.mark.parametrize("event", EVENTS)
def test_cold_start(event, processes, benchmark, record):
    ours, theirs = processes["fusedrnn"], processes[TORCH]
    replay.show(benchmark, "cold start", event, ours[event])
    both = () if event == "import" else (milliseconds(theirs[event]), ratios(theirs[event], ours[event]))
    row = Row(f"cold start, {event}", "auto", 0, milliseconds(ours[event]), *both)
    over_warm = ratios(ours[event], ours["warm call"]) if event == "new length" else None
    record.rows.append(dataclasses.replace(row, over_floor=over_warm))
