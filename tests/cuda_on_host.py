"""The `cuda` backend with its kernels built for the CPU, on CPU tensors: FUSEDRNN_CUDA_LIBRARY=... pytest
tests/cuda_on_host.py. test_cuda_host.py builds them and runs it in a process of its own.

Each launch draws another schedule of its threads and copies. tanh and exp2 are rounded here; on a GPU they are not.
"""

import dataclasses
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import whole
from problems import Sample, assert_close_to_float64, assert_equal, backward, cases, forward, run

import fusedrnn
from benchmarks.gpu import library, sanitizer, soak
from fusedrnn.backends import cuda as backend
from fusedrnn.backends.base import BackendError, Problem
from fusedrnn.dispatch import REGISTRY, explain, select

assert backend.ON_HOST, "run with FUSEDRNN_CUDA_LIBRARY"

SIZES = (
    dict(T=1, B=1, I=1, H=8),
    dict(T=6, B=0, I=3, H=8),
    dict(T=3, B=17, I=5, H=64),  # three batch tiles, the last of one row
    dict(T=5, B=3, I=7, H=16, saturating=True),
    dict(T=4, B=5, I=6, H=24, strided=True),
    dict(T=4, B=3, I=4, H=8, reverse=True),
    dict(T=4, B=3, I=5, H=24, D=2, bias=False, batch_first=True),
    dict(T=5, B=4, I=27, H=24, tokens=True, D=2, lengths="packed"),
    dict(T=4, B=4, I=27, H=24, tokens=True, D=2, resets=True, batch_first=True),
    dict(T=5, B=5, I=6, H=24, D=2, resets=True, lengths="given"),
    dict(T=5, B=4, I=6, H=16, D=2, resets=True, lengths="packed"),
    dict(T=7, B=9, I=6, H=40),
)
LARGEST = {  # of one CTA: of 16 bits, of TF32 with gradients, of TF32, of IEEE float32
    "rnn_tanh": (256, 128, 256, 256),
    "gru": (192, 128, 128, 128),
    "lstm": (128, 64, 128, 128),
}
TF32 = 8 * 2.0**-11  # operands of products lose 13 bits, half of the last one left
SAMPLES = [Sample(cell, **size) for cell in backend.CELLS for size in SIZES]
SMOOTH = [sample for sample in SAMPLES if sample.cell != "rnn_relu"]
FEW = [Sample(cell, **SIZES[k]) for cell, k in zip(backend.CELLS, (9, 10, 8, 7), strict=True)]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what torch.empty returns with NaN, so that an element no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_processors(monkeypatch, processors):
    """A GPU of so many that has clusters of 16."""
    limits = backend.Limits(backend.HOPPER_SHARED, 16, processors)
    monkeypatch.setattr(backend, "_limits", lambda: limits)


@pytest.mark.parametrize(("sample", "name"), cases(["cuda"], torch.bfloat16, SMOOTH))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_error_is_at_most_twice_that_of_torch(sample, name, dtype):
    assert_close_to_float64(sample, name, dtype, draws=8 if sample.saturating else 2)


@pytest.mark.parametrize(("sample", "name"), cases(["cuda"], torch.float32, SAMPLES))
def test_float32_is_as_near_as_torch(sample, name):
    """By one or two rows of the batch in a CTA, as B*D says."""
    assert_close_to_float64(sample, name, torch.float32, draws=2)


@pytest.mark.parametrize("sample", SMOOTH, ids=str)
def test_tf32_is_that_near(sample):
    assert_tf32_is_near(sample)


def assert_tf32_is_near(sample):
    """torch multiplies float32 as it is on a CPU."""
    found = run(sample, "cuda", torch.float32, precision="tf32")
    assert_equal(found, run(sample, "reference", torch.float32), TF32)


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if sample not in SMOOTH], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 4e-3), (torch.float32, 4e-3)])
def test_relu(sample, dtype, tolerance):
    """Gradients are those of the units that were positive; by rounding others may be than in float64."""
    call, exact = (sample.call(of)._replace(precision="tf32") for of in (dtype, torch.float64))
    outputs = forward(call, "cuda")
    wide = tuple(t.double() for t in outputs)
    cotangents = sample.cotangents(outputs[:3])
    grads = backward(call, "cuda", cotangents, outputs)
    want = (*forward(exact, "reference")[:3], *backward(exact, "reference", sample.cotangents(wide[:3]), wide))
    assert_equal(dict(enumerate((*outputs[:3], *grads))), dict(enumerate(want)), tolerance)


