"""memory="lean": the gates are computed again in backward; the results are those of "full"."""

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import functional
from fusedrnn.call import Weights

LAYERS = ("RNN", "GRU", "LSTM")
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}]


def step(module: nn.Module, x: torch.Tensor, **given) -> list[torch.Tensor]:
    y, state = module(x, **given)
    outputs = [y, *(state if isinstance(state, tuple) else (state,))]
    torch.manual_seed(1)
    cotangents = [torch.randn(out.shape, dtype=out.dtype) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x, *module.parameters()], cotangents)]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "deep-both-batch_first", "nobias"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_lean_module_trains_as_torchs(name, options):
    theirs = getattr(nn, name)(4, 5, dtype=torch.float64, **options)
    lean = getattr(fusedrnn, name)(4, 5, dtype=torch.float64, memory="lean", **options)
    lean.load_state_dict(theirs.state_dict())
    x = torch.randn(70, 70, 4, dtype=torch.float64, requires_grad=True)
    for one, other in zip(step(lean, x), step(theirs, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_lengths_and_double_backward_are_lean_too():
    full, lean = (fusedrnn.LSTM(4, 5, dtype=torch.float64, memory=memory) for memory in ("full", "lean"))
    lean.load_state_dict(full.state_dict())
    x, lengths = torch.randn(40, 3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([40, 7, 33])
    for one, other in zip(step(lean, x, lengths=lengths), step(full, x, lengths=lengths), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    penalties = []
    for module in (full, lean):
        (slope,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), list(module.parameters())))
    for one, other in zip(*penalties, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_less_is_kept_for_backward(name):
    """Bytes of all that autograd keeps: a lean layer keeps x, y, the weights and, of an LSTM, c of each 32nd step."""
    T, B, I, H = 320, 4, 8, 64
    kept = {}
    for memory in ("full", "lean"):
        sizes: dict[int, int] = {}
        note = lambda t, sizes=sizes: sizes.update({t.data_ptr(): t.nbytes}) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            module = getattr(fusedrnn, name)(I, H, memory=memory)
            y, _ = module(torch.randn(T, B, I))
        kept[memory] = sum(sizes.values())
        assert y.requires_grad
    unit = 4 * T * B * H
    gates = {"RNN": 0, "GRU": 4, "LSTM": 5 - 1 / 32}[name]
    assert kept["full"] - kept["lean"] == pytest.approx(gates * unit, rel=0.02, abs=unit / 50)


def test_a_compiled_lean_step_is_the_eager_one():
    module = fusedrnn.LSTM(4, 5, dtype=torch.float64, memory="lean")
    x = torch.randn(40, 3, 4, dtype=torch.float64, requires_grad=True)
    want = step(module, x)
    compiled = torch.compile(lambda x: module(x), fullgraph=True, backend="aot_eager")
    y, state = compiled(x)
    outputs = [y, *state]
    torch.manual_seed(1)
    cotangents = [torch.randn(out.shape, dtype=out.dtype) for out in outputs]
    got = [*outputs, *torch.autograd.grad(outputs, [x, *module.parameters()], cotangents)]
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_option_shows_and_is_checked():
    assert repr(fusedrnn.GRU(4, 5, memory="lean")) == "GRU(4, 5, memory=lean)"
    for refused in (
        lambda: fusedrnn.GRU(4, 5, memory="little"),
        lambda: functional.rnn(
            torch.randn(2, 1, 4), None, [Weights(torch.randn(5, 4), torch.randn(5, 5))], memory="little"
        ),
    ):
        with pytest.raises(ValueError, match="memory: expected 'full' or 'lean', got 'little'"):
            refused()
