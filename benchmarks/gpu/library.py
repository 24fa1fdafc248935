"""The library of the `cuda` backend, built by nvcc alone for the GPU that is here."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys

from benchmarks.gpu import micro, processes
from fusedrnn import _cuda_library

KERNELS = micro.ROOT / "csrc/cuda"
_OF_KERNELS = runpy.run_path(str(KERNELS / "sources.py"))
NVCC = ("nvcc", *_OF_KERNELS["NVCCFLAGS"], f"-I{KERNELS}")
_MISSING = """
import sys
from fusedrnn import _cuda_library
from fusedrnn.dispatch import REGISTRY
said = REGISTRY["cuda"].unavailable_reason()
if not said and _cuda_library.function("sources")().decode() != sys.argv[1]:
    said = f"{_cuda_library.path()} was built of other sources"
print(said or "")
"""


def build(seconds: float) -> str:
    """Beside the package, unless one of these sources is there and runs. Returns what went wrong, or nothing."""
    if not missing():
        return ""
    if not shutil.which("nvcc"):
        return f"nvcc is not on the path, and {_cuda_library.path()} does not run here: {missing()}"
    sm = micro.architecture()
    part = _cuda_library.path().with_suffix(".part")
    command = [*NVCC, "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "0"]
    command += [f'-DFUSEDRNN_SOURCES="{sources()}"', "-gencode", f"arch=compute_{sm},code=sm_{sm}"]
    command += [*map(str, sorted(KERNELS.glob("*.cu"))), "-o", str(part)]
    try:
        done = processes.captured(command, seconds)
    except subprocess.TimeoutExpired:
        return f"nvcc took more than {seconds:.0f} s"
    if done.returncode:
        return f"nvcc failed: {done.stderr.strip()[-2000:]}"
    part.rename(_cuda_library.path())
    return missing()


def sources() -> str:
    """A sum over all that is compiled."""
    return _OF_KERNELS["sum_of_sources"]()


def missing() -> str:
    """Why a new process cannot use the backend, as these sources have it, or nothing."""
    done = subprocess.run([sys.executable, "-c", _MISSING, sources()], cwd=micro.ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()[-500:]
