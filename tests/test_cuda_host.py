"""The kernels of csrc/cuda and of benchmarks/gpu/micro on the host build: they compute what they should, and the host
build finds the mistakes it is there to find. It needs g++, and neither a GPU nor a CUDA toolkit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from beforehand import MADE_TOGETHER, PROGRAMS, ROOT, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(bool(missing()), reason=missing())]
MISTAKES = [(folder, mistake) for folder, (_, mistakes) in enumerate(MADE_TOGETHER) for mistake in mistakes]


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
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)


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


@pytest.mark.parametrize(("folder", "mistake"), MISTAKES, ids=[mistake.name for _, mistake in MISTAKES])
def test_mistakes_are_found(programs, folder, mistake):
    for seed in range(1, 13):  # a schedule that shows it
        ran = run(programs / str(folder) / "program", seed, mistake.cases)
        if ran.returncode == 1:
            break
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(mistake.found, ran.stdout), ran.stdout
