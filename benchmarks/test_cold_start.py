"""What is paid once: importing, the first call of a process, the first call at a new length."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.pairs import milliseconds, ratios
from benchmarks.record import Row

PROCESSES = 10

# Prints seconds: of the import after torch, of the first call, of the first call at a new length.
PROGRAM = """
import time, torch
def since(start):
    return time.perf_counter() - start
start = time.perf_counter()
import {library}
print(since(start))
layer = {library}.GRU(28, 256)
for length in (35, 36):
    x = torch.randn(length, 32, 28)
    start = time.perf_counter()
    layer(x)[0].sum().backward()
    print(since(start))
"""
EVENTS = ("import", "first call", "new length")


def events(library: str) -> list[float]:
    code = PROGRAM.replace("{library}", library)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(line) for line in run.stdout.split()]


def test_cold_start(benchmark, record):
    own: list[list[float]] = []
    theirs: list[list[float]] = []

    def pair():
        theirs.append(events("torch.nn"))
        own.append(events("fusedrnn"))

    benchmark.group = "cold start"
    benchmark.name = "a process of each library"
    benchmark.pedantic(pair, rounds=PROCESSES, iterations=1)
    if benchmark.disabled:
        return
    for event, ours, torchs in zip(EVENTS, zip(*own, strict=True), zip(*theirs, strict=True), strict=True):
        both = () if event == "import" else (milliseconds(torchs), ratios(torchs, ours))
        record.rows.append(Row(f"cold start, {event}", "auto", 0, milliseconds(ours), *both))
