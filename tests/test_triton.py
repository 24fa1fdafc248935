"""The Triton backend without a GPU: what it refuses, its kernels under the interpreter and compiled ahead of time."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from problems import Sample

import fusedrnn
from fusedrnn.backends import triton as backend
from fusedrnn.backends.base import BackendError, Problem
from fusedrnn.dispatch import REGISTRY, select

ON_GPU = Problem("lstm", "cuda", torch.bfloat16, T=3, B=2, I=4, H=64)
OutOfResources = pytest.importorskip("triton.runtime.errors", reason="no Triton for this system").OutOfResources


@pytest.mark.timeout(600)
def test_the_kernels_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=os.path.dirname(os.path.dirname(__file__)), capture_output=True,
                          text=True)  # fmt: skip
    print(done.stdout[-4000:])
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout


def _compiled_ahead_of_time():
    from benchmarks import aot

    everything = [(90, case) for case in aot.cases(90)]
    sample = [(chip, case) for chip in (80, 100) for case in aot.cases(chip)
              if case.dtype == torch.bfloat16 and case.cell in ("gru", "lstm") and case.options]  # fmt: skip
    return everything + sample


@pytest.mark.parametrize(("capability", "case"), _compiled_ahead_of_time(), ids=str)
def test_kernels_fit_a_multiprocessor(capability, case, tmp_path, monkeypatch):
    from benchmarks import aot

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert not aot.faults(case, capability, aot.compiled(case, capability))


def test_a_budget_that_is_exceeded_is_a_fault():
    from benchmarks import aot

    case = aot.Case("forward", "lstm", torch.bfloat16, "ieee", 128)
    wrong = aot.faults(case, 80, aot.Compiled(256, 8, 200_000, ()))
    assert [reason.split()[0] for reason in wrong] == ["spills", "256", "200000", "matrix"]
    assert not aot.faults(case, 80, aot.Compiled(255, 0, 163 << 10, ("mma.sync",)))


def test_every_reason_against_it_is_named():
    problem = Problem("lstm", "cpu", torch.float64, T=3, B=2, I=40, H=500, P=3, schedule="concat", save="lean")
    with pytest.raises(BackendError) as error:
        select(problem, "triton")
    for reason in (
        "triton: device cpu, needs cuda",
        "dtype float64 not in {bfloat16, float16, float32}",
        "lean is not supported",
        "projection is not supported",
        "schedule concat of I=40, at most 32",
        "H=500, at most 128 for lstm",
    ):
        assert reason in str(error.value)


def test_cpu_tensors_are_refused():
    net = fusedrnn.GRU(4, 5, backend="triton")
    with pytest.raises(BackendError, match="triton: device cpu, needs cuda"):
        net(torch.randn(3, 2, 4))
    with pytest.raises(BackendError, match="triton: device cpu, needs cuda"), torch.no_grad():
        net(torch.randn(3, 2, 4))


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(backend, "_is_installed", lambda: False)
    assert REGISTRY["triton"].not_supported_reasons(ON_GPU)[0] == "Triton is not installed: pip install triton"


@pytest.mark.parametrize(
    ("capability", "shared", "H", "reasons"),
    [
        ((9, 0), 227 << 10, 128, []),
        ((8, 6), 99 << 10, 64, []),
        ((8, 6), 99 << 10, 65, ["H=65, at most 64 for lstm in this dtype on this device"]),
        ((7, 5), 64 << 10, 64, ["compute capability 7.5, needs 8.0"]),
    ],
)
def test_what_a_gpu_has_decides(capability, shared, H, reasons, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(backend, "_shared_memory", lambda device: shared)
    problem = Problem("lstm", "cuda", torch.bfloat16, T=3, B=2, I=4, H=H)
    assert REGISTRY["triton"].not_supported_reasons(problem) == reasons


def test_a_kernel_that_does_not_fit_says_so():
    call = Sample("gru", T=2, B=1, I=3, H=4).call(torch.float32)
    refused = pytest.raises(BackendError, match="triton: out of resource: shared memory, Required: 300000")
    with refused, backend._launch(call):
        raise OutOfResources(300_000, 232_448, "shared memory")


def test_precision_decides_how_much_float32_fits():
    problem = Problem("rnn_tanh", "cuda", torch.float32, T=3, B=2, I=4, H=128)
    tf32, ieee = (dataclasses.replace(problem, precision=precision) for precision in ("tf32", "ieee"))
    assert REGISTRY["triton"].not_supported_reasons(tf32) == []
    assert REGISTRY["triton"].not_supported_reasons(ieee) == [
        "H=128, at most 64 for rnn_tanh in this dtype on this device"
    ]
