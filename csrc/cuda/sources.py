"""How the CUDA kernels are compiled, and the sum over their sources by which a library is known to be built of them."""

import hashlib
from pathlib import Path

HERE = Path(__file__).parent
NVCCFLAGS = ("-O3", "-std=c++20", "--expt-relaxed-constexpr")


def sum_of_sources() -> str:
    """Of the kernels, and of the headers they share with the CPU's."""
    digest = hashlib.sha256()
    shared = (HERE.parent / name for name in ("cells.h", "shape.h"))
    for file in sorted((*HERE.glob("*.cu"), *HERE.glob("*.cuh"), *shared), key=lambda file: file.name):
        digest.update(file.read_bytes())
    return digest.hexdigest()