SMALL = (*(SIZES[k] for k in (1, 5, 6, 7, 9, 10)), dict(T=3, B=9, I=32, H=128))
CONCAT = [Sample(cell, **size, schedule="concat") for cell in LARGEST for size in SMALL]


def test_relu_passes_the_gradient_of_nan():
    layer, x = fusedrnn.RNN(4, 8, nonlinearity="relu", backend="cuda", dtype=torch.bfloat16), torch.ones(1, 1, 4)
    like, x = layer.to_torch(), x.bfloat16()
    x[0, 0, 1] = torch.nan
    for module in (layer, like):
        module(x)[0].sum().backward()
    assert torch.equal(layer.bias_hh_l0.grad, like.bias_hh_l0.grad) and bool(like.bias_hh_l0.grad.all())


@pytest.mark.parametrize("sample", CONCAT, ids=str)
def test_x_and_h_in_one_step(sample):
    assert_close_to_float64(sample, "cuda", torch.bfloat16, draws=2)
    if sample.H <= 64:
        assert_close_to_float64(sample, "cuda", torch.float32, draws=2)
    if sample.cell != "lstm" or sample.H < 128:
        assert_tf32_is_near(dataclasses.replace(sample, H=min(sample.H, 64)))


@pytest.mark.parametrize("cell", LARGEST)
def test_the_largest_kernels(cell):
    sizes = dict(T=3, B=3, I=12)
    in_16_bits, with_gradients, alone, in_ieee = LARGEST[cell]
    for D in (1, 2):
        assert_close_to_float64(Sample(cell, **sizes, D=D, H=in_ieee), "cuda", torch.float32, draws=1)
    for H in (128, in_16_bits - 8, in_16_bits):
        assert_close_to_float64(Sample(cell, **sizes, H=H), "cuda", torch.bfloat16, draws=2)
    assert_tf32_is_near(Sample(cell, **sizes, H=with_gradients))
    sample = Sample(cell, **sizes, H=alone, save="none")
    calls = (sample.call(torch.float32)._replace(precision=of) for of in ("tf32", "ieee"))
    found, want = (dict(enumerate(forward(call, name)[:3])) for call, name in zip(calls, ("cuda", "cpu"), strict=True))
    assert_equal(found, want, TF32)


OF_CLUSTERS = (
    Sample("lstm", T=3, B=3, I=7, H=136, D=2, lengths="packed"),
    Sample("lstm", T=2, B=1, I=7, H=264, reverse=True),
    Sample("gru", T=3, B=2, I=27, H=200, tokens=True, resets=True),
    Sample("rnn_tanh", T=3, B=9, I=6, H=264, lengths="given"),
    Sample("lstm", T=2, B=1, I=3, H=520),
    Sample("gru", T=2, B=1, I=3, H=640),
    Sample("lstm", T=2, B=1, I=3, H=768),
    Sample("gru", T=2, B=2, I=3, H=896),
)


@pytest.mark.parametrize("sample", OF_CLUSTERS, ids=str)
def test_clusters(sample):
    assert_close_to_float64(sample, "cuda", torch.bfloat16, draws=1)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters_in_tf32(cell):
    assert_tf32_is_near(Sample(cell, T=2, B=2, I=5, H=140))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("cell", LARGEST)
def test_clusters_in_float32(cell, rows, monkeypatch):
    sample = Sample(cell, T=2, B=3, I=5, H=260 if cell == "rnn_tanh" else 132)
    on_processors(monkeypatch, 24 if rows == 1 else 23)
    assert backend._tile(sample.call(torch.float32)) == rows
    assert_close_to_float64(sample, "cuda", torch.float32, draws=1)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_smaller_clusters_take_what_larger_ones_would_in_turns(cell, monkeypatch):
    """Two tiles by one cluster of 8 or two of 4; of the GRU by one of 16 or two of 8."""
    of_gru = ((264, 16, 8), (264, 32, 16)) if cell == "gru" else ()
    for H, processors, ctas in ((200, 8, 4), (200, 16, 8), *of_gru):
        on_processors(monkeypatch, processors)
        sample = Sample(cell, T=2, B=9, I=3, H=H)
        assert backend._needs("forward", "processors", sample.call(torch.bfloat16), 8) == 2 * ctas
        if ctas < 16:
            assert_close_to_float64(sample, "cuda", torch.bfloat16, draws=1)


