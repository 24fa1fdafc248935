"""A chip that does not exist: measurements with round numbers, in the form the micro-measurements have.

MADE INPUT. Nothing here was measured, and nothing of it is ever kept as a result: the files the tests write of it carry
`"made": true`, which the schema of results refuses.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu import floors
from benchmarks.gpu.micro import Physics
from benchmarks.record import Row
from fusedrnn.bench import grid
from fusedrnn.bench.pairs import Spread

MACHINE = {"gpu": "MADE INPUT, NOT MEASURED"}
MHZ = 1000.0  # a cycle is a nanosecond
SMS = 100


def timed(measure: str, cycles: float, work: float = 0, unit: str = "", **at) -> dict:
    spread = {"median": cycles, "p20": 0.9 * cycles, "p80": 1.1 * cycles}
    return {"measure": measure, "at": at, "cycles": spread, "ns": spread, "work": work, "unit": unit, "mhz": MHZ}


def value(measure: str, value: float, unit: str = "", **at) -> dict:
    return {"measure": measure, "at": at, "value": value, "unit": unit}


def measurements() -> list[dict]:
    found = [value("multiprocessors", SMS), value("copy", 1000, "GB/s"), timed("shared load", 20)]
    found += [value("matrix product", rate, "TFLOP/s", precision=precision)
              for precision, rate in (("bf16", 200), ("fp16", 200), ("tf32", 100), ("ieee", 20))]  # fmt: skip
    found += [timed("syncthreads", 30, threads=threads) for threads in (32, 256)]
    found += [value("clusters at once", SMS // n, ctas=n, threads=256, **{"shared KB": kb})
              for n in (2, 4, 8, 16) for kb in (100, 227)]  # fmt: skip
    found += [timed("exchange", 100 + 10 * n + bytes, ctas=n, bytes=bytes, packet=packet)
              for packet in ("16", "8") for n in (2, 4, 8, 16) for bytes in (16, 256, 4096)]  # fmt: skip
    found += [timed("tagged packets", 1000 + bytes, ctas=128, group=group, bytes=bytes)
              for group in (64, 128) for bytes in (12, 96, 192)]  # fmt: skip
    found += [timed("fetch by cp.async", bytes / 32, bytes, "bytes", ctas=SMS, bytes=bytes, regions=SMS)
              for bytes in (4096, 65536)]  # fmt: skip
    found += [timed("mma from registers", cycles, flops, "flops", type=type, chains=chains, N=8, warps=warps)
              for type, scale in (("bf16", 1), ("tf32", 2))
              for chains, warps, cycles, flops in ((1, 4, 25 * scale, 16384), (4, 8, 32 * scale, 131072))]  # fmt: skip
    found += [timed("mma, B in shared memory", 100 * n / 8, 2 * 128 * 256 * n, "flops", N=n, K=256, warps=8)
              for n in (8, 16, 32)]  # fmt: skip
    for function, cycles in (("tanh.approx.f32", 20), ("tanh by ex2 and rcp", 60), ("tanhf", 100)):
        found.append(timed("function latency", cycles, function=function))
        found.append(timed("function rate", 128 * cycles / 20, 2048, "values", function=function, threads=256))
    return found


def physics() -> Physics:
    return Physics(measurements(), MACHINE)


def write(path: Path) -> None:
    given = {"made": True, "machine": MACHINE, "date": "2000-01-01", "measurements": measurements()}
    path.write_text(json.dumps(given))


def row(problem: grid.Problem, side: str = grid.TORCH, ms: float = 1.0, clock: str = "graph", ratio=None) -> Row:
    """A row that nothing was timed for."""
    floor = floors.floor(problem, physics())
    over = floor and Spread.of([ms / floor.ms] * 3)
    return Row(str(problem), side, 0, Spread(ms, ms, ms), None, ratio and Spread.of([ratio] * 3), over, clock, 1e-3)
