"""The Triton backend without a GPU: what it refuses, its kernels under the interpreter and compiled ahead of time."""

import dataclasses
from pathlib import Path

import pytest
import torch
from problems import Sample

import fusedrnn
from fusedrnn.backends import configurations
from fusedrnn.backends import triton as backend
from fusedrnn.backends.base import BackendError, Problem
from fusedrnn.backends.configurations import H100
from fusedrnn.dispatch import REGISTRY, explain, select

ROOT = Path(__file__).parent.parent
ON_GPU = Problem("lstm", "cuda", torch.bfloat16, T=3, B=2, I=4, H=64)
OutOfResources = pytest.importorskip("triton.runtime.errors", reason="no Triton for this system").OutOfResources


def _compiled_ahead_of_time():
    """For an H100 every kernel as it is cut first, in bf16 with every option too, but the ReLU RNN, which differs from
    tanh in one instruction. Of the generations before and after it some."""
    from benchmarks import aot

    def wanted(capability, case):
        bf16 = case.dtype == torch.bfloat16
        if capability == 90 and case.dtype == torch.float16:
            return False  # bf16's instructions, of another name; `make aot` compiles them
        if capability == 90:
            return not case.options or (bf16 and case.cell != "rnn_relu")
        return bf16 and case.cell in ("gru", "lstm") and case.options and case.configuration.kind != "streamed"

    first = {}
    for capability in (90, 80, 100):
        for case in aot.cases(capability):
            if wanted(capability, case):
                first.setdefault((capability, *case[:5], case.configuration.kind, case.options), (capability, case))
    return list(first.values())


@pytest.mark.parametrize(("capability", "case"), _compiled_ahead_of_time(), ids=str)
def test_kernels_fit_a_multiprocessor(capability, case, tmp_path, monkeypatch):
    from benchmarks import aot

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert not aot.faults(case, capability, aot.compiled(case, capability))


@pytest.mark.timeout(900)
def test_the_kernels_under_the_interpreter(beforehand):
    folder = beforehand("interpreter")
    text = (folder / "printed").read_text()
    assert (folder / "status").read_text() == "0" and " passed" in text and "skipped" not in text, text[-4000:]


def test_a_budget_that_is_exceeded_is_a_fault():
    from benchmarks import aot

    case = next(aot.cases(80))
    wrong = aot.faults(case, 80, aot.Compiled(256, 8, 200_000, (), b""))
    assert [reason.split()[0] for reason in wrong] == ["spills", "256", "200000", "matrix"]
    assert not aot.faults(case, 80, aot.Compiled(255, 0, 163 << 10, ("mma.sync",), b""))


SASS = """
    /*0000*/                   MOV R1, c[0x0][0x28] ;        /* 0x00000a00ff017624 */
    /*0010*/                   LDG.E.64 R8, desc[UR10][R16.64+0x78] ;
    /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
    /*0030*/             @!UP0 BRA 0x20 ;
    /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
    /*0050*/              @!P1 BRA 0x10 ;
    /*0060*/                   EXIT ;
    /*0070*/                   BRA 0x70;
"""


@pytest.mark.parametrize(("kind", "issued"), [("resident", 5), ("streamed", 3 + 4 * 2), ("stepped", 3 + 4 * 2 + 3)])
def test_loops_are_counted_as_often_as_they_run(kind, issued):
    """A loop over steps around one over an inner dimension of 64, 16 at a time."""
    from benchmarks import aot, loops

    cut = configurations.Configuration(kind, rows=16, units=64, depth=16, stages=2, warps=4)
    case = aot.Case("forward", "rnn_tanh", torch.bfloat16, "ieee", 64, cut)
    step = loops.step_of(loops.instructions(SASS), case)
    assert step.issued == issued
    assert (step.of_class["matrix"], step.of_class["BAR"]) == (1 if kind == "resident" else 4, 1)


