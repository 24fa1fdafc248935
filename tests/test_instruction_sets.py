"""Every instruction set of the compiled kernels in turn, whichever of them this processor would choose."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import assert_close_to_float64, assert_equal, cases, errors_of, run, typical_ratio

import fusedrnn
from fusedrnn import _extension, info
from fusedrnn.backends.cpu import INSTRUCTION_SETS, instruction_set, instruction_sets

CPU = cases(("cpu",), torch.float64)
THREADED = [case for case in CPU if case.values[0].T * case.values[0].B > 200]  # smaller ones run on one thread anyway
ROOT = Path(__file__).parent.parent
needs_library = pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason())


@pytest.fixture(params=INSTRUCTION_SETS)
def forced(request):
    """One instruction set, on one thread, with what torch.empty returns filled with NaN."""
    if request.param not in instruction_sets():
        pytest.skip(_extension.reason() or f"no {request.param} in this processor or this build")
    usual, threads = torch.ops.fusedrnn_cpu.isa(), torch.get_num_threads()
    torch.ops.fusedrnn_cpu.set_isa(INSTRUCTION_SETS.index(request.param))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield request.param
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    torch.ops.fusedrnn_cpu.set_isa(usual)


@pytest.mark.parametrize(("sample", "backend"), CPU)
def test_float64_equals_the_reference(forced, sample, backend):
    assert instruction_set() == forced
    assert_equal(run(sample, backend, torch.float64), run(sample, "reference", torch.float64), 1e-12)


@pytest.mark.parametrize(("sample", "backend"), CPU)
def test_float32_error_is_at_most_twice_that_of_torch(forced, sample, backend):
    """Typically, that is drawing by drawing, where the portable kernels meet a chaotic network.

    They have no fused multiply-add, so products are rounded too. Where K terms of size s cancel, as they do in a unit
    that is not saturated, their partial sums have a mean square of s^2 K / 6, and K more roundings at s make the error
    sqrt(1 + 6 / K) times that of torch: 1.4 for the K = 7 of the saturating samples. But their networks are chaotic:
    over all drawings at once the few that amplify an error most decide, and there two computations of equal quality
    differ by more than a factor of two, unless, like the other kernels, they share torch's order and so its roundings.
    """
    draws = 12 if sample.saturating else 3
    if forced != "portable" or not sample.saturating:
        return assert_close_to_float64(sample, backend, torch.float32, draws)
    for name, drawn in errors_of(sample, backend, torch.float32, draws).items():
        assert typical_ratio(drawn, torch.float32) <= 2, name


@pytest.mark.parametrize(("sample", "backend"), THREADED)
def test_what_the_kernels_write_does_not_depend_on_the_threads(forced, sample, backend):
    """All but the sums over rows, which are torch's products."""
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(run(sample, backend, torch.float32))
    one, two = ({name: t for name, t in r.items() if name in ("y", "h_n", "c_n", "dh0", "dc0")} for r in results)
    assert_equal(one, two)


def applied(function: str, x: torch.Tensor) -> torch.Tensor:
    """tanh or sigmoid of finite x [N, 16]: an RNN whose y is tanh(x), a GRU whose y is z * 1."""
    with torch.no_grad():
        layer = getattr(fusedrnn, {"tanh": "RNN", "sigmoid": "GRU"}[function])(16, 16, bias=False, backend="cpu")
        layer.weight_hh_l0.zero_()
        layer.weight_ih_l0.zero_()[-32:][:16].copy_(torch.eye(16))
        return layer(x[None], torch.ones(1, *x.shape))[0][0]


