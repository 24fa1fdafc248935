"""Kernels of processors that are not at hand: their sources, with instructions in C++ that do as the processor's do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fusedrnn.backends.cpu import instruction_sets

ROOT, TORCH = Path(__file__).parent.parent, Path(torch.__file__).parent
FLAGS = ["-std=c++20", "-fPIC", "-ffp-contract=off", "-Wno-psabi", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
VECTORS = ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx512bf16", "-mavx2", "-mfma", "-mf16c"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs Linux and g++"),
]


def run_tests(folder: Path, source: str, flags: list[str], others: list[str], tests: list[str], expression: str) -> str:
    """The last line of what pytest says of `tests`, with a library of `source` and other variants."""
    obj, library = folder / "emulated.o", folder / "emulated.so"
    subprocess.run(["g++", *FLAGS, *flags, "-c", ROOT / "tests/cpu" / source, "-o", obj], check=True, timeout=200)
    sources = [ROOT / "csrc/bindings.cpp", *(ROOT / f"csrc/cpu/variant_{name}.cpp" for name in others)]
    where = ["-isystem", TORCH / "include", "-L", TORCH / "lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", *FLAGS, "-shared", obj, *sources, *where, "-o", library], check=True, timeout=200)
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-s", *tests, "-k", expression]
    environment = os.environ | {"FUSEDRNN_LIBRARY": str(library)}
    tested = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    return tested.stdout.splitlines()[-1]


@pytest.mark.skipif("avx512" in instruction_sets(), reason="runs as it is")
def test_avx512(tmp_path):
    others, tests = ["avx2", "avx512_bf16", "amx"], ["tests/test_instruction_sets.py"]
    end = run_tests(
        tmp_path, "avx512_emulated.cpp", [], others, tests, "portable and (float64_equals or float32_error)"
    )
    assert " passed" in end and "skipped" not in end


@pytest.mark.skipif("amx" in instruction_sets(), reason="runs as it is")
@pytest.mark.skipif("avx512_bf16" not in instruction_sets(), reason="the rest of the kernels needs AVX512-BF16")
def test_amx(tmp_path):
    tests = ["tests/test_instruction_sets.py", "tests/test_shared_rows.py"]
    end = run_tests(tmp_path, "amx_emulated.cpp", ["-O1", *VECTORS], ["avx2", "portable"], tests, "avx512_bf16")
    assert " passed" in end and "skipped" not in end
