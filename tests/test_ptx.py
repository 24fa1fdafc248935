"""The CUDA kernels as nvcc compiles them, instruction by instruction on a CPU (see ptx.py): they compute what they
should, reach no memory but their own, and have no races in shared memory; mistakes in their instructions are found.

It needs nvcc and g++, and no GPU."""

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import ptx
import pytest
from beforehand import INCLUDE, PTX, gxx, missing

REASON = missing() or ("" if shutil.which("nvcc") else "needs nvcc")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(bool(REASON), reason=REASON)]


@pytest.fixture(scope="module")
def programs(beforehand) -> Path:
    return beforehand("ptx")


def run(program: Path, seed: int, cases: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, str(seed), cases], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("program", "sm"), [(program, sm) for program, gpus in PTX.items() for sm in gpus])
def test_kernels_are_right(programs, program, sm):
    ran = run(programs / f"{program}-{sm}/program", 1)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.endswith("0 failed\n")
    assert ran.stdout.count(": well") > 30


LSTM = "11ForwardPlanILNS_4CellE3E13__nv_bfloat16Li32ELi"  # forward, bfloat16, 32 units a CTA
A_OF_MMA = r"(mma\.sync\S+\s+\{[^}]*\}, \{%r\d+,)(%r\d+),(%r\d+)"
OF_PARITY = r"(try_wait\S+ p, \[%r\d+\]), %r\d+"
OF_STORE = r"(st\.async\S+ \[)(%r\d+)(\], .*, \[)(%r\d+)"
WRONG = r"\d+ wrong values"
STORED_WHOLE, LOADED = r"(st\.global\.v4\.\w+\s+\[%rd\d+)", r"(ld\.global\.\w+\s+%\w+, \[%rd\d+)"
OF_CTA, OF_CLUSTER = ("layer", "lstm forward"), ("cluster", "lstm by 2 forward")
MISTAKES = {  # the program and its case, what is replaced in all instructions, and by what, and what is said
    "registers of a product swapped": (*OF_CTA, A_OF_MMA, r"\1\3,\2", WRONG),
    "half of 16 bytes further": (*OF_CTA, STORED_WHOLE, r"\1+8", "not aligned to 16 bytes"),
    "beyond an array": (*OF_CTA, LOADED, r"\1+4194304", "outside of what was"),
    "no barriers": (*OF_CTA, r"bar\.sync\s+0;", "", "a race: thread"),
    "copies not waited for": (*OF_CTA, r"wait_group\s+\d;", "wait_group 9;", "by a copy under way"),
    "lanes not waited for": (*OF_CLUSTER, r"bar\.warp\.sync\s+-1;", "", "a race: thread"),
    "phases not waited for": (*OF_CLUSTER, r"selp\.b32 (%r\d+), 1, 0, p", r"mov.b32 \1, 1", "a race: "),
    "one parity": (*OF_CLUSTER, OF_PARITY, r"\1, 0", "a race: |more arrivals than|nobody can go on"),
    "stored onto the barrier": (*OF_CLUSTER, OF_STORE, r"\1\4\3\4", "was written over|not aligned"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found(programs, tmp_path, name):
    program, case, before, after, found = MISTAKES[name]
    module = (programs / f"{program}-90a/kernels.ptx").read_text()
    kernels = [text for name, text in ptx.entries(module).items() if LSTM in name]
    mistaken = "".join(re.sub(before, after, text) for text in kernels)
    assert kernels and mistaken != "".join(kernels)
    objects = [programs / f"{part}.o" for part in (program, f"races-{program}")]
    ptx.program(objects, ptx.head(module) + mistaken, partial(gxx, *INCLUDE), tmp_path / "program")
    for seed in range(1, 9):  # a schedule that shows it
        ran = run(tmp_path / "program", seed, case)
        if ran.returncode == 1:
            break
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(found, ran.stdout), ran.stdout


def test_what_is_not_known_is_refused():
    kernel = ".extern .shared .align 1024 .b8 s[];\n.visible .entry f(\n.param .align 8 .b8 a[8]\n)\n{{\n{}\n}}\n"
    assert "arch::trap()" in ptx.in_cpp(kernel.format("\ttrap;"))
    for line in ("popc.b32 %r1, %r2;", "ld.local.u32 %r1, [%rd1];", "bar.sync 1;", "setp.lt.and.s32 %p1, %r1, 0, %p2;"):
        with pytest.raises(ValueError):
            ptx.in_cpp(kernel.format(f"\t{line}"))