def test_every_reason_against_it_is_named():
    problem = Problem("lstm", "cpu", torch.float64, T=3, B=2, I=40, H=500, P=3, save="lean")
    with pytest.raises(BackendError) as error:
        select(problem, "triton")
    for reason in (
        "triton: device cpu, needs cuda",
        "dtype float64 not in {bfloat16, float16, float32}",
        "lean is not supported",
        "projection is not supported",
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


def test_an_old_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(backend, "_gpu", lambda device: H100._replace(capability=(7, 5)))
    assert REGISTRY["triton"].not_supported_reasons(ON_GPU) == ["compute capability 7.5, needs 8.0"]


SMALL = H100._replace(shared=99 << 10)
KINDS = [
    ("lstm", torch.bfloat16, 128, H100, {"B": 1056}, ["resident", "streamed", "stepped"]),
    ("lstm", torch.bfloat16, 129, H100, {"B": 528, "D": 2}, ["streamed", "stepped"]),
    ("lstm", torch.bfloat16, 65, SMALL, {}, ["stepped", "streamed"]),
    ("gru", torch.float32, 65, H100, {"precision": "tf32"}, ["stepped", "streamed"]),
    ("rnn_tanh", torch.float32, 128, H100, {"precision": "tf32"}, ["resident", "stepped", "streamed"]),
    ("rnn_tanh", torch.float32, 128, H100, {"precision": "ieee", "B": 2000}, ["stepped"]),
    ("rnn_tanh", torch.float16, 257, H100, {}, ["stepped"]),
    ("gru", torch.bfloat16, 64, H100, {"schedule": "concat", "I": 32}, ["resident", "stepped", "streamed"]),
    ("gru", torch.bfloat16, 64, H100, {"schedule": "concat", "I": 33}, ["stepped", "streamed"]),
    ("rnn_relu", torch.bfloat16, 64, H100, {"schedule": "concat", "I": 33, "tokens": True}, ["resident", "stepped",
                                                                                             "streamed"]),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "dtype", "H", "gpu", "options", "kinds"), KINDS, ids=str)
def test_sizes_decide_where_the_weights_are(cell, dtype, H, gpu, options, kinds):
    problem = dataclasses.replace(ON_GPU, cell=cell, dtype=dtype, H=H, **options)
    assert list(dict.fromkeys(c.kind for c in configurations.candidates("forward", problem, gpu))) == kinds


def test_what_a_multiprocessor_reads_by_hand():
    """bf16 on 132 processors. LSTM of 1024 forward, 64 rows: tiles of 16 x 32 are 4 * 32 = 128 programs, each of 4 * 32
    rows of weights and 16 of h; 16 x 16 are 256, in two turns. Backward, 32 x 16: dgates have 4 times as many values.
    GRU of 256, 64 rows of both directions: 8 programs of all its weights."""
    problem = dataclasses.replace(ON_GPU, B=64, H=1024)
    wide, narrow, _ = configurations.tiled("stepped", "forward", problem, 132)
    assert wide[:3] == ("stepped", 16, 32) and narrow[:3] == ("stepped", 16, 16)
    assert configurations.bytes_a_step("forward", wide, problem, 132) == (4 * 32 + 16) * 1024 * 2
    assert configurations.bytes_a_step("forward", narrow, problem, 132) == 2 * (4 * 16 + 16) * 1024 * 2
    back = configurations.tiled("stepped", "backward", problem, 132)[0]
    assert back[:3] == ("stepped", 32, 16)
    assert configurations.bytes_a_step("backward", back, problem, 132) == (4 * 16 + 4 * 32) * 1024 * 2
    both = dataclasses.replace(ON_GPU, cell="gru", B=64, H=256, D=2)
    streamed = configurations.tiled("streamed", "forward", both, 132)[0]
    assert configurations.bytes_a_step("forward", streamed, both, 132) == (3 * 256 + 16) * 256 * 2


def test_few_rows_are_not_streamed_through_few_multiprocessors():
    first = {B: configurations.candidates("forward", dataclasses.replace(ON_GPU, B=B, H=256), H100)[0].kind
             for B in (1, 1024, 1040, 1056, 1057)}  # fmt: skip
    assert first == {1: "stepped", 1024: "stepped", 1040: "stepped", 1056: "streamed", 1057: "streamed"}


def test_explain_says_how_it_is_cut():
    text = explain(dataclasses.replace(ON_GPU, H=512, B=64, save="full"), "triton")
    assert "triton, schedule hoisted, forward stepped (16 rows, 16 units, 64 deep, 3 stages, 4 warps), backward" in text


