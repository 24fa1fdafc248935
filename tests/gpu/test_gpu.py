"""On a CUDA device: every backend against float64, the modules against torch.nn, graphs, compilation, the chip.

Of packages only torch and pytest are needed, so that this runs where nothing can be installed.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from problems import Sample, assert_close_to_float64, assert_equal, cases, run
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fusedrnn
from benchmarks.gpu import layers, micro, plan, steps
from fusedrnn import ops
from fusedrnn.backends import configurations, cuda, triton
from fusedrnn.backends.base import Problem
from fusedrnn.bench import grid
from fusedrnn.cells import CELLS
from fusedrnn.dispatch import REGISTRY
from fusedrnn.lm.captured import CapturedStep
from fusedrnn.lm.config import TrainConfig
from fusedrnn.lm.evaluation import evaluate
from fusedrnn.lm.sampling import Choice, generate
from fusedrnn.lm.trainer import Trainer

pytestmark = pytest.mark.gpu
BACKENDS = [name for name, backend in REGISTRY.items() if "cuda" in backend.devices]
SIZES = (
    dict(T=1, B=1, I=1, H=1),
    dict(T=20, B=3, I=7, H=15, saturating=True),
    dict(T=9, B=5, I=6, H=18, strided=True, batch_first=True),
    dict(T=9, B=3, I=4, H=11, reverse=True),
    dict(T=8, B=3, I=5, H=19, D=2, bias=False),
    dict(T=31, B=9, I=20, H=37, D=2, lengths="packed"),
    dict(T=11, B=4, I=27, H=20, tokens=True, D=2, batch_first=True),
    dict(T=9, B=5, I=6, H=18, D=2, resets=True, lengths="given"),
    dict(T=7, B=66, I=12, H=64),
)
WIDE = [Sample(cell, T=20, B=16, I=128, H=256) for cell in ("rnn_tanh", "gru", "lstm")]
SAMPLES = [*(Sample(cell, **size) for cell in CELLS for size in SIZES), *WIDE]
FAST = [name for name in BACKENDS if name != "reference"]


def skip_unless_served(sample, backend, dtype, precision):
    problem = dataclasses.replace(Problem.of(sample.call(dtype)), device="cuda", precision=precision)
    if reasons := REGISTRY[backend].not_supported_reasons(problem):
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize(("sample", "backend"), cases(BACKENDS, torch.float32, SAMPLES, "cuda"))
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_float32_error_is_at_most_twice_that_of_torch(sample, backend, precision):
    skip_unless_served(sample, backend, torch.float32, precision)
    with grid.float32_precision(precision):
        draws = 6 if sample.saturating else 2
        assert_close_to_float64(sample, backend, torch.float32, draws, device="cuda", precision=precision)


@pytest.mark.parametrize(("sample", "backend"), cases(FAST, torch.bfloat16, SAMPLES, "cuda"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_error_is_at_most_twice_that_of_torch(sample, backend, dtype):
    assert_close_to_float64(sample, backend, dtype, draws=2, device="cuda")


ON_CHIP = (
    dict(T=1, B=1, I=1, H=8),
    dict(T=20, B=3, I=7, H=16, saturating=True),
    dict(T=9, B=5, I=6, H=24, strided=True, batch_first=True),
    dict(T=9, B=3, I=4, H=8, reverse=True),
    dict(T=8, B=3, I=5, H=40, D=2, bias=False),
    dict(T=31, B=9, I=20, H=56, D=2, lengths="packed"),
    dict(T=11, B=4, I=27, H=24, tokens=True, D=2, batch_first=True),
    dict(T=9, B=5, I=6, H=24, D=2, resets=True, lengths="given"),
    dict(T=7, B=66, I=12, H=64),
    dict(T=35, B=16, I=64, H=64),
    dict(T=35, B=16, I=64, H=128),
    dict(T=35, B=16, I=64, H=192),
    dict(T=35, B=16, I=64, H=256),
    dict(T=21, B=9, I=20, H=264, D=2, lengths="packed"),
    dict(T=11, B=4, I=27, H=504, tokens=True, resets=True),
    dict(T=35, B=200, I=64, H=512),
    dict(T=9, B=5, I=6, H=1000, reverse=True),
    dict(T=21, B=9, I=20, H=1032, D=2, lengths="packed"),
    dict(T=11, B=40, I=27, H=1280, tokens=True, resets=True),
)
HELD = [Sample(cell, **size) for cell in cuda.CELLS if cell != "rnn_relu" for size in ON_CHIP]


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.bfloat16, "tf32"), (torch.float16, "tf32"), (torch.float32, "tf32"), (torch.float32, "ieee")],
    ids=str,
)
@pytest.mark.parametrize(("sample", "backend"), cases(["cuda"], torch.bfloat16, HELD, "cuda"))
def test_weights_on_chip_error_is_at_most_twice_that_of_torch(sample, backend, dtype, precision):
    skip_unless_served(sample, backend, dtype, precision)
    with grid.float32_precision(precision):
        assert_close_to_float64(sample, backend, dtype, draws=2, device="cuda", precision=precision)


@pytest.mark.parametrize(("sample", "backend"), cases(["cuda"], torch.bfloat16, HELD[5:], "cuda"))
def test_results_of_weights_on_chip_repeat_bit_for_bit(sample, backend):
    first, second = (run(sample, backend, torch.bfloat16, device="cuda") for _ in range(2))
    assert_equal(first, second)


@pytest.mark.skipif(bool(REGISTRY["cuda"].unavailable_reason()), reason=REGISTRY["cuda"].unavailable_reason() or "")
@pytest.mark.parametrize("hidden", [64, 264, 1032])
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_cuda_in_a_graph_of_the_users_own(cell, hidden):
    layer = getattr(fusedrnn, cell)(24, hidden, backend="cuda", device="cuda", dtype=torch.bfloat16)
    assert_graphs_replay(layer, torch.randn(17, 3, 24, device="cuda", dtype=torch.bfloat16))


@pytest.mark.skipif(bool(REGISTRY["cuda"].unavailable_reason()), reason=REGISTRY["cuda"].unavailable_reason() or "")
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_cuda_with_the_input_made_beside_the_loop(cell, monkeypatch):
    layer = getattr(fusedrnn, cell)(
        24, 264, bidirectional=True, backend="cuda", device="cuda", dtype=torch.bfloat16
    ).requires_grad_(False)
    x = torch.randn(65, 3, 24, device="cuda", dtype=torch.bfloat16)
    whole = layer(x)[0]
    monkeypatch.setattr(cuda, "_parts", lambda call, tile: 4)
    torch.testing.assert_close(layer(x)[0], whole, rtol=0, atol=0.02)
    assert_graphs_replay(layer, x)


@pytest.mark.skipif(bool(REGISTRY["cuda"].unavailable_reason()), reason=REGISTRY["cuda"].unavailable_reason() or "")
def test_cuda_grids_on_two_streams():
    """Which do not fit at once, and begin while the other runs."""
    layers = [fusedrnn.LSTM(24, 1280, backend="cuda", device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    x = torch.randn(200, 3, 24, device="cuda", dtype=torch.bfloat16)
    want = [layer(x)[0] for layer in layers]
    streams = [torch.cuda.Stream() for _ in layers]
    torch.cuda.synchronize()
    found: list[list[torch.Tensor]] = [[], []]
    for _ in range(10):
        for layer, stream, ys in zip(layers, streams, found, strict=True):
            with torch.cuda.stream(stream):
                ys.append(layer(x)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(y, alone) for ys, alone in zip(found, want, strict=True) for y in ys)


LAYERS_OF_TORCH = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}]


def of_torch(cell: str, **options) -> tuple[nn.Module, nn.Module]:
    theirs = getattr(nn, cell)(24, 40, device="cuda", **options)
    ours = getattr(fusedrnn, cell)(24, 40, device="cuda", backend="torch", **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.filterwarnings("error:RNN module weights")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", LAYERS_OF_TORCH, ids=str)
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_backend_torch_is_torchs_own_call(cell, options, packed, monkeypatch):
    ours, theirs = of_torch(cell, **options)
    monkeypatch.setattr(ops, "forward", None)
    x = torch.randn(17, 17, 24, device="cuda")
    given = pack_padded_sequence(x, torch.arange(17, 0, -1)) if packed else x
    ys = [net(given)[0] for net in (ours, theirs)]
    ys = [y.data if packed else y for y in ys]
    assert torch.equal(*ys)
    grads = [torch.autograd.grad(y.square().sum(), net.parameters()) for y, net in zip(ys, (ours, theirs), strict=True)]
    torch.testing.assert_close(*grads)  # cuDNN adds up weights' gradients in any order
    with torch.no_grad():
        y = ours(given)[0]
        assert torch.equal(y.data if packed else y, ys[1])


@pytest.mark.parametrize("options", LAYERS_OF_TORCH, ids=str)
def test_backend_torch_is_differentiated_twice(options):
    """Which cuDNN refuses."""
    ours, _ = of_torch("LSTM", **options)
    other = fusedrnn.LSTM(24, 40, device="cuda", backend="reference", **options)
    other.load_state_dict(ours.state_dict())
    x = torch.randn(5, 3, 24, device="cuda", requires_grad=True)

    def second(net):
        (first,) = torch.autograd.grad(net(x)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *net.parameters()])

    with grid.float32_precision("ieee"):
        torch.testing.assert_close(second(ours), second(other), rtol=1e-3, atol=1e-3)


def test_a_captured_step_of_backend_torch():
    """The graph inside a node of autograd, too."""
    ours, theirs = of_torch("LSTM")
    x, side = torch.randn(9, 3, 24, device="cuda"), torch.cuda.Stream()
    want = torch.autograd.grad(theirs(x)[0].square().sum(), theirs.parameters())
    with torch.cuda.stream(side):
        torch.autograd.grad(ours(x)[0].square().sum(), ours.parameters())
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = torch.autograd.grad(ours(x)[0].square().sum(), ours.parameters())
    graph.replay()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("cell", ["RNNCell", "GRUCell", "LSTMCell"])
def test_backend_torch_is_torchs_own_step(cell, monkeypatch):
    ours, theirs = of_torch(cell)
    monkeypatch.setattr(ops, "forward", None)
    x = torch.randn(3, 24, device="cuda")
    ys = [net(x)[0] if cell == "LSTMCell" else net(x) for net in (ours, theirs)]
    assert torch.equal(*ys)
    grads = [torch.autograd.grad(y.square().sum(), net.parameters()) for y, net in zip(ys, (ours, theirs), strict=True)]
    torch.testing.assert_close(*grads)


@pytest.fixture
def kind(request, monkeypatch):
    """Has Triton's kernels of one kind run what others come first for."""

    def of_kind(*problem):
        return [c for c in configurations.preferred(*problem) if c.kind == request.param]

    monkeypatch.setattr(triton, "preferred", of_kind)
    return request.param


