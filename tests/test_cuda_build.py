"""The CUDA kernels compiled for Hopper: nothing spills, all fits a multiprocessor, a step is what was planned.

It needs nvcc and Triton's tools, and no GPU."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks.aot import tool
from benchmarks.loops import instructions, loops_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")]

KERNELS = Path(__file__).parent.parent / "csrc/cuda"
FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-I", KERNELS, "-gencode", "arch=compute_90a,code=sm_90a"]
REGISTERS = 65536  # of a multiprocessor
NAME = re.compile(
    r"CellE(?P<cell>\d)E(?P<element>[a-z]|\d+[a-z_]\w*?)Li(?P<hidden>\d+)ELi(?P<warps>\d+)ELi(?P<kept>\d+)E"
)
GATES = {0: 1, 1: 1, 2: 3, 3: 4}  # by number of the cell


@pytest.fixture(scope="module", params=["forward", "backward"])
def compiled(request, tmp_path_factory) -> tuple[dict[str, tuple[int, int, int]], dict[str, str]]:
    """Of each kernel: registers, bytes of stack, bytes spilled; machine code."""
    cubin = tmp_path_factory.mktemp("cuda") / f"{request.param}.cubin"
    command = ["nvcc", *FLAGS, "-Xptxas", "-v", "-cubin", KERNELS / f"{request.param}.cu", "-o", cubin]
    built = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stderr
    entry = r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    used = {name: (int(registers), int(stack), int(spilled))
            for name, stack, spilled, registers in re.findall(entry, built.stderr, re.S)}  # fmt: skip
    functions = dict(
        part.split(None, 1) for part in tool("cuobjdump", "-sass", cubin.read_bytes()).split("Function : ")[1:]
    )
    assert used.keys() == functions.keys()
    return used, functions


def test_nothing_spills_and_all_fits(compiled):
    used, _ = compiled
    assert len(used) > 15
    for name, (registers, stack, spilled) in used.items():
        assert stack == spilled == 0, name
        assert registers * 32 * int(NAME.search(name)["warps"]) <= REGISTERS, name


def test_a_step_is_its_products_and_one_barrier(compiled):
    _, functions = compiled
    for name, text in functions.items():
        kernel = NAME.search(name)
        code = instructions(text)
        bodies = [
            Counter(of.split(".")[0] for at, of, _ in code if loop.first <= at <= loop.last) for loop in loops_of(code)
        ]
        step = max(bodies, key=lambda body: body["HMMA"])
        cell, hidden, warps = (int(kernel[part]) for part in ("cell", "hidden", "warps"))
        bytes_of_weights = GATES[cell] * hidden * hidden * (4 if kernel["element"] == "f" else 2)
        assert step["HMMA"] == bytes_of_weights // (warps * 16 * 32), name  # of 16 rows by 32 bytes
        assert step["BAR"] == 1, name
        assert step["LDGSTS"] > 0, name
        assert not step["LDL"] and not step["STL"], name