def distance(got: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error, in units of the last place of float32; numbers below the smallest normal one are zero."""
    tiny = torch.finfo(torch.float32).tiny
    exact = torch.where(exact.abs() < tiny, 0.0, exact)
    ulp = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=tiny))) - 23)
    return float(((got - exact).abs() / ulp).max())


@pytest.mark.parametrize("function", ["tanh", "sigmoid"])
def test_two_units_in_the_last_place_over_all_of_float32(forced, function):
    bits = torch.arange(-(2**31), 2**31, 1021).to(torch.int32)
    around = torch.linspace(-100, 100, 400_000)  # where neither is flat
    x = torch.cat([bits.view(torch.float32), around])
    x = x[x.isfinite()]
    x = x[: len(x) // 16 * 16].view(-1, 16)
    assert distance(applied(function, x), getattr(torch, function)(x.double())) <= 2


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturation_infinity_and_nan_are_those_of_torch(forced, cell, dtype):
    """Every gate, alone among ordinary ones and all at once, at every extreme."""
    big = torch.finfo(dtype).max
    extremes = torch.tensor([0.0, 40, 800, big, torch.inf, torch.nan, -0.0, -40, -800, -big, -torch.inf], dtype=dtype)
    H = len(extremes)
    theirs = getattr(torch.nn, cell)(1, H, dtype=dtype)
    ours = getattr(fusedrnn, cell)(1, H, dtype=dtype, backend="cpu")
    gates = len(theirs.bias_ih_l0) // H
    x, h = torch.ones(1, 2, 1, dtype=dtype), torch.full((1, 2, H), 0.5, dtype=dtype)
    state = (h, h) if cell == "LSTM" else h
    for pushed in (*([gate] for gate in range(gates)), range(gates)):
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.fill_(0.25)
            theirs.weight_hh_l0.zero_()
            for gate in pushed:
                theirs.bias_ih_l0[gate * H : gate * H + H] = extremes
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            (y, after), (want, want_after) = ours(x, state), theirs(x, state)
        torch.testing.assert_close(y, want, equal_nan=True)
        torch.testing.assert_close(after, want_after, equal_nan=True)


@needs_library
def test_an_instruction_set_that_is_not_there_is_refused():
    usual = instruction_set()
    absent = [k for k, name in enumerate(INSTRUCTION_SETS) if name not in instruction_sets()]
    for number in (-1, len(INSTRUCTION_SETS), 2**40, *absent):
        with pytest.raises(RuntimeError, match=f"instruction set {number} is not available"):
            torch.ops.fusedrnn_cpu.set_isa(number)
        assert instruction_set() == usual


@needs_library
def test_one_bit_for_each_name():
    assert torch.ops.fusedrnn_cpu.isas() < 1 << len(INSTRUCTION_SETS)
    assert "portable" in instruction_sets()
    assert instruction_set() == instruction_sets()[-1], "the widest is chosen"


def test_info_names_them(forced):
    line = next(line for line in info.report().splitlines() if line.startswith("instructions"))
    assert f"{forced} (in use)" in line
    assert all(name in line for name in instruction_sets())


# The AVX-512 source in the place of the portable kernels. The compiler cuts its vectors down to those it has; a
# multiply-add is one of the C library for each lane.
EMULATED = """
#if defined(__x86_64__)
#include <immintrin.h>
#endif
template <class V>
__attribute__((noinline)) V fma_of_lanes(V a, V b, V c) {
  for (int k = 0; k < int(sizeof a / sizeof a[0]); ++k) a[k] = __builtin_fma(a[k], b[k], c[k]);
  return a;
}
#define __AVX512F__ 1
#define _mm512_fmadd_ps fma_of_lanes
#define _mm512_fmadd_pd fma_of_lanes
#include "cpu/variant_avx512.cpp"

namespace fusedrnn {
template <>
const Kernels<float>* portable_kernels<float>() { return avx512_kernels<float>(); }
template <>
const Kernels<double>* portable_kernels<double>() { return avx512_kernels<double>(); }
}  // namespace fusedrnn
"""


@pytest.mark.slow
@pytest.mark.skipif("avx512" in instruction_sets(), reason="runs as it is")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_avx512_emulated(tmp_path):
    source, library = tmp_path / "emulated.cpp", tmp_path / "emulated.so"
    source.write_text(EMULATED, encoding="utf-8")
    csrc, torch_folder = ROOT / "csrc", Path(torch.__file__).parent
    flags = ["-O0", "-std=c++20", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-psabi"]
    flags.append("-DTORCH_TARGET_VERSION=0x020a000000000000")
    folders = ["-I", csrc, "-isystem", torch_folder / "include", "-L", torch_folder / "lib"]
    sources = [source, csrc / "bindings.cpp", csrc / "cpu/variant_avx2.cpp"]
    command = ["g++", *flags, *folders, *sources, "-ltorch", "-ltorch_cpu", "-lc10", "-o", library]
    subprocess.run(command, check=True, timeout=200)
    tests = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "portable and (float64 or float32)"]
    environment = os.environ | {"FUSEDRNN_LIBRARY": str(library)}
    tested = subprocess.run(tests, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert tested.returncode == 0, tested.stdout
    assert f"{2 * len(CPU)} passed" in tested.stdout