MIDDLE = [Sample(cell, T=21, B=19, I=24, H=144, D=2, lengths="packed") for cell in CELLS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("sample", "backend"), cases(["triton"], torch.float32, MIDDLE, "cuda"))
@pytest.mark.parametrize("kind", ["streamed", "stepped"], indirect=True)
def test_weights_in_memory_error_is_at_most_twice_that_of_torch(kind, sample, backend, dtype):
    """Three drawings: of the stepped kernels the first is launched step by step, the second captured, the third
    replayed."""
    with grid.float32_precision("tf32"):
        assert_close_to_float64(sample, backend, dtype, draws=3, device="cuda", precision="tf32")


@pytest.mark.parametrize("kind", ["resident", "streamed", "stepped"], indirect=True)
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_triton_in_a_graph_of_the_users_own(cell, kind):
    layer = getattr(fusedrnn, cell)(24, 64, backend="triton", device="cuda", dtype=torch.bfloat16)
    assert_graphs_replay(layer, torch.randn(17, 3, 24, device="cuda", dtype=torch.bfloat16))


def assert_graphs_replay(layer, x):
    with torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = layer(x)
        for _ in range(2):
            x.normal_()
            graph.replay()
            assert torch.equal(y, layer(x)[0])


@pytest.mark.parametrize(("sample", "backend"), cases(BACKENDS, torch.float64, SAMPLES, "cuda"))
def test_float64_equals_the_reference(sample, backend):
    assert_equal(run(sample, backend, torch.float64, device="cuda"), run(sample, "reference", torch.float64), 1e-12)