def test_what_was_measured_comes_first(monkeypatch):
    want = configurations.candidates("forward", ON_GPU, H100)[2]
    measured = {(9, 0): {configurations.tuning_key("forward", ON_GPU): want}}
    monkeypatch.setattr(configurations, "MEASURED", measured)
    configurations.preferred.cache_clear()
    try:
        found = {kernel: configurations.preferred(kernel, ON_GPU, H100) for kernel in ("forward", "backward")}
    finally:
        configurations.preferred.cache_clear()
    assert found["forward"][0] == want and found["backward"][0].kind == "resident"
    assert (
        len(found["forward"]) == len(set(found["forward"])) == len(configurations.candidates("forward", ON_GPU, H100))
    )


class Timer:
    """Gives each configuration its time, None for one that does not fit, and counts."""

    def __init__(self, times):
        self.times, self.calls = times, 0

    def __call__(self, configuration):
        self.calls += 1
        if (time := self.times[configuration]) is None:
            raise BackendError("too large")
        return time


@pytest.fixture
def nothing_tuned(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(configurations, "_tuned", {})
    return tmp_path


def test_tuning_finds_the_fastest_that_fits_and_remembers_it(nothing_tuned, monkeypatch):
    found = tuple(configurations.candidates("forward", ON_GPU, H100)[:3])
    timer = Timer(dict(zip(found, (2.0, None, 1.0), strict=True)))
    assert configurations.fastest_first("a", found, None) == found  # nothing known, nothing measured
    for _ in range(2):
        assert configurations.fastest_first("a", found, timer) == (found[2], found[0])
        monkeypatch.setattr(configurations, "_tuned", {})  # the next process
    assert timer.calls == 3
    assert configurations.fastest_first("a", found, None) == (found[2], found[0])
    configurations.fastest_first("b", found, timer)
    assert timer.calls == 6


@pytest.mark.parametrize("text", ["", "{", "[]", '{"milliseconds": [1.0]}', '{"milliseconds": ["1", 2.0, 3.0]}'])
def test_times_that_cannot_be_read_are_measured_again(text, nothing_tuned, monkeypatch):
    found = tuple(configurations.candidates("forward", ON_GPU, H100)[:3])
    timer = Timer(dict(zip(found, (3.0, 2.0, 1.0), strict=True)))
    configurations.fastest_first("a", found, timer)
    (file,) = nothing_tuned.rglob(configurations.TIMES)
    file.write_text(text)
    monkeypatch.setattr(configurations, "_tuned", {})
    assert configurations.fastest_first("a", found, timer) == found[::-1] and timer.calls == 6


def test_what_does_not_fit_gives_way_to_the_next(monkeypatch):
    call = Sample("gru", T=2, B=1, I=3, H=4).call(torch.float32)._replace(precision="tf32")
    tried = []

    def launch(kernel, call, configuration, operands, constants):
        tried.append(configuration.kind)
        if configuration.kind != "streamed":
            raise BackendError(f"triton: {configuration}: out of resource")

    ours = backend.TritonBackend()
    monkeypatch.setattr(backend, "launch", launch)
    monkeypatch.setattr(ours, "devices", {"cpu"})
    ours.forward(call)
    assert list(dict.fromkeys(tried)) == ["resident", "stepped", "streamed"]
    before = len(tried)
    ours.forward(call)  # does not try again what did not fit
    assert tried[before:] == ["streamed"]


def test_where_nothing_fits_every_reason_is_named(monkeypatch):
    from fusedrnn.backends import launches

    call = Sample("gru", T=2, B=1, I=3, H=4).call(torch.float32)._replace(precision="tf32")

    def too_large(*given):
        raise OutOfResources(300_000, 232_448, "shared memory")

    ours = backend.TritonBackend()
    monkeypatch.setattr(launches, "_launch_resident", too_large)
    monkeypatch.setattr(launches, "_launch_tiled", too_large)
    monkeypatch.setattr(ours, "devices", {"cpu"})
    with pytest.raises(BackendError) as error:
        ours.forward(call)
    for kind in ("resident", "streamed", "stepped"):
        assert f"triton: {kind} (16 rows" in str(error.value)
    assert "out of resource: shared memory, Required: 300000, Hardware limit: 232448" in str(error.value)
