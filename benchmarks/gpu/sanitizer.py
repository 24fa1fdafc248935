"""The CUDA kernels under NVIDIA's compute-sanitizer, on small layers.

python -m benchmarks.gpu.sanitizer runs the layers, forward and backward, on the GPU that is here.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from benchmarks.gpu import library, micro, processes
from fusedrnn.bench import grid
from fusedrnn.dispatch import REGISTRY

# What a call of torch's own fails with, as when it looks for a function that a driver may lack, is no finding.
TOOLS = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
OPTIONS = ("--kernel-name", "kns=layer_kernel", "--launch-timeout", "0")
# A CTA that ends before others of its cluster is a fault to racecheck; ours has then waited for all that is written to
# it (csrc/cuda/cluster.cuh).
ENVIRONMENT = {"NV_COMPUTE_SANITIZER_MAX_RACECHECK_CLUSTER_RECORDS": "0"}
FOUND = 9  # the exit status of a tool that found something, unless the layers failed over it too
SUMMARY = re.compile(r"SUMMARY: [1-9]")
NOT_HERE = "Device not supported"  # said where a virtual machine hides the hardware from the tool
SAID = 1000  # characters kept of the beginning of what is said, and of the end

ONE_CTA = (("bf16", 64), ("fp16", 24), ("bf16", 136), ("ieee", 24))  # units; but of 136 an LSTM takes a cluster
CLUSTERS = (("bf16", 264), ("bf16", 520), ("tf32", 264), ("ieee", 264))
GRIDS = (("bf16", 1032), ("tf32", 516))


def name_of(tool: str) -> str:
    return f"sanitizer: {tool}, kernels {library.sources()[:12]}"


def run(tool: str, seconds: float) -> dict:
    """What the tool says of the layers: passed, failed, or skipped with the reason."""
    name, path = name_of(tool), shutil.which("compute-sanitizer")
    missing = "compute-sanitizer is not on the path" if path is None else REGISTRY["cuda"].unavailable_reason()
    if missing:
        return {"name": name, "outcome": "skipped", "seconds": 0.0, "said": missing}
    start = time.monotonic()
    command = [path, "--tool", tool, *TOOLS[tool], *OPTIONS, "--error-exitcode", str(FOUND)]
    command += [sys.executable, "-m", "benchmarks.gpu.sanitizer"]
    try:
        done = processes.captured(command, seconds, cwd=micro.ROOT, env=os.environ | ENVIRONMENT)
        status, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        status, said = None, f"it took more than {seconds:.0f} s\n{late.stdout}{late.stderr}"
    if status == 0:
        outcome, said = "passed", ""
    elif (status == FOUND or SUMMARY.search(said)) and NOT_HERE not in said:
        outcome = "failed"
    else:
        outcome = "skipped"
    return {"name": name, "outcome": outcome, "seconds": time.monotonic() - start, "said": _ends(said.strip())}


def _ends(said: str) -> str:
    return said if len(said) <= 2 * SAID else f"{said[:SAID]} ... {said[-SAID:]}"


def layers(device: str = "cuda", sizes=ONE_CTA + CLUSTERS + GRIDS) -> Iterator[tuple[str, torch.nn.RNNBase, object]]:
    """Precisions, modules on the `cuda` backend and their input: each cell, plain, packed, tokens, one way or both
    ways."""
    for (precision, H), cell in itertools.product(sizes, (fusedrnn.RNN, fusedrnn.GRU, fusedrnn.LSTM)):
        dtype = grid.PRECISIONS[precision]
        module = cell(6, H, backend="cuda", device=device, dtype=dtype, bidirectional=H == 24)
        rows = [torch.randn(T, 6, device=device, dtype=dtype) for T in (5, 3, 3, 2, 1, 1, 1, 1, 1)]
        yield precision, module, torch.randn(5, 9, 6, device=device, dtype=dtype)
        yield precision, module, pack_sequence(rows)
        yield precision, module, torch.randint(6, (5, 9), device=device)


def main(device: str = "cuda", sizes=ONE_CTA + CLUSTERS + GRIDS) -> None:
    for precision, module, given in layers(device, sizes):
        with grid.float32_precision(precision):
            y, _ = module(given)
            y = y if isinstance(y, torch.Tensor) else y.data
            y.float().square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


if __name__ == "__main__":
    main()
