"""Every instruction set of the compiled kernels in turn, whichever of them this processor would choose."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from problems import Sample, assert_close_to_float64, assert_equal, cases, errors_of, run, typical_ratio

import fusedrnn
from fusedrnn import _extension, info
from fusedrnn.backends.cpu import INSTRUCTION_SETS, CpuBackend, has_kernels, instruction_set, instruction_sets

CPU = cases(("cpu",), torch.float64)
THREADED = [case for case in CPU if case.values[0].T * case.values[0].B > 200]  # smaller ones run on one thread anyway
needs_library = pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason())


@contextlib.contextmanager
def only(name: str) -> Iterator[str]:
    """One instruction set, on one thread, with what torch.empty returns filled with NaN."""
    if name not in instruction_sets():
        pytest.skip(_extension.reason() or f"no {name} in this processor or this build")
    usual, threads = torch.ops.fusedrnn_cpu.isa(), torch.get_num_threads()
    torch.ops.fusedrnn_cpu.set_isa(INSTRUCTION_SETS.index(name))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield name
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    torch.ops.fusedrnn_cpu.set_isa(usual)


OF_BFLOAT16 = ["avx512_bf16", "amx"]  # those with kernels of their own for bfloat16, and the others for float32
OF_FLOATS = [name for name in INSTRUCTION_SETS if name not in OF_BFLOAT16]


@pytest.fixture(params=OF_FLOATS)
def forced(request):
    """Each of OF_FLOATS in turn."""
    with only(request.param) as name:
        yield name


@pytest.fixture
def narrower(forced):
    """Each of OF_FLOATS but the widest here, which all other tests of values run on."""
    if forced == [name for name in OF_FLOATS if name in instruction_sets()][-1] != "portable":
        pytest.skip("what all other tests run on")
    return forced


@pytest.fixture
def widest_of_floats():
    with only([name for name in OF_FLOATS if name in instruction_sets()][-1]) as name:
        yield name


@pytest.fixture(params=OF_BFLOAT16)
def of_bfloat16(request):
    with only(request.param) as name:
        yield name


@pytest.mark.parametrize(("sample", "backend"), CPU)
def test_float64_equals_the_reference(narrower, sample, backend):
    assert instruction_set() == narrower
    assert_equal(run(sample, backend, torch.float64), run(sample, "reference", torch.float64), 1e-12)


@pytest.mark.parametrize(("sample", "backend"), CPU)
def test_float32_error_is_at_most_twice_that_of_torch(narrower, sample, backend):
    """Typically, that is drawing by drawing, where the portable kernels meet a chaotic network.

    They have no fused multiply-add, so products are rounded too. Where K terms of size s cancel, as they do in a unit
    that is not saturated, their partial sums have a mean square of s^2 K / 6, and K more roundings at s make the error
    sqrt(1 + 6 / K) times that of torch: 1.4 for the K = 7 of the saturating samples. But their networks are chaotic:
    over all drawings at once the few that amplify an error most decide, and there two computations of equal quality
    differ by more than a factor of two, unless, like the other kernels, they share torch's order and so its roundings.
    """
    draws = 12 if sample.saturating else 3
    if narrower != "portable" or not sample.saturating:
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


def assert_close_in_16_bits(sample, backend, dtype):
    """As in float32. The derivative of relu jumps, so one rounding more or less decides over a unit close to zero and
    all that depends on it: there the rule holds typically, drawing by drawing."""
    if sample.cell != "rnn_relu":
        return assert_close_to_float64(sample, backend, dtype, 12 if sample.saturating else 3)
    for name, drawn in errors_of(sample, backend, dtype, 12).items():
        assert typical_ratio(drawn, dtype) <= 2, name


@pytest.mark.parametrize(("sample", "backend"), cases(("cpu",), torch.bfloat16))
def test_bfloat16_is_at_most_twice_as_far_off_as_torch(of_bfloat16, sample, backend):
    assert has_kernels(torch.bfloat16)
    assert_close_in_16_bits(sample, backend, torch.bfloat16)


@pytest.mark.parametrize(("sample", "backend"), [case for case in cases(("cpu",), torch.bfloat16) if "T3" in case.id])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_as_float32_are_at_most_twice_as_far_off_as_torch(widest_of_floats, sample, backend, dtype):
    assert not has_kernels(dtype)
    assert_close_in_16_bits(sample, backend, dtype)


@pytest.mark.parametrize(("T", "B", "I", "H"), [(9, 33, 40, 96), (5, 70, 31, 130), (70, 16, 64, 64), (3, 600, 8, 33)])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_bfloat16_of_many_rows(of_bfloat16, cell, T, B, I, H):
    """More rows than one tile, than two or six, than are multiplied or summed at once."""
    assert_close_in_16_bits(Sample(cell, T, B, I, H), "cpu", torch.bfloat16)


@pytest.mark.parametrize(("sample", "backend"), THREADED)
def test_bfloat16_does_not_depend_on_the_threads(of_bfloat16, sample, backend):
    """Nor do its gradients: their sums are ours too."""
    torch.set_num_threads(2)
    two = run(sample, backend, torch.bfloat16)
    torch.set_num_threads(1)
    assert_equal(run(sample, backend, torch.bfloat16), two)


def test_16_bits_of_two_kinds_are_refused(widest_of_floats):
    call = Sample("gru", 3, 2, 4, 5).call(torch.float16)
    with pytest.raises(RuntimeError, match=r"expected torch\.float16, got torch\.bfloat16"):
        CpuBackend().forward(call._replace(h0=call.h0.bfloat16()))


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
