"""The short way where gradients are wanted: those of the long way, and all else that autograd promises."""

import pytest
import torch
from shortcuts import CELLS, LAYERS, OPTIONS, flat, layer_and_input, long_way

from fusedrnn import _extension, autograd
from fusedrnn.backends import cpu

pytestmark = pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason())


@pytest.fixture
def taken(monkeypatch):
    """How often it was taken to its end."""
    calls, apply = [], autograd.apply_cpu

    def counting(*given):
        outputs = apply(*given)
        calls.append(apply)
        return outputs

    monkeypatch.setattr(autograd, "apply_cpu", counting)
    return calls


SINGLE = [(name, options) for name in LAYERS for options in OPTIONS if "num_layers" not in options]
SINGLE += [("RNN", {"nonlinearity": "relu"}), ("LSTM", {"memory": "lean"})]
SINGLE += [(name, {}) for name in CELLS] + [("RNNCell", {"nonlinearity": "relu", "bias": False})]


def gradients(module, x, states) -> list[torch.Tensor]:
    """y and the last states, and all gradients of a sum of products of these with random numbers."""
    random = torch.Generator().manual_seed(5)
    wanted = [t for t in (x, *flat(states)) if t.requires_grad] + [p for p in module.parameters() if p.requires_grad]
    outputs = flat(module(x, states) if len(states) else module(x))
    cotangents = [torch.randn(o.shape, generator=random, dtype=o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, wanted, cotangents)]


def both_with_gradients(module, x, states):
    with long_way():
        long = gradients(module, x, states)
    return zip(gradients(module, x, states), long, strict=True)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), SINGLE)
def test_gradients_have_the_same_bits(name, options, dtype, tokens, taken):
    module, (x, states) = layer_and_input(name, dtype, **options)
    x = torch.randint(6, x.shape[:-1]) if tokens else x.requires_grad_()
    for one, other in both_with_gradients(module, x, states):
        assert torch.equal(one, other) and one.stride() == other.stride()
    for state in flat(states):
        state.requires_grad_()
    for one, other in both_with_gradients(module, x, states):
        assert torch.equal(one, other) and one.stride() == other.stride()
    assert len(taken) == 2 * cpu.has_kernels(dtype)


@pytest.mark.parametrize(("name", "options"), SINGLE)
def test_gradients_without_a_state(name, options, taken):
    module, (x, _) = layer_and_input(name, **options)
    with long_way():
        long = gradients(module, x, ())
    weight = next(p for n, p in module.named_parameters() if n.startswith("weight_hh"))
    weight.requires_grad_(False)
    with long_way():
        long_of_some = gradients(module, x, ())
    assert all(map(torch.equal, gradients(module, x, ()), long_of_some))
    weight.requires_grad_()
    assert all(map(torch.equal, gradients(module, x, ()), long))
    assert len(taken) == 2


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_gradients_of_the_last_state_alone(name, taken):
    module, given = layer_and_input(name)

    def of_the_state():
        return torch.autograd.grad(flat(module(*given))[-1].square().sum(), list(module.parameters()))

    with long_way():
        long = of_the_state()
    assert all(map(torch.equal, of_the_state(), long))
    assert len(taken) == 1


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize(("name", "options"), SINGLE)
def test_second_derivatives_are_those_of_the_long_way(name, options, given_state, taken):
    module, (x, states) = layer_and_input(name, torch.float64, **options)
    x.requires_grad_()

    def second():
        y = flat(module(x, states if given_state else None))[0]
        first = torch.autograd.grad(y.square().sum(), [x, next(module.parameters())], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), list(module.parameters()))

    with long_way():
        long = second()
    for one, other in zip(second(), long, strict=True):
        torch.testing.assert_close(one, other)
    assert len(taken) == 1


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_a_batch_of_cotangents(name, taken):
    module, (x, _) = layer_and_input(name, torch.float64)
    y, parameters = flat(module(x))[0], list(module.parameters())
    dys = torch.randn(3, *y.shape, dtype=y.dtype)
    batched = torch.autograd.grad(y, parameters, dys, is_grads_batched=True, retain_graph=True)
    for k, dy in enumerate(dys):
        for all_of_them, one in zip(batched, torch.autograd.grad(y, parameters, dy, retain_graph=True), strict=True):
            torch.testing.assert_close(all_of_them[k], one)
    assert len(taken) == 1


def test_what_was_written_to_after_forward_is_noticed(taken):
    module, (x, _) = layer_and_input("GRU")
    y = module(x)[0]
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = module(x)[0]
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert len(taken) == 2


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_nothing_is_differentiated_where_nothing_wants_to_be(name, taken):
    module, given = layer_and_input(name)
    module.requires_grad_(False)
    assert not any(t.requires_grad for t in flat(module(*given)))
    assert not taken
    x = given[0].requires_grad_()
    assert torch.autograd.grad(flat(module(x, given[1]))[0].sum(), x)[0].abs().sum() > 0
    assert len(taken) == 1


@pytest.mark.parametrize("name", LAYERS)
def test_what_does_not_fit_is_left_to_the_long_way_to_refuse(name, taken):
    module, (x, states) = layer_and_input(name)
    for given in ((x[..., :3], states), (x.double(), states), (x[:, :2], states), (x, flat(states)[0][:, :1])):
        with pytest.raises((RuntimeError, TypeError, ValueError, IndexError)) as short:
            module(*given)
        with long_way(), pytest.raises(short.type) as long:
            module(*given)
        assert str(short.value) == str(long.value)
    assert not taken


def test_memory_that_is_set_later_is_the_one_that_counts(taken):
    module, (x, states) = layer_and_input("LSTM")
    kept = []

    def bytes_kept():
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            module(x, states)
        return sum(kept)

    full = bytes_kept()
    module.memory = "lean"
    assert bytes_kept() < full
    assert len(taken) == 2


@pytest.mark.parametrize("name", CELLS)
def test_steps_one_after_another(name, taken):
    module, (x, states) = layer_and_input(name, torch.float64)
    stock = module.to_torch()

    def through(cell):
        last = states
        for _ in range(5):
            last = cell(x, last)
        return torch.autograd.grad(flat(last)[0].square().sum(), list(cell.parameters()))

    for one, other in zip(through(module), through(stock), strict=True):
        torch.testing.assert_close(one, other)
    assert len(taken) == 5


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_states_can_be_written_to_between_steps(name, create_graph, taken):
    """As torch.nn's: where a sequence ends, the next begins at zero. The RNN's backward reads what it returned."""
    module, (x, _) = layer_and_input(name, torch.float64)

    def through(cell):
        last = None
        for _ in range(3):
            last = cell(x, last)
            for state in flat(last):
                state[1] = 0
        return torch.autograd.grad(flat(last)[0].square().sum(), list(cell.parameters()), create_graph=create_graph)

    if name == "RNNCell":
        for cell in (module, module.to_torch()):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                through(cell)
    else:
        for one, other in zip(through(module), through(module.to_torch()), strict=True):
            torch.testing.assert_close(one, other)
    assert len(taken) == 3
