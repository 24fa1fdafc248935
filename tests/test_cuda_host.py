"""The kernels of csrc/cuda and of benchmarks/gpu/micro on the host build: they compute what they should, and the host
build finds the mistakes it is there to find. It needs g++, and neither a GPU nor a CUDA toolkit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from beforehand import MISTAKES, PROGRAMS, ROOT, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(bool(missing()), reason=missing())]
MADE = [(program, number) for program, mistakes in MISTAKES.items() for number in range(1, len(mistakes) + 1)]


@pytest.fixture(scope="module")
def programs(beforehand) -> Path:
    return beforehand("host")


def test_the_backend_with_kernels_built_for_the_cpu(programs):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cuda_on_host.py"]
    environment = {**os.environ, "FUSEDRNN_CUDA_LIBRARY": str(programs / "library.so"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    print(ran.stdout[-4000:])
    assert ran.returncode == 0 and " passed" in ran.stdout and "skipped" not in ran.stdout


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_are_right(programs, program, seed):
    ran = run(programs / program, seed)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.endswith("0 failed\n")
    assert ran.stdout.count(": well") > 15


def test_a_seed_is_a_schedule(programs):
    first, again, other = (run(programs / "exchange", seed, "16 bytes, 4 CTAs").stdout for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("program", "number"), MADE, ids=[m.name for made in MISTAKES.values() for m in made])
def test_mistakes_are_found(programs, program, number):
    mistake = MISTAKES[program][number - 1]
    made = number if mistake.header else number - 1
    for seed in range(1, 13):  # a schedule that shows it
        ran = run(programs / "mistaken" / program, seed, mistake.cases, made)
        if ran.returncode == 1:
            break
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(mistake.found, ran.stdout), ran.stdout


@pytest.mark.parametrize("program", MISTAKES)
def test_programs_are_right_where_no_mistake_is_made(programs, program):
    ran = run(programs / "mistaken" / program, 1)
    assert ran.returncode == 0, ran.stdout + ran.stderr
