"""How the Triton kernels are cut: what a program holds, which kernels can run a problem, which of them comes first.

The order is a rule until a GPU has been measured: weights on chip where they fit, streamed through one program for each
tile of rows up to H = 256, else step by step over the whole chip. `MEASURED` and the user's own tuning come before it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from fusedrnn.backends.base import BackendError, Problem
from fusedrnn.cells import CELLS

TIMES = "fusedrnn.json"

# Largest H whose recurrent weights stay on chip, in 16 bits, TF32 and IEEE float32, without spilling a register
# (benchmarks/aot.py): half of it where a multiprocessor has less shared memory than an H100's.
MOST_UNITS = {
    "rnn_tanh": (256, 128, 64),
    "rnn_relu": (256, 128, 64),
    "gru": (128, 64, 64),
    "gru_reset_before": (128, 64, 64),
    "lstm": (128, 64, 64),
}
MOST_INPUTS = 32  # whose weights stay on chip beside the recurrent ones (schedule concat)
MOST_STREAMED = 256  # units for which reading the weights anew takes a program no longer than launching a step
FEWEST_ROWS = 16  # batch rows of a program; the least a product of Triton takes


class Configuration(NamedTuple):
    """Sizes of a program. Tuples, so that a dictionary of them can be written as JSON."""

    kind: str  # resident, streamed, stepped
    rows: int  # batch rows
    units: int  # in a tile; resident: all, as a power of two
    depth: int  # values at a time of a product's inner dimension; resident: all
    warps: int
    stages: int  # of loads ahead of their products
    registers: int | None = None  # a thread may have; None: what the compiler likes

    def __str__(self) -> str:
        sizes = f"{self.rows} rows, {self.units} units"
        if self.kind != "resident":
            sizes += f", {self.depth} deep, {self.stages} stages"
        return f"{self.kind} ({sizes}, {self.warps} warps)"

    @property
    def options(self) -> dict[str, int]:
        """What Triton compiles with."""
        found = {"num_warps": self.warps, "num_stages": self.stages}
        return found if self.registers is None else {**found, "maxnreg": self.registers}


class Gpu(NamedTuple):
    """What the choice depends on."""

    name: str
    capability: tuple[int, int]
    shared: int  # bytes of shared memory a program may have
    processors: int


H100 = Gpu("H100", (9, 0), 227 << 10, 132)

# By compute capability, kernel and `tuning_key`. Empty until a GPU has been measured.
MEASURED: dict[tuple[int, int], dict[str, Configuration]] = {}


def limit_of(cell: str, dtype: torch.dtype, precision: str, shared: int) -> int:
    """The largest H that stays on chip in a processor with so many bytes of shared memory a program."""
    return MOST_UNITS[cell][_column(dtype, precision)] // (1 if shared >= H100.shared else 2)


def _column(dtype: torch.dtype, precision: str) -> int:
    """16 bits, TF32, IEEE float32."""
    return 0 if dtype != torch.float32 else 1 if precision == "tf32" else 2


def block_of(size: int, least: int = 16) -> int:
    """How wide a tile that holds them all is: a power of two, as Triton wants it."""
    return max(least, 1 << (size - 1).bit_length())


def resident(H: int, dtype: torch.dtype) -> Configuration:
    # With 4 warps the largest kernels spill. Left alone, ptxas keeps 16-bit kernels at 128 registers a thread, for a
    # second program that does not fit for shared memory; given all 255, it moves so much out of float32's loops that
    # these spill.
    return Configuration("resident", FEWEST_ROWS, block_of(H), 0, 8, 3, None if dtype == torch.float32 else 255)


# Rows, units and warps of those with weights in memory that spill nothing: in 16 bits, TF32 and IEEE float32, of which
# none but LEAST does.
TILES = {
    "streamed": (((16, 64, 8), (16, 32, 8)), ((16, 64, 8), (16, 32, 8)), ()),
    "stepped": (
        ((64, 16, 4), (32, 32, 8), (32, 16, 4), (16, 32, 4), (16, 16, 4)),
        ((32, 32, 8), (32, 16, 4), (16, 32, 4), (16, 16, 4)),
        (),
    ),
}
# Depth and stages in 16 bits and in float32: some 40 KB on their way, what 64 bytes a clock bring while one load waits.
DEPTHS = {"streamed": ((64, 3), (16, 4)), "stepped": ((32, 8), (16, 8))}
LEAST = (16, 16, 16, 4, 2)  # the least shared memory


def tiled(kind: str, problem: Problem, processors: int) -> list[Configuration]:
    """Those of one kind, in the order of `bytes_a_step`; last the one of least shared memory."""
    deep, stages = DEPTHS[kind][problem.dtype == torch.float32]
    most_rows, most_units = block_of(problem.B), block_of(problem.H)
    found = [
        Configuration(kind, rows, units, deep, warps, stages, 255)
        for rows, units, warps in TILES[kind][_column(problem.dtype, problem.precision)]
        if rows <= most_rows and units <= most_units
    ]
    found.sort(key=lambda configuration: bytes_a_step(configuration, problem, processors))
    return [*found, Configuration(kind, *LEAST, 255)]


def bytes_a_step(configuration: Configuration, problem: Problem, processors: int) -> int:
    """What the busiest multiprocessor reads of recurrent weights and of h in a step, which is the model of its time."""
    gates = len(CELLS[problem.cell].gates)
    size = problem.H * problem.dtype.itemsize
    programs = -(-problem.B // configuration.rows) * problem.D
    if configuration.kind == "streamed":
        return -(-programs // processors) * size * (gates * problem.H + configuration.rows)
    programs *= -(-problem.H // configuration.units)
    return -(-programs // processors) * size * (gates * configuration.units + configuration.rows)


def candidates(problem: Problem, gpu: Gpu) -> list[Configuration]:
    """All that can run it, by the rule."""
    on_chip = limit_of(problem.cell, problem.dtype, problem.precision, gpu.shared) >= problem.H
    found = []
    if on_chip and (problem.schedule != "concat" or problem.tokens or problem.I <= MOST_INPUTS):
        found.append(resident(problem.H, problem.dtype))
    if problem.H <= MOST_STREAMED:
        found += tiled("streamed", problem, gpu.processors)
    return found + tiled("stepped", problem, gpu.processors)


def tuning_key(kernel: str, problem: Problem) -> str:
    """What a measured choice holds for: any T, and B and H up to the next power of two."""
    dtype = str(problem.dtype).removeprefix("torch.")
    sizes = f"B{block_of(problem.B)} H{block_of(problem.H)} D{problem.D} {problem.schedule} {problem.precision}"
    return f"{kernel} {problem.cell} {dtype} {sizes}"


@functools.lru_cache(4096)
def preferred(kernel: str, problem: Problem, gpu: Gpu) -> tuple[Configuration, ...]:
    """`candidates`, the measured one first."""
    measured = MEASURED.get(gpu.capability, {}).get(tuning_key(kernel, problem))
    return tuple(sorted(candidates(problem, gpu), key=lambda configuration: configuration != measured))


def tuning_is_on() -> bool:
    """Whether the fastest is to be found by trying all: FUSEDRNN_AUTOTUNE=1."""
    return os.environ.get("FUSEDRNN_AUTOTUNE") == "1"


_tuned: dict[str, tuple[Configuration, ...]] = {}


def fastest_first(
    key: str, found: tuple[Configuration, ...], time: Callable[[Configuration], float] | None
) -> tuple[Configuration, ...]:
    """By the times in Triton's cache folder or, where there are none, by `time`, which raises BackendError for one that
    does not fit. `key` names the problem, the kernels and the GPU. Without `time` what is not known stays as it is."""
    from triton.runtime.cache import get_cache_manager

    key = f"{key}: {found}"
    if key in _tuned:
        return _tuned[key]
    cache = get_cache_manager(hashlib.sha256(key.encode()).hexdigest())
    times = _read(cache.get_file(TIMES), len(found))
    if times is None:
        if time is None:
            return found
        times = [_time_or_never(time, configuration) for configuration in found]
        cache.put(json.dumps({"key": key, "milliseconds": times}), TIMES, binary=False)
    fits = sorted((t, k) for k, t in enumerate(times) if t is not None)
    _tuned[key] = tuple(found[k] for _, k in fits) or found
    return _tuned[key]


def _read(path: str | None, count: int) -> list[float | None] | None:
    """The times in a file; None where there is none, or what is there is not what `fastest_first` writes."""
    try:
        times = json.loads(Path(path or "").read_text(encoding="utf-8"))["milliseconds"]
        known = len(times) == count and all(t is None or isinstance(t, float) for t in times)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return times if known else None


def _time_or_never(time: Callable[[Configuration], float], configuration: Configuration) -> float | None:
    try:
        return time(configuration)
    except BackendError:
        return None