def test_clusters_repeat():
    whole.repeats_and_saving_changes_no_output(OF_CLUSTERS[0], "cuda", torch.float16)


@pytest.fixture
def grids(monkeypatch):
    """Room for one grid of 64 CTAs at a time."""
    on_processors(monkeypatch, 64)


OF_GRIDS = (
    Sample("lstm", T=2, B=1, I=3, H=776),
    Sample("gru", T=2, B=2, I=27, H=904, tokens=True, resets=True),
    Sample("rnn_tanh", T=2, B=1, I=6, H=1032, reverse=True),
)


@pytest.mark.parametrize("sample", OF_GRIDS, ids=str)
def test_grids(sample, grids):
    assert_close_to_float64(sample, "cuda", torch.bfloat16, draws=1)


def test_grids_in_tf32(grids):
    assert_tf32_is_near(Sample("gru", T=2, B=2, I=5, H=516))


def test_grids_in_turns_and_by_parts_of_the_input(grids, monkeypatch):
    """Two tiles, for which there is no room at once; the numbers of packets go on from part to part."""
    sample = Sample("rnn_tanh", T=2, B=1, I=3, H=1032, D=2)
    assert backend._needs("forward", "turns", sample.call(torch.bfloat16), 8) == 2
    want = forward(sample.call(torch.bfloat16), "cuda")
    monkeypatch.setattr(backend, "_parts", lambda call, tile: 2)
    assert_equal(*(dict(enumerate(found[:3])) for found in (forward(sample.call(torch.bfloat16), "cuda"), want)))


def test_a_grid_that_does_not_run_at_once_is_refused(monkeypatch):
    problem = Problem("lstm", "cpu", torch.bfloat16, T=3, B=17, I=4, H=776)
    for processors, most in ((63, 768), (64, 1024), (80, 1280), (127, 1280), (128, 2048)):
        on_processors(monkeypatch, processors)
        assert backend._most_hidden("forward", "lstm", "bf16", 8, 0, *backend._limits()) == most
        assert REGISTRY["cuda"].waits_through_memory(problem) == (processors > 63)
    on_processors(monkeypatch, 63)
    with pytest.raises(BackendError, match="H=776, forward holds at most 768 units"):
        select(problem, "cuda")
    on_processors(monkeypatch, 192)  # three grids, more threads than the host build has
    with pytest.raises(RuntimeError, match="cuda: too many blocks in cooperative launch"):
        REGISTRY["cuda"].forward(Sample("lstm", T=1, B=17, I=4, H=776).call(torch.bfloat16))


OF_PARTS = (
    Sample("lstm", T=7, B=3, I=6, H=40, D=2, lengths="given"),
    Sample("gru", T=6, B=9, I=5, H=24, reverse=True, resets=True),
    Sample("rnn_tanh", T=5, B=2, I=3, H=16, D=2, bias=False, batch_first=True),
    Sample("lstm", T=4, B=2, I=3, H=136, D=2),
)


@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize("sample", OF_PARTS, ids=str)
def test_parts_of_the_input_give_the_same(sample, parts, monkeypatch):
    want = run(sample, "cuda", torch.bfloat16)
    monkeypatch.setattr(backend, "_parts", lambda call, tile: min(parts, call.T))
    assert_equal(run(sample, "cuda", torch.bfloat16), want)


def test_parts_of_a_strided_input(monkeypatch):
    """torch multiplies it whole by other kernels than in parts."""
    monkeypatch.setattr(backend, "_parts", lambda call, tile: 3)
    sample = Sample("lstm", T=4, B=2, I=3, H=136, D=2, strided=True)
    assert_close_to_float64(sample, "cuda", torch.bfloat16, draws=2)