@pytest.mark.parametrize(("sample", "backend"), cases(BACKENDS, torch.float32, WIDE, "cuda"))
def test_results_repeat_bit_for_bit(sample, backend):
    first, second = (run(sample, backend, torch.float32, device="cuda") for _ in range(2))
    assert_equal(first, second)


@pytest.mark.parametrize("layout", grid.LAYOUTS)
@pytest.mark.parametrize("precision", plan.PRECISIONS)
@pytest.mark.parametrize("cell", grid.CELLS)
def test_modules_agree_with_torch_eagerly_and_replayed(cell, precision, layout):
    problem = grid.Problem(cell, "T9-B5-I12-H24", True, "cuda", precision, layout)
    sides = [grid.TORCH, *grid.our_sides(problem)]
    found = layers.measure(problem, sides, micro.Physics([], {}))
    assert not found.failures
    clocks = ("wall", "events") if layout == "packed" else ("wall", "events", "graph")
    assert {(row.side, row.clock) for row in found.rows} == {(side, clock) for side in sides for clock in clocks}


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_tokens_are_one_hot_rows(cell):
    ours = getattr(fusedrnn, cell)(28, 64, device="cuda")
    theirs = getattr(nn, cell)(28, 64, device="cuda")
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(28, (12, 5), device="cuda")
    with grid.float32_precision("ieee"):
        got, want = ours(tokens)[0], theirs(nn.functional.one_hot(tokens, 28).float())[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_autocast_runs_in_16_bits(backend):
    module = fusedrnn.GRU(12, 24, backend=backend, device="cuda")
    x = torch.randn(7, 3, 12, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        y, h_n = module(x)
        y.float().sum().backward()
    assert y.dtype == h_n.dtype == torch.bfloat16 and module.weight_hh_l0.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), module.to_torch()(x)[0], rtol=0, atol=3e-2)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_a_module_compiles_whole(backend):
    module = fusedrnn.LSTM(12, 24, backend=backend, device="cuda")
    x = torch.randn(7, 3, 12, device="cuda")
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], module(x)[0])


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("precision", steps.ROUNDING)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_training_steps_follow_float64_and_are_timed(cell, precision, graph):
    problem = steps.Problem(cell, 64, 1.0, precision, graph)
    found = steps.measure(problem, budget=0.01)
    assert [row.side for row in found.rows] == [grid.TORCH, *problem.sides]


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"optimizer": "adam", "layers": 2}], ids=str)
def test_a_captured_training_is_the_plain_one(options):
    config = TrainConfig(
        cell="lstm", hidden=32, epochs=3, batch_size=8, steps=12, lr=0.01, schedule="cosine", **options
    )
    plain, captured = (
        Trainer(dataclasses.replace(config, graph=graph), steps.text(), "cuda") for graph in (False, True)
    )
    assert isinstance(captured.run_step, CapturedStep) and not isinstance(plain.run_step, CapturedStep)
    with grid.float32_precision("ieee"):
        losses = [[epoch.loss for epoch in trainer.run()] for trainer in (plain, captured)]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=0)
    for one, other in zip(plain.parameters, captured.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_a_trained_model_is_scored_and_goes_on_as_on_a_cpu():
    trainer = Trainer(TrainConfig(hidden=32, epochs=2, batch_size=8, steps=12), steps.text(), "cuda")
    for _ in trainer.run():
        pass
    here, there = trainer.model, copy.deepcopy(trainer.model).cpu()
    tokens = trainer.data.train[:2000]
    with grid.float32_precision("ieee"):
        assert evaluate(here, tokens.cuda()).nats == pytest.approx(evaluate(there, tokens).nats, rel=1e-5)
        drawn = [
            "".join(
                generate(
                    here, trainer.data.vocab, "ab", 20, Choice(temperature=1.0), torch.Generator("cuda").manual_seed(1)
                )
            )
            for _ in range(2)
        ]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 20


def test_the_program_measures_this_chip():
    program = micro.build(micro.architecture())
    for group in ("barriers", "functions"):
        found = micro.measure(program, group)
        assert found
        assert not [m for m in found if "error" in m]
