"""More threads than rows: threads share rows, each with hidden units of its own, and meet after every step."""

import dataclasses
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from problems import Sample, assert_equal, run

from fusedrnn import _extension
from fusedrnn.backends.cpu import INSTRUCTION_SETS, has_kernels, instruction_sets

pytestmark = pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason())

CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
SIZES = dict(T=9, I=20, H=203)  # every cell's step is worth a meeting, and units do not fill the last vector
SAMPLES = [
    *(Sample(cell, **SIZES, B=1, schedule=schedule) for cell in CELLS for schedule in ("concat", "hoisted")),
    *(Sample(cell, **SIZES, B=2, lengths="given") for cell in CELLS),
    *(Sample(cell, **SIZES, B=3, lengths="packed", D=2) for cell in CELLS),
    *(Sample(cell, **SIZES, B=1, tokens=True, reverse=True) for cell in CELLS),
    Sample("lstm", T=300, B=1, I=20, H=203),  # more than one chunk of the input product
    Sample("gru", T=2500, B=1, I=3, H=203),  # and of dgates
    Sample("lstm", T=300, B=1, I=20, H=203, save="lean"),
    *(Sample(cell, **SIZES, B=2, resets=True) for cell in CELLS),
    *(Sample(cell, **SIZES, B=3, resets=True, lengths="packed", D=2) for cell in ("gru", "lstm")),
    *(Sample(cell, T=300, B=1, I=20, H=203, resets=True, save="lean") for cell in ("gru", "lstm")),
]
LOOPS = ("y", "h_n", "c_n", "dh0", "dc0")  # what the kernels write; sums over rows are torch's products


@pytest.fixture(autouse=True)
def restored():
    threads, usual = torch.get_num_threads(), torch.ops.fusedrnn_cpu.isa()
    torch.ops.fusedrnn_cpu.share_rows_always(True)  # also with more threads than processors
    yield
    torch.ops.fusedrnn_cpu.share_rows_always(False)
    torch.set_num_threads(threads)
    torch.ops.fusedrnn_cpu.set_isa(usual)


def results(sample: Sample, threads: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.set_num_threads(threads)
    return {name: t for name, t in run(sample, "cpu", dtype).items() if name in LOOPS}


def force(instruction_set: str) -> torch.dtype:
    """And the numbers that it has kernels for."""
    if instruction_set not in instruction_sets():
        pytest.skip(f"no {instruction_set} in this processor or this build")
    torch.ops.fusedrnn_cpu.set_isa(INSTRUCTION_SETS.index(instruction_set))
    return torch.bfloat16 if has_kernels(torch.bfloat16) else torch.float32


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_bits_do_not_depend_on_who_shares(sample, instruction_set):
    dtype = force(instruction_set)
    alone = results(sample, 1, dtype)
    for threads in (2, 3, 5, 8) if sample.T < 100 else (2, 5):
        assert_equal(results(sample, threads, dtype), alone)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.builds(
        Sample,
        cell=st.sampled_from(CELLS),
        T=st.integers(1, 40),
        B=st.integers(2, 9),
        I=st.integers(1, 40),
        H=st.integers(1, 230),
        D=st.integers(1, 2),
        bias=st.booleans(),
        tokens=st.booleans(),
        lengths=st.sampled_from(["", "given", "packed"]),
        resets=st.booleans(),
        schedule=st.sampled_from(["concat", "hoisted"]),
        save=st.sampled_from(["full", "lean"]),
    ),
    st.booleans(),
)
def test_bits_do_not_depend_on_the_threads(instruction_set, sample, reverse):
    dtype = force(instruction_set)
    sample = dataclasses.replace(sample, reverse=reverse and sample.D == 1)
    alone = results(sample, 1, dtype)
    for threads in (2, 3, 5):
        assert_equal(results(sample, threads, dtype), alone)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_float64_equals_the_reference(sample):
    torch.set_num_threads(4)
    want = run(sample, "reference", torch.float64)
    assert_equal(run(sample, "cpu", torch.float64), want, 1e-12)


@pytest.mark.parametrize("sample", SAMPLES[:8:2], ids=str)
def test_bits_repeat(sample):
    alone = results(sample, 1)
    for _ in range(50):
        assert_equal(results(sample, 4), alone)


@pytest.mark.parametrize("always", [True, False])
def test_calls_at_the_same_time_end(always):
    """From several threads of Python, each with a team of its own: more threads than processors wait for each other."""
    torch.ops.fusedrnn_cpu.share_rows_always(always)
    sample = SAMPLES[0]
    alone, found = results(sample, 1), []

    def call() -> None:
        found.append([results(sample, 4) for _ in range(5)])

    callers = [threading.Thread(target=call, daemon=True) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
        assert not caller.is_alive()
    for got in (got for several in found for got in several):
        assert_equal(got, alone)


FAILING_ONCE = """
#include <sys/syscall.h>
#include <unistd.h>
#include <cstdlib>
#include <new>
static int armed = 0;
extern "C" void arm() { armed = 1; }
extern "C" int is_armed() { return armed; }
void* operator new[](std::size_t size) {
  if (syscall(SYS_gettid) != getpid() && __sync_bool_compare_and_swap(&armed, 1, 0)) throw std::bad_alloc();
  if (void* at = malloc(size ? size : 1)) return at;
  throw std::bad_alloc();
}
"""
CALL = """
import ctypes, sys, torch, fusedrnn
torch.set_num_threads(2)
torch.ops.fusedrnn_cpu.share_rows_always(True)
torch.ops.fusedrnn_cpu.force_cut(1, 2)
layer, x = fusedrnn.LSTM(16, 128, backend="cpu"), torch.randn(20, 4, 16)
with torch.no_grad():
    before = layer(x)[0]
    failing = ctypes.CDLL(sys.argv[1])
    failing.arm()
    try:
        layer(x)
    except RuntimeError:
        pass
    print(failing.is_armed(), torch.equal(layer(x)[0], before))
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs Linux and g++")
def test_a_thread_that_finds_no_memory_keeps_none_waiting(tmp_path):
    source, library = tmp_path / "failing.cpp", tmp_path / "failing.so"
    source.write_text(FAILING_ONCE)
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library)}
    done = subprocess.run([sys.executable, "-c", CALL, library], env=environment, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.stdout == "0 True\n", done.stderr