def test_parts_are_made_beside_a_loop_that_leaves_room(monkeypatch):
    monkeypatch.setattr(backend, "ON_HOST", False)
    on_processors(monkeypatch, 132)

    def parts(**sizes):
        call = Sample("lstm", **dict(T=1024, B=16, I=512, H=512) | sizes).call(torch.bfloat16)
        return backend._parts(call, backend._tile(call))

    assert parts() == 3  # of 69 us
    assert parts(T=64) == parts(B=64) == parts(tokens=True, I=64) == parts(lengths="packed") == parts(T=0) == 1
    assert parts(H=768, B=8) > parts(H=776, B=8) == 1  # a grid
    monkeypatch.setattr(backend, "BEGINNING", 1e-9)
    assert parts() == 8 and parts(T=5) == 5


def test_a_gpu_is_asked_once_for_its_limits(monkeypatch):
    asked = []

    def properties(device):
        asked.append(device)
        return SimpleNamespace(shared_memory_per_block_optin=100 + device, multi_processor_count=132)

    monkeypatch.setattr(backend, "ON_HOST", False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    for device in (5, 7, 5):
        monkeypatch.setattr(torch.cuda, "current_device", lambda of=device: of)
        assert backend._limits() == (100 + device, 16, 132)
    assert asked == [5, 7]


@pytest.mark.parametrize(
    ("ctas", "units"), [(1, (256, 192, 128)), (4, (256, 256, 256)), (8, (512, 512, 256)), (16, (1024, 896, 768))]
)
def test_a_gpu_may_have_no_clusters_or_small_ones(ctas, units):
    for processors in (63, 132):
        limits = (backend.HOPPER_SHARED, ctas, processors)
        found = (backend._most_hidden("forward", cell, "bf16", 8, 0, *limits) for cell in LARGEST)
        assert tuple(found) == (units if processors < 64 or ctas == 1 else (2048, 2048, 2048))


@pytest.mark.parametrize(("refused", "units"), [(14, 768), (16, 896), (8, 896), (2, 896)])
def test_a_gpu_may_refuse_clusters_of_a_size(refused, units):
    """Of the GRU 896 units are by clusters of 14, 768 of 16; grids are of clusters of 2."""
    found = (f"cuda._most_hidden('forward', 'gru', 'bf16', 8, 0, *cuda._limits()[:2], {n})" for n in (63, 132))
    program = f"from fusedrnn.backends import cuda; print({', '.join(found)})"
    environment = {**os.environ, "FUSEDRNN_HOST_REFUSES": str(refused)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ran.stdout.split() == [str(units), str(units if refused == 2 else 2048)], ran.stderr


@pytest.mark.parametrize("sample", FEW, ids=str)
def test_forward_of_one_backend_with_backward_of_another(sample):
    want = run(sample, "reference", torch.bfloat16)
    assert_equal(run(sample, "cuda", torch.bfloat16, backward_on="reference"), want, 0.03)
    assert_equal(run(sample, "reference", torch.bfloat16, backward_on="cuda"), want, 0.03)


@pytest.mark.parametrize("sample", FEW, ids=str)
def test_results_repeat_and_saving_changes_no_output(sample):
    whole.repeats_and_saving_changes_no_output(sample, "cuda", torch.bfloat16)


@pytest.mark.parametrize("sample", FEW, ids=str)
def test_absent_and_expanded_cotangents_and_single_gradients(sample):
    whole.takes_any_cotangents_and_gives_single_gradients(sample, "cuda", torch.bfloat16)


@pytest.mark.parametrize("sample", FEW, ids=str)
def test_any_layout(sample):
    whole.takes_any_layout(sample, "cuda", torch.bfloat16)


ONE_TOKEN = Sample("gru", T=3, B=2, I=1, H=8, tokens=True)  # its table of one row is W_ih itself


@pytest.mark.parametrize("sample", [*FEW, ONE_TOKEN], ids=str)
def test_inputs_are_not_written_and_outputs_share_no_memory(sample):
    whole.writes_no_input_and_shares_no_memory(sample, "cuda", torch.bfloat16)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_modules_train_on_it(name, packed):
    module = getattr(fusedrnn, name)(5, 8, num_layers=2, bidirectional=True, backend="cuda", dtype=torch.float16)
    whole.trains(module, packed, 0.02)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_gradient_for_each_sample(name):
    whole.gives_a_gradient_for_each_sample(getattr(fusedrnn, name)(5, 8, backend="cuda", dtype=torch.float16), 0.02)


def test_the_layers_for_the_sanitizer():
    sanitizer.main("cpu", sanitizer.ONE_CTA)


def test_a_soak(monkeypatch):
    assert not any(said for _, said in soak.soak(range(16), "cpu", largest=64))
    right = REGISTRY["cuda"].forward

    def wrong(call):
        outputs = right(call)
        outputs[0][-1, ..., -1] += 0.5
        return outputs

    monkeypatch.setattr(REGISTRY["cuda"], "forward", wrong)
    [(_, said)] = soak.soak([3], "cpu", largest=64)
    assert re.fullmatch(r"y is 0\.\d+ off, .* allowed", said)


def test_what_it_serves_and_why_not():
    problem = Problem("gru", "cpu", torch.bfloat16, T=3, B=2, I=4, H=64, save="full")
    assert select(problem, "cuda") == "cuda" and select(problem) == "cpu"
    assert explain(problem, "cuda").startswith("gru bfloat16 T=3 B=2 I=4 H=64 on cpu: cuda, schedule hoisted")
    reasons = {
        "H=60 is not a multiple of 8": dict(H=60),
        "H=904, forward holds at most 896 units": dict(H=904),
        "H=516, backward holds at most 512 units": dict(H=516, cell="rnn_tanh", dtype=torch.float32, precision="tf32"),
        "H=520, forward holds at most 512 units": dict(H=520, cell="lstm", dtype=torch.float32, precision="tf32"),
        "H=62 is not a multiple of 4": dict(H=62, dtype=torch.float32, precision="tf32"),
        "H=516, forward holds at most 512 units": dict(H=516, dtype=torch.float32),
        "dtype float64": dict(dtype=torch.float64),
        "cell gru_reset_before": dict(cell="gru_reset_before"),
        "lean is not supported": dict(save="lean"),
        "H=64, forward with I=33 in the loop holds at most 0 units": dict(schedule="concat", I=33),
    }
    for reason, changes in reasons.items():
        with pytest.raises(BackendError, match=reason):
            select(dataclasses.replace(problem, **changes), "cuda")


def test_what_does_not_fit_is_refused():
    call = Sample("lstm", T=3, B=2, I=5, H=8, D=2).call(torch.bfloat16)
    misfits = {
        "h0: expected": dict(h0=call.h0.float()),
        "x: expected torch.bfloat16 .3, 1, 5.": dict(h0=call.h0[:, :1]),
        "c0: expected one": dict(c0=None),
        "x: expected": dict(x=call.x.float()),
        "lengths: expected": dict(lengths=torch.ones(3, dtype=torch.int64)),
        "resets: expected": dict(resets=torch.zeros(2, 3, dtype=torch.bool)),
        "w_hh: expected": dict(weights=(call.weights[0], call.weights[1]._replace(w_hh=call.weights[1].w_hh[:, 1:]))),
        "w_ih: expected": dict(x=call.x[..., :4].contiguous(), weights=(call.weights[0]._replace(w_ih=call.x),) * 2),
    }
    for message, changes in misfits.items():
        with pytest.raises((ValueError, BackendError), match=message):
            REGISTRY["cuda"].forward(call._replace(**changes))
    outputs = forward(call, "cuda")
    for k in (0, 3, 4):
        short = [t[..., :-1] if j == k else t for j, t in enumerate(outputs)]
        with pytest.raises(ValueError, match="expected"):
            REGISTRY["cuda"].backward(call, None, None, None, short[0], *short[3:], -1)


def test_tokens_outside_the_vocabulary_are_refused():
    call = Sample("gru", T=2, B=1, I=3, H=8, tokens=True).call(torch.bfloat16)
    with pytest.raises(RuntimeError, match="token outside the vocabulary"):
        REGISTRY["cuda"].forward(call._replace(x=call.x + 3))


def test_a_library_of_other_sources_is_known(monkeypatch):
    assert library.missing().endswith("was built of other sources")
    monkeypatch.setattr(library, "sources", lambda: "")
    assert library.missing() == ""
