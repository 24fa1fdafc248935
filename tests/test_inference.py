"""The short way from a module to the kernels where no gradient is wanted: the same bits, taken only where it may."""

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import inference
from fusedrnn.dispatch import REGISTRY

LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")
OPTIONS = [{}, {"batch_first": True}, {"bidirectional": True, "bias": False}]


@pytest.fixture
def taken(monkeypatch):
    """How often the short way was taken."""
    calls, run = [], inference.run
    monkeypatch.setattr(inference, "run", lambda *given: calls.append(given[0]) or run(*given))
    return calls


def flat(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flat(part)]


def layer_and_input(name: str, dtype=torch.float32, **options):
    module = getattr(fusedrnn, name)(6, 5, dtype=dtype, **options)
    if name.endswith("Cell"):
        states = (torch.randn(3, 5, dtype=dtype), torch.randn(3, 5, dtype=dtype))
        return module, (torch.randn(3, 6, dtype=dtype), states if name == "LSTMCell" else states[0])
    D = 2 if options.get("bidirectional") else 1
    x = torch.randn((3, 4, 6) if options.get("batch_first") else (4, 3, 6), dtype=dtype)
    states = (torch.randn(D, 3, module.proj_size or 5, dtype=dtype), torch.randn(D, 3, 5, dtype=dtype))
    return module, (x, states if name == "LSTM" else states[0])


KINDS = [(name, options) for name in LAYERS for options in OPTIONS] + [(name, {}) for name in CELLS]
KINDS += [("LSTM", {"proj_size": 4}), ("GRU", {"reset_after": False}), ("RNNCell", {"nonlinearity": "relu"})]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_both_ways_give_the_same_bits(name, options, dtype, taken):
    module, given = layer_and_input(name, dtype, **options)
    long = flat(module(*given))
    assert not taken
    with torch.no_grad():
        short = flat(module(*given))
    assert len(taken) == 1
    for one, other in zip(short, long, strict=True):
        assert torch.equal(one, other)
        assert one.shape == other.shape and one.stride() == other.stride()


@pytest.mark.parametrize("name", LAYERS)
def test_without_a_state_it_begins_at_zero(name, taken):
    module, (x, _) = layer_and_input(name)
    long = flat(module(x))
    with torch.no_grad():
        short = flat(module(x))
    assert taken
    for one, other in zip(short, long, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_not_where_there_is_more_to_do(name, taken):
    module, given = layer_and_input(name)
    module(*given)  # a gradient is wanted
    with torch.no_grad():
        if name != "LSTMCell":  # which torch's autocast on the CPU leaves alone
            with torch.autocast("cpu"):
                module(*given)
        with torch.profiler.profile() as profile:
            module(*given)
        torch.func.vmap(lambda x: module(x, given[1]))(torch.stack((given[0], given[0])))
        with pytest.raises((RuntimeError, ValueError)):
            module(given[0][..., :3], given[1])
    assert not taken
    assert any(event.key.startswith("fusedrnn::") for event in profile.key_averages())


@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_the_backend_asked_for_is_the_one_that_runs(name, taken, monkeypatch):
    module, given = layer_and_input(name)
    module(*given)
    ran = []
    for backend in ("reference", "cpu"):
        forward = REGISTRY[backend].forward
        note = lambda call, backend=backend, forward=forward: ran.append(backend) or forward(call)  # noqa: E731
        monkeypatch.setattr(REGISTRY[backend], "forward", note)
    with torch.no_grad():
        module(*given)
        with fusedrnn.use_backend("reference"):
            module(*given)
        module(*given)
    assert ran[1] == "reference" and ran[0] == ran[2] != "reference"
    assert len(taken) == 3


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_written_and_replaced_parameters_are_the_ones_used(name, taken):
    module, given = layer_and_input(name)
    stock = module.to_torch()
    weight = "weight_hh" if name.endswith("Cell") else "weight_hh_l0"
    with torch.no_grad():
        module(*given)
        getattr(module, weight).data.mul_(2.0)
        for one, other in zip(flat(module(*given)), flat(stock(*given)), strict=True):
            torch.testing.assert_close(one, other)
        setattr(module, weight, nn.Parameter(torch.zeros_like(getattr(module, weight))))
        got = flat(module(*given))
    setattr(stock, weight, getattr(module, weight))
    for one, other in zip(got, flat(stock(*given)), strict=True):
        torch.testing.assert_close(one, other)
    assert taken
