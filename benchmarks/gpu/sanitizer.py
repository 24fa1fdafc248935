"""The CUDA kernels under NVIDIA's compute-sanitizer, on small layers.

python -m benchmarks.gpu.sanitizer runs the layers, forward and backward, on the GPU that is here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch.nn.utils.rnn import pack_sequence

import fusedrnn
from benchmarks.gpu import micro, processes
from fusedrnn.bench import grid
from fusedrnn.dispatch import REGISTRY

TOOLS = ("memcheck", "racecheck")
FOUND = 9  # the exit status of a tool that found something
NOT_HERE = "Device not supported"  # said where a virtual machine hides the hardware from the tool


def run(tool: str, seconds: float) -> dict:
    """What the tool says of the layers: passed, failed, or skipped with the reason."""
    name = f"sanitizer: {tool}"
    path = shutil.which("compute-sanitizer")
    missing = "compute-sanitizer is not on the path" if path is None else REGISTRY["cuda"].unavailable_reason()
    if missing:
        return {"name": name, "outcome": "skipped", "seconds": 0.0, "said": missing}
    start = time.monotonic()
    command = [path, "--tool", tool, "--error-exitcode", str(FOUND)]
    try:
        done = processes.captured([*command, sys.executable, "-m", "benchmarks.gpu.sanitizer"], seconds, cwd=micro.ROOT)
    except subprocess.TimeoutExpired:
        return {"name": name, "outcome": "skipped", "seconds": seconds, "said": f"it took more than {seconds:.0f} s"}
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        outcome, said = "passed", ""
    else:
        outcome = "failed" if done.returncode == FOUND and NOT_HERE not in said else "skipped"
    return {"name": name, "outcome": outcome, "seconds": time.monotonic() - start, "said": said[-1000:]}


def layers(device: str = "cuda") -> Iterator[tuple[torch.nn.RNNBase, object]]:
    """Modules on the `cuda` backend, and their input: each cell, plain, packed, tokens, one way or both ways."""
    for cell in (fusedrnn.RNN, fusedrnn.GRU, fusedrnn.LSTM):
        for H, dtype in ((64, torch.bfloat16), (24, torch.float16), (136, torch.bfloat16), (24, torch.float32)):
            module = cell(6, H, backend="cuda", device=device, dtype=dtype, bidirectional=H == 24)
            rows = [torch.randn(T, 6, device=device, dtype=dtype) for T in (5, 3, 3, 2, 1, 1, 1, 1, 1)]
            yield module, torch.randn(5, 9, 6, device=device, dtype=dtype)
            yield module, pack_sequence(rows)
            yield module, torch.randint(6, (5, 9), device=device)


def main(device: str = "cuda") -> None:
    with grid.float32_precision("ieee"):
        for module, given in layers(device):
            y, _ = module(given)
            y = y if isinstance(y, torch.Tensor) else y.data
            y.float().square().sum().backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


if __name__ == "__main__":
    main()
