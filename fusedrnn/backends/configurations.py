"""How the Triton kernels are cut: what a program holds, which kernels can run a problem, which of them comes first.

The order is a rule until a GPU has been measured: weights on chip where they fit; up to H = 256 streamed through one
program for each tile of rows where these fill half of the multiprocessors; else step by step over the whole chip.
`MEASURED` and the user's own tuning come before it.
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
MOST_STREAMED = 256  # units whose weights one program reads anew each step
FEWEST_ROWS = 16  # batch rows of a program; the least a product of Triton takes


class Configuration(NamedTuple):
    """Sizes of a program."""

    kind: str  # resident, streamed, stepped
    rows: int  # batch rows
    units: int  # in a tile; resident: all, as a power of two
    depth: int  # values at a time of a product's inner dimension; resident: all
    stages: int  # of loads, all but one of them ahead of their products
    warps: int
    registers: int = 255  # a thread may have

    def __str__(self) -> str:
        sizes = f"{self.rows} rows, {self.units} units"
        if self.kind != "resident":
            sizes += f", {self.depth} deep, {self.stages} stages"
        return f"{self.kind} ({sizes}, {self.warps} warps)"

    @property
    def options(self) -> dict[str, int]:
        """What Triton compiles with."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}


class Gpu(NamedTuple):
    """What the choice depends on."""

    name: str
    capability: tuple[int, int]
    shared: int  # bytes of shared memory a program may have
    processors: int


H100 = Gpu("H100", (9, 0), 227 << 10, 132)

# By compute capability and `tuning_key`, one of the candidates. Empty until a GPU has been measured.
MEASURED: dict[tuple[int, int], dict[str, Configuration]] = {}


def limit_of(cell: str, dtype: torch.dtype, precision: str, shared: int) -> int:
    """The largest H that stays on chip in a processor with so many bytes of shared memory a program."""
    return MOST_UNITS[cell][_column(dtype, precision)] // (1 if shared >= H100.shared else 2)


def _column(dtype: torch.dtype, precision: str) -> int:
    """16 bits, TF32, IEEE float32."""
    return 0 if dtype != torch.float32 else 1 if precision == "tf32" else 2


def block_of(size: int) -> int:
    """How wide a tile that holds them all is: a power of two, as Triton wants it."""
    return max(16, 1 << (size - 1).bit_length())


def resident(H: int, dtype: torch.dtype) -> Configuration:
    # With 4 warps the largest kernels spill, and with loads ahead float32's backward. Left alone, ptxas stops at 128
    # registers a thread and spills, for a second program that does not fit for shared memory.
    return Configuration("resident", FEWEST_ROWS, block_of(H), 0, 1 if dtype == torch.float32 else 3, 8)


# Rows, units, depth, stages and warps of those with weights in memory: of all that spill nothing, with any options, the
# ones whose programs issue least (benchmarks/loops.py). In 16 bits, TF32 and IEEE float32, of which LEAST alone is one,
# and none (None) is streamed: without matrix instructions a step of all units would take one program 20 to 75 us.
TILES = {
    ("streamed", "forward"): (((16, 64, 64, 3, 8),), ((16, 64, 16, 4, 8),), None),
    ("streamed", "backward"): (((16, 128, 64, 3, 8), (16, 64, 128, 3, 8)), ((16, 64, 64, 3, 8),), None),
    ("stepped", "forward"): (
        ((16, 32, 64, 3, 4), (16, 16, 64, 3, 4)),
        ((32, 16, 16, 8, 4), (16, 32, 16, 8, 4), (16, 16, 16, 8, 4)),
        (),
    ),
    ("stepped", "backward"): (
        ((32, 16, 128, 3, 4), (16, 32, 128, 3, 4), (16, 16, 128, 3, 4)),
        ((32, 16, 64, 3, 4), (16, 32, 64, 3, 4), (16, 16, 64, 3, 4)),
        (),
    ),
}
LEAST = (16, 16, 16, 2, 4)  # the least shared memory


def tiled(kind: str, kernel: str, problem: Problem, processors: int) -> list[Configuration]:
    """Those of one kind, in the order of `bytes_a_step`; last the one of least shared memory."""
    tiles = TILES[kind, kernel][_column(problem.dtype, problem.precision)]
    if tiles is None:
        return []
    most_rows, most_units = block_of(problem.B), block_of(problem.H)
    found = [Configuration(kind, *sizes) for sizes in tiles if sizes[0] <= most_rows and sizes[1] <= most_units]
    found.sort(key=lambda configuration: bytes_a_step(kernel, configuration, problem, processors))
    return [*found, Configuration(kind, *LEAST)]


def bytes_a_step(kernel: str, configuration: Configuration, problem: Problem, processors: int) -> int:
    """What the busiest multiprocessor reads in a step, of W_hh and of h or dgates: the model of its time."""
    gates = len(CELLS[problem.cell].gates)
    size = problem.H * problem.dtype.itemsize
    programs, units = -(-problem.B // configuration.rows) * problem.D, problem.H
    if configuration.kind == "stepped":
        programs, units = programs * -(-problem.H // configuration.units), configuration.units
    operand = configuration.rows * (1 if kernel == "forward" else gates)
    return -(-programs // processors) * size * (gates * units + operand)


def candidates(kernel: str, problem: Problem, gpu: Gpu) -> list[Configuration]:
    """All that can run it, by the rule."""
    most = limit_of(problem.cell, problem.dtype, problem.precision, gpu.shared)
    found = []
    if most >= problem.H and (problem.schedule != "concat" or problem.tokens or problem.I <= MOST_INPUTS):
        found.append(resident(problem.H, problem.dtype))
    stepped = tiled("stepped", kernel, problem, gpu.processors)
    if problem.H > MOST_STREAMED:
        return found + stepped
    streamed = tiled("streamed", kernel, problem, gpu.processors)
    programs = problem.D * -(-problem.B // FEWEST_ROWS)
    return found + (streamed + stepped if 2 * programs >= gpu.processors else stepped + streamed)


def tuning_key(kernel: str, problem: Problem) -> str:
    """What a measured choice holds for: any T, and B and H up to the next power of two."""
    dtype = str(problem.dtype).removeprefix("torch.")
    sizes = f"B{block_of(problem.B)} H{block_of(problem.H)} D{problem.D} {problem.schedule} {problem.precision}"
    return f"{kernel} {problem.cell} {dtype} {sizes}"


@functools.lru_cache(4096)
def preferred(kernel: str, problem: Problem, gpu: Gpu) -> tuple[Configuration, ...]:
    """`candidates`, the measured one first."""
    measured = MEASURED.get(gpu.capability, {}).get(tuning_key(kernel, problem))
    return tuple(sorted(candidates(kernel, problem, gpu), key=lambda configuration: configuration != measured))


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
