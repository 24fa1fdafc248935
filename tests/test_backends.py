"""Every backend against the reference in float64, and against itself: bits, threads, schedules, memory."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import whole
from problems import (
    Sample,
    assert_close_to_float64,
    assert_equal,
    backward,
    cases,
    forward,
    inputs_of,
    run,
)

import fusedrnn
from fusedrnn import _extension, dispatch, fastest, ops
from fusedrnn.backends.base import BackendError, Fastest, Problem
from fusedrnn.cells import CELLS
from fusedrnn.dispatch import REGISTRY, explain, select, use_backend

BACKENDS = tuple(REGISTRY)
SHARED_LAYOUT = (
    "cpu",
    "reference",
)  # `torch` keeps what its libraries like, and infers with other kernels than it trains


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what torch.empty returns with NaN, so that an element no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_poison_reaches_the_outputs():
    call = Sample("lstm", T=3, B=2, I=4, H=5).call(torch.float32)
    for backend in REGISTRY.values():
        y, h_n, c_n, *_ = backend.new_outputs(call)
        assert y.isnan().all() and h_n.isnan().all() and c_n.isnan().all(), backend.name


@pytest.mark.parametrize(("sample", "backend"), cases(BACKENDS, torch.float32))
def test_float32_error_is_at_most_twice_that_of_torch(sample, backend):
    assert_close_to_float64(sample, backend, torch.float32, draws=12 if sample.saturating else 3)


@pytest.mark.parametrize(("sample", "backend"), cases(set(BACKENDS) - {"reference"}, torch.float64))
def test_float64_equals_the_reference(sample, backend):
    assert_equal(run(sample, backend, torch.float64), run(sample, "reference", torch.float64), 1e-12)


WIDE_SIZES = dict(T=7, B=260, I=257, H=259)  # rows that GEMMs write padded, over several chunks of dgates
WIDE = [
    Sample("rnn_tanh", **WIDE_SIZES, lengths="given"),
    Sample("gru", **WIDE_SIZES, batch_first=True, D=2),
    Sample("lstm", **WIDE_SIZES),
    Sample("lstm", **WIDE_SIZES, lengths="packed", D=2),
    Sample("gru", **WIDE_SIZES, tokens=True, reverse=True),
    *(Sample(cell, **WIDE_SIZES, resets=True) for cell in ("rnn_tanh", "gru", "lstm")),
    Sample("lstm", T=90, B=66, I=12, H=160, D=2, save="lean"),
    Sample("lstm", T=90, B=66, I=12, H=160, resets=True, save="lean"),
    Sample("gru", T=90, B=66, I=12, H=160, lengths="given", reverse=True, save="lean"),
]


@pytest.mark.parametrize(("sample", "backend"), cases(("cpu",), torch.float64, WIDE))
def test_wide_rows_in_float64_equal_the_reference(sample, backend):
    assert_equal(run(sample, backend, torch.float64), run(sample, "reference", torch.float64), 1e-12)


@pytest.mark.parametrize(("sample", "backend"), cases(("cpu",), torch.float64))
def test_forward_of_one_backend_with_backward_of_another(sample, backend):
    want = run(sample, "reference", torch.float64)
    assert_equal(run(sample, backend, torch.float64, backward_on="reference"), want, 1e-12)
    assert_equal(run(sample, "reference", torch.float64, backward_on=backend), want, 1e-12)


@pytest.mark.parametrize(("sample", "backend"), cases(("cpu",), torch.float64))
def test_saved_tensors_are_laid_out_alike(sample, backend):
    _, _, _, *ours = forward(sample.call(torch.float64), backend)
    _, _, _, *theirs = forward(sample.call(torch.float64), "reference")
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype


@pytest.mark.parametrize(("sample", "backend"), cases(BACKENDS, torch.float32))
def test_results_repeat_bit_for_bit(sample, backend):
    assert_equal(run(sample, backend, torch.float32), run(sample, backend, torch.float32))


@pytest.mark.parametrize(("sample", "backend"), cases(("cpu",), torch.float32))
def test_outputs_do_not_depend_on_the_threads(sample, backend):
    call, threads = sample.keeping("none").call(torch.float32), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(forward(call, backend)[:3])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("sample", "backend"), cases(SHARED_LAYOUT, torch.float32))
def test_saving_for_backward_changes_no_output(sample, backend):
    without, kept = (forward(sample.keeping(save).call(torch.float32), backend)[:3] for save in ("none", sample.save))
    for one, other in zip(without, kept, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("sample", "backend"), [c for c in cases(SHARED_LAYOUT, torch.float32) if c.values[0].save == "lean"]
)
def test_what_lean_rebuilds_is_what_full_keeps(sample, backend):
    """Bit for bit, where all steps are one chunk of sums and no step is a product of its own."""
    full, lean = (run(sample.keeping(save).on("hoisted"), backend, torch.float32) for save in ("full", "lean"))
    assert_equal(lean, full)


@pytest.mark.parametrize(("sample", "backend"), cases(BACKENDS, torch.float64))
@pytest.mark.parametrize("schedule", ["concat", "hoisted"])
def test_schedules_can_be_forced(sample, backend, schedule):
    if schedule not in REGISTRY[backend].schedules:
        with pytest.raises(BackendError, match=f"schedule {schedule} cannot be forced"):
            select(Problem.of(sample.on(schedule).call(torch.float64)), backend)
        return
    assert REGISTRY[backend].schedule(Problem.of(sample.on(schedule).call(torch.float64))) == schedule
    assert_equal(run(sample.on(schedule), backend, torch.float64), run(sample, "reference", torch.float64), 1e-12)


ONE_OF_EACH = [
    case
    for case in cases(BACKENDS, torch.float32)
    if case.values[0] in {Sample(cell, T=9, B=5, I=6, H=18, batch_first=True) for cell in CELLS}
    or case.values[0].tokens
]


@pytest.mark.parametrize(("sample", "backend"), ONE_OF_EACH)
def test_absent_and_expanded_cotangents(sample, backend):
    call = sample.call(torch.float32)
    outputs = forward(call, backend)
    absent, zeros = call.h0.new_empty(0), [torch.zeros_like(out) for out in outputs[:3]]
    given = range(3 if call.c0 is not None else 2)
    for k in given:
        one = torch.ones(()).expand(outputs[k].shape)
        sparse, dense = ([fill] * 3 for fill in (absent, None))
        sparse[k], dense = one, [one.clone() if j == k else zeros[j] for j in range(3)]
        for got, want in zip(
            backward(call, backend, sparse, outputs), backward(call, backend, dense, outputs), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("sample", "backend"), ONE_OF_EACH)
def test_any_layout(sample, backend):
    whole.takes_any_layout(sample, backend, torch.float32, 0 if backend == "cpu" else 1e-5)


@pytest.mark.parametrize(("sample", "backend"), ONE_OF_EACH)
def test_only_what_is_wanted_is_computed(sample, backend):
    call = sample.call(torch.float32)
    outputs = forward(call, backend)
    cotangents = sample.cotangents(outputs[:3])
    everything = backward(call, backend, cotangents, outputs)
    for k, tensor in enumerate(inputs_of(call)):
        if tensor is None or not tensor.is_floating_point():
            continue
        grads = backward(call, backend, cotangents, outputs, 1 << k)
        assert torch.equal(grads[k], everything[k])
        assert all(grad.shape == (0,) for j, grad in enumerate(grads) if j != k)


@pytest.mark.parametrize(("sample", "backend"), ONE_OF_EACH)
def test_inputs_are_not_written_and_outputs_share_no_memory(sample, backend):
    whole.writes_no_input_and_shares_no_memory(sample, backend, torch.float32)


@pytest.mark.parametrize(("sample", "backend"), ONE_OF_EACH)
def test_fake_kernels_tell_the_truth(sample, backend):
    call = sample.call(torch.float32)
    outputs = forward(call, backend)
    flat, options = (
        ops.flat(call),
        (call.cell, call.direction, call.batch_first, "auto", call.save, "ieee", backend),
    )
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.FORWARD[call.spec.op], (*flat, *options), test_utils=checks)
    y, _, _, saved, cells = outputs
    wanted = sum(1 << k for k, t in enumerate(inputs_of(call)) if t is not None and t.is_floating_point())
    arguments = (*sample.cotangents(outputs[:3]), *flat, y, saved, cells, *options, wanted)
    torch.library.opcheck(ops.BACKWARD[call.spec.op], arguments, test_utils=checks)


def test_a_named_backend_is_taken_or_refused_with_every_reason():
    half = Problem("lstm", "cpu", torch.float16, T=3, B=2, I=4, H=5)
    with pytest.raises(BackendError) as error:
        select(half, "torch")
    assert str(error.value).startswith("backend 'torch' cannot run lstm float16 T=3 B=2 I=4 H=5 on cpu. torch: ")
    for name in REGISTRY:
        assert f"{name}: " in str(error.value)
    with pytest.raises(ValueError, match="expected one of auto, cpu, cuda, triton, torch, reference, got 'cudnn'"):
        select(half, "cudnn")
    with pytest.raises(BackendError, match=r"no backend can run lstm bfloat16 .* on tpu"):
        select(Problem("lstm", "tpu", torch.bfloat16, T=3, B=2, I=4, H=5))


def test_auto_follows_use_backend_and_the_environment(monkeypatch):
    problem = Problem("gru", "cpu", torch.float32, T=3, B=2, I=4, H=5)
    monkeypatch.setattr(dispatch, "_environment", "")
    usual = select(problem)
    with use_backend("reference"):
        assert select(problem) == "reference"
        assert select(problem, usual) == usual
    assert select(problem) == usual
    monkeypatch.setattr(dispatch, "_environment", "reference")
    assert select(problem) == "reference"
    monkeypatch.setattr(dispatch, "_environment", "torch")
    with pytest.raises(BackendError, match="backend 'torch' cannot run gru"):
        select(problem)
    with pytest.raises(ValueError, match="expected one of"), use_backend("fastest"):
        pass


def test_the_environment_is_read_on_import():
    program = "import fusedrnn; print(fusedrnn.dispatch.requested('auto'))"
    for name in ("", "reference", "abacus"):  # an unknown name is an error where it is used, not here
        environment = {**os.environ, "FUSEDRNN_BACKEND": name}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f"{name or 'auto'}\n", "")


def test_explain_names_the_backend_the_schedule_and_the_reasons():
    text = explain(Problem("gru", "cpu", torch.float32, T=3, B=2, I=4, H=5), "reference")
    assert text.startswith("gru float32 T=3 B=2 I=4 H=5 on cpu: reference, schedule hoisted")
    assert "torch: on the CPU oneDNN runs lstm only" in text


def test_what_was_measured_on_a_gpu_comes_first(monkeypatch):
    problem = Problem("lstm", "cuda", torch.float32, T=35, B=16, I=4, H=64, precision="tf32")
    usual = ("torch", "cuda", "triton", "reference")
    assert dispatch.preference(problem) == usual
    where = ("lstm", "tf32", False, (35, fastest.ANY), (1, 64), (1, 128))
    found = Fastest("triton", *where), Fastest("cuda", *where)
    monkeypatch.setattr(dispatch, "_capability", lambda: (9, 0))
    monkeypatch.setitem(fastest.ON_GPU, (8, 0), found[1:])
    assert dispatch.preference(problem) == usual
    monkeypatch.setitem(fastest.ON_GPU, (9, 0), found)
    assert dispatch.preference(problem) == ("triton", "torch", "cuda", "reference")
    for same in (dict(H=1), dict(T=70_000), dict(D=2), dict(B=64, H=128)):
        assert dispatch.preference(dataclasses.replace(problem, **same))[0] == "triton"
    others = [dict(cell="gru"), dict(dtype=torch.float16), dict(precision="ieee"), dict(save="full")]
    for other in (*others, dict(H=129), dict(B=65), dict(T=34)):
        assert dispatch.preference(dataclasses.replace(problem, **other)) == usual


@pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason())
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("RNN", torch.float32), ("GRU", torch.float32), ("LSTM", torch.float32), ("LSTM", torch.float64)],
)
@pytest.mark.parametrize(("B", "I"), [(16, 32), (15, 32), (16, 33)])
def test_the_schedule_that_auto_names_is_the_one_that_runs(name, dtype, B, I):
    """The two sum in another order, and so give other bits. Of two layers each has its own: the second has H inputs."""
    cell, H, made = "rnn_tanh" if name == "RNN" else name.lower(), 64, getattr(fusedrnn, name)
    any_input = name == "LSTM" and dtype == torch.float32
    taken, above = ("concat" if B == 16 and short else "hoisted" for short in (any_input or I == 32, any_input))
    for T, inputs, schedule in ((5, I, taken), (5, H, above), (1, I, "concat")):
        assert REGISTRY["cpu"].schedule(Problem(cell, "cpu", dtype, T, B, inputs, H)) == schedule
    layers, x = made(I, H, 2, backend="cpu", dtype=dtype), torch.randn(5, B, I, dtype=dtype)

    def one(number: int, schedule: str) -> torch.nn.RNNBase:
        """Of the layers, with a schedule."""
        layer = made(H if number else I, H, backend="cpu", schedule=schedule, dtype=dtype)
        own = {key: t for key, t in layers.state_dict().items() if key.endswith(str(number))}
        layer.load_state_dict({key[:-1] + "0": t for key, t in own.items()})
        return layer

    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = {schedule: one(0, schedule)(x)[0] for schedule in ("auto", "concat", "hoisted")}
            assert [how for how in ("concat", "hoisted") if torch.equal(y["auto"], y[how])] == [taken]
            assert torch.equal(layers(x)[0], one(1, above)(y["auto"])[0])


def test_kernels_that_wait_through_memory_come_last_until_they_are_measured(monkeypatch):
    problem = Problem("lstm", "cuda", torch.bfloat16, T=3, B=16, I=4, H=1024, resets=True)
    monkeypatch.setattr(dispatch.REGISTRY["cuda"], "waits_through_memory", lambda problem: problem.H > 768)
    assert dispatch.preference(problem) == ("torch", "triton", "cuda", "reference")
    assert dispatch.preference(dataclasses.replace(problem, H=768)) == ("torch", "cuda", "triton", "reference")


def test_out_of_range_values_are_refused_before_a_kernel_sees_them():
    net = fusedrnn.GRU(5, 4)
    for bad in (5, -1):
        with pytest.raises(IndexError, match=rf"expected tokens in \[0, 5\), the vocabulary, got {bad}"):
            net(torch.tensor([[0], [bad]]))
