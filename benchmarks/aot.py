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
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fusedrnn.backends.triton import BLOCK_B, LAUNCH, MOST_INPUTS, MOST_UNITS, block_of, limit_of
from fusedrnn.cells import CELLS
from fusedrnn.kernels.backward import backward
from fusedrnn.kernels.forward import forward

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a program may have, CUDA's programming guide
MOST_REGISTERS = 255  # a thread can address
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
KERNELS = {"forward": forward, "backward": backward}
_INTEGERS = ("row_offsets", "lengths", "tokens")
_MULTIPLES_OF_16 = ("H", "source_step", "source_batch", "y_step", "y_batch", "dy_step", "dy_batch")


class Compiled(NamedTuple):
    registers: int
    stack: int  # bytes spilled
    shared: int  # bytes
    matrix: tuple[str, ...]  # its matrix instructions


class Case(NamedTuple):
    kernel: str
    cell: str
    dtype: torch.dtype
    precision: str
    H: int
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        options = "".join(f" {name.lower()}" for name, _ in self.options)
        dtype = self.precision if self.dtype == torch.float32 else str(self.dtype).removeprefix("torch.")
        return f"{self.kernel} {self.cell} {dtype} H={self.H}{options}"


EVERYTHING = (("LENGTHS", True), ("RESETS", True), ("PACKED", True), ("DIRECTION", 2))


def cases(capability: int) -> Iterator[Case]:
    """Every kernel at the largest H that its backend declares."""
    for cell in MOST_UNITS:
        for dtype, precision in (
            (torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"),
        ):  # fmt: skip
            H = limit_of(cell, dtype, precision, SHARED[capability])
            for kernel in KERNELS:
                yield Case(kernel, cell, dtype, precision, H)
                if dtype == torch.bfloat16:
                    yield Case(kernel, cell, dtype, precision, H, EVERYTHING)
                if dtype == torch.bfloat16 and kernel == "forward":
                    yield Case(kernel, cell, dtype, precision, H, (("CONCAT", True), *EVERYTHING))


def compiled(case: Case, capability: int) -> Compiled:
    function = KERNELS[case.kernel]
    constants = dict(
        CELL=case.cell, DIRECTION=0,
        CONCAT=False, TOKENS=False, PACKED=False, LENGTHS=False, RESETS=False, SAVE=True, BIAS=True,
        DY=True, DH_N=True, DC_N=CELLS[case.cell].states == 2, PRECISION=case.precision, BLOCK_B=BLOCK_B,
        BLOCK_I=block_of(MOST_INPUTS), BLOCK_H=block_of(case.H),
    )  # fmt: skip
    constants = {name: v for name, v in (constants | dict(case.options)).items() if name in function.arg_names}
    signature, attributes = {}, {}
    for k, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("T", "B", "R", "I", "H") or name.endswith(("_step", "_batch", "_unit")):
            signature[name] = "i32"
        else:
            integers = "*i64" if name in _INTEGERS else "*i1" if name == "resets" else TYPES[case.dtype]
            signature[name] = "*fp32" if name == "cells" else integers
        if signature[name].startswith("*") or name in _MULTIPLES_OF_16:
            attributes[(k,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=LAUNCH)
    used = _resources(binary.asm["cubin"])
    matrix = re.findall(r"wgmma\.mma_async[.\w]*|mma\.sync[.\w]*|tcgen05\.mma[.\w]*", binary.asm["ptx"])
    return Compiled(used["REG"], used["STACK"], binary.metadata.shared, tuple(sorted(set(matrix))))


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", printed)}


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


def main(names: list[str]) -> int:
    failed = 0
    for capability in [int(name.removeprefix("sm_")) for name in names] or list(SHARED):
        for case in cases(capability):
            found = compiled(case, capability)
            wrong = faults(case, capability, found)
            failed += bool(wrong)
            text = f"sm_{capability} {case!s:62}{found.registers:4} registers {found.shared:7} bytes  "
            print(text + (", ".join(wrong) or ", ".join(found.matrix)), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
