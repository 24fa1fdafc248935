"""The Triton kernels compiled ahead of time, without a GPU: what each takes of a multiprocessor.

python -m benchmarks.aot [sm_80 sm_90 sm_100]     all kernels; exits with 1 where one spills or does not fit

A kernel spills where it has a stack. Matrix instructions are those of its PTX; IEEE float32 has none.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fusedrnn.backends.base import Problem
from fusedrnn.backends.configurations import (
    H100,
    MOST_INPUTS,
    MOST_UNITS,
    Configuration,
    block_of,
    limit_of,
    resident,
    tiled,
)
from fusedrnn.backends.launches import triton_type
from fusedrnn.cells import CELLS
from fusedrnn.kernels import resident as resident_kernels
from fusedrnn.kernels import tiled as tiled_kernels

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a program may have, CUDA's programming guide
MOST_REGISTERS = 255  # a thread can address
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
PRECISIONS = ((torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))
KERNELS = ("forward", "backward")
SIZES = {"streamed": 256, "stepped": 1024}  # H of the tiled kernels
BATCH = 64
EVERYTHING = (("LENGTHS", True), ("RESETS", True), ("PACKED", True), ("DIRECTION", 2))
_INTEGERS = ("row_offsets", "lengths", "tokens", "table")
_MULTIPLES_OF_16 = ("H", "source_step", "source_batch", "y_step", "y_batch", "dy_step", "dy_batch")


class Compiled(NamedTuple):
    registers: int
    stack: int  # bytes spilled
    shared: int  # bytes
    matrix: tuple[str, ...]  # its matrix instructions
    binary: bytes


class Case(NamedTuple):
    kernel: str
    cell: str
    dtype: torch.dtype
    precision: str
    H: int
    configuration: Configuration
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        options = "".join(f" {name.lower()}" for name, _ in self.options)
        dtype = self.precision if self.dtype == torch.float32 else str(self.dtype).removeprefix("torch.")
        c = self.configuration
        return f"{self.kernel} {self.cell} {dtype} H={self.H} {c.kind} {c.rows}x{c.units}x{c.depth}-{c.stages}{options}"


def cases(capability: int) -> Iterator[Case]:
    """Every kernel at the largest H that stays on chip, and all configurations of those whose weights do not."""
    for cell in MOST_UNITS:
        for dtype, precision in PRECISIONS:
            H = limit_of(cell, dtype, precision, SHARED[capability])
            for kernel in KERNELS:
                case = Case(kernel, cell, dtype, precision, H, resident(H, dtype))
                yield case
                if dtype == torch.bfloat16:
                    yield case._replace(options=EVERYTHING)
                if dtype == torch.bfloat16 and kernel == "forward":
                    yield case._replace(options=(("CONCAT", True), *EVERYTHING))
                for kind, size in SIZES.items():
                    problem = Problem(cell, "cuda", dtype, T=1, B=BATCH, I=size, H=size, precision=precision)
                    for configuration in tiled(kind, kernel, problem, H100.processors):
                        one = case._replace(H=size, configuration=configuration)
                        yield from (one, one._replace(options=EVERYTHING))
                        if kernel == "forward":
                            yield one._replace(options=(("CONCAT", True), *EVERYTHING))


def compiled(case: Case, capability: int) -> Compiled:
    configuration, tiles = case.configuration, case.configuration.kind != "resident"
    function = getattr(tiled_kernels if tiles else resident_kernels, case.kernel)
    constants = dict(
        CELL=case.cell, DIRECTION=0,
        CONCAT=False, TOKENS=False, PACKED=False, LENGTHS=False, RESETS=False, SAVE=True, BIAS=True,
        DY=True, DH_N=True, DC_N=CELLS[case.cell].states == 2, PRECISION=case.precision, BLOCK_B=configuration.rows,
        BLOCK_I=block_of(MOST_INPUTS), BLOCK_H=configuration.units, BLOCK_N=configuration.units,
        BLOCK_K=configuration.depth, TYPE=triton_type(case.dtype), ALIGNED=True,
        STREAMED=configuration.kind == "streamed", PHASE=tiled_kernels.phases_of(case.cell) - 1,
    )  # fmt: skip
    constants = {name: v for name, v in (constants | dict(case.options)).items() if name in function.arg_names}
    signature, attributes = {}, {}
    for k, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("T", "B", "R", "I", "H", "step") or name.endswith(("_step", "_batch")):
            signature[name] = "i32"
        else:
            integers = "*i64" if name in _INTEGERS else "*i1" if name == "resets" else TYPES[case.dtype]
            signature[name] = "*fp32" if name == "cells" else integers
        if signature[name].startswith("*") or name in _MULTIPLES_OF_16:
            attributes[(k,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=configuration.options)
    used = resources(built.asm["cubin"])
    matrix = re.findall(r"wgmma\.mma_async[.\w]*|mma\.sync[.\w]*|tcgen05\.mma[.\w]*", built.asm["ptx"])
    return Compiled(used["REG"], used["STACK"], built.metadata.shared, tuple(sorted(set(matrix))), built.asm["cubin"])


def resources(cubin: bytes) -> dict[str, int]:
    printed = tool("cuobjdump", "-res-usage", cubin)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", printed)}


def tool(name: str, option: str, cubin: bytes) -> str:
    """What one of the tools that come with Triton prints of a kernel."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, option, file.name], check=True, capture_output=True, text=True).stdout


def faults(case: Case, capability: int, found: Compiled) -> list[str]:
    """What is out of budget."""
    reasons = []
    if found.stack:
        reasons.append(f"spills {found.stack} bytes")
    if found.registers > MOST_REGISTERS:
        reasons.append(f"{found.registers} registers")
    if found.shared > SHARED[capability]:
        reasons.append(f"{found.shared} bytes of shared memory, there are {SHARED[capability]}")
    if bool(found.matrix) == (case.dtype == torch.float32 and case.precision == "ieee"):
        reasons.append(f"matrix instructions {found.matrix}")
    return reasons


def checked(capability: int, case: Case) -> tuple[Compiled, list[str]]:
    found = compiled(case, capability)
    return found, faults(case, capability, found)


def main(names: list[str]) -> int:
    failed = 0
    with ProcessPoolExecutor() as pool:
        for capability in [int(name.removeprefix("sm_")) for name in names] or list(SHARED):
            every = list(cases(capability))
            for case, (found, wrong) in zip(every, pool.map(checked, repeat(capability), every), strict=True):
                failed += bool(wrong)
                text = f"sm_{capability} {case!s:90}{found.registers:4} registers {found.shared:7} bytes  "
                print(text + (", ".join(wrong) or ", ".join(found.matrix)), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
