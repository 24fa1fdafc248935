"""The short way from a module to the kernels: the same bits, taken only where it may."""

import contextlib

import pytest
import torch
from shortcuts import CELLS, LAYERS, OPTIONS, flat, layer_and_input, long_way
from torch import nn

import fusedrnn
from fusedrnn import _extension, dispatch, shortcut
from fusedrnn.backends import cpu
from fusedrnn.dispatch import REGISTRY

pytestmark = pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason())


@pytest.fixture
def taken(monkeypatch):
    """How often the short way was taken to its end without gradients, by modules that first run after this."""
    calls = []

    def counting(op):
        def run(*given):
            outputs = op(*given)
            calls.append(op)
            return outputs

        return run

    for name in ("layers", "layer"):
        op = getattr(cpu, name)()
        monkeypatch.setattr(cpu, name, lambda op=op: counting(op))
    return calls


KINDS = [(name, options) for name in LAYERS for options in OPTIONS] + [(name, {}) for name in CELLS]
KINDS += [("LSTM", {"proj_size": 4}), ("GRU", {"reset_after": False}), ("RNNCell", {"nonlinearity": "relu"})]
NOT_IN_THE_KERNELS = ("proj_size", "reset_after")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), KINDS)
def test_both_ways_give_the_same_bits(name, options, dtype, taken):
    module, given = layer_and_input(name, dtype, **options)
    both = list(both_ways(module, *given))
    assert len(taken) == (cpu.has_kernels(dtype) and not any(name in options for name in NOT_IN_THE_KERNELS))
    for one, other in both:
        assert torch.equal(one, other)
        assert one.shape == other.shape and one.stride() == other.stride()


def both_ways(module, *given):
    """What the module returns without gradients, the short way and the long one."""
    with torch.no_grad():
        with long_way():
            long = flat(module(*given))
        return zip(flat(module(*given)), long, strict=True)


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in LAYERS for options in OPTIONS])
def test_without_a_state_it_begins_at_zero(name, options, taken):
    module, (x, _) = layer_and_input(name, **options)
    for one, other in both_ways(module, x):
        assert torch.equal(one, other)
    assert len(taken) == 1


@pytest.mark.parametrize("name", CELLS)
def test_cells_without_a_state_begin_at_zero(name, taken):
    module, (x, _) = layer_and_input(name)
    for one, other in both_ways(module, x):
        assert torch.equal(one, other)
    assert len(taken) == 1


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in LAYERS for options in OPTIONS])
def test_tokens_of_a_batch(name, options, taken):
    module, (x, states) = layer_and_input(name, **options)
    for one, other in both_ways(module, torch.randint(6, x.shape[:2]), states):
        assert torch.equal(one, other)
    assert len(taken) == 1


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("name", "options"), [(name, options) for name in LAYERS for options in OPTIONS])
def test_one_sequence(name, options, given, tokens, taken):
    module, (_, states) = layer_and_input(name, **options)
    x = torch.randint(6, (4,)) if tokens else torch.randn(4, 6)
    one = tuple(s[:, 0] for s in states) if name == "LSTM" else states[:, 0]
    for short, long in both_ways(module, x, *([one] if given else [])):
        assert torch.equal(short, long) and short.stride() == long.stride()
    assert len(taken) == 1


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_a_step_of_one_sequence(name, given, tokens, taken):
    module, (_, states) = layer_and_input(name)
    x = torch.tensor(2) if tokens else torch.randn(6)
    one = tuple(s[0] for s in states) if name == "LSTMCell" else states[0]
    for short, long in both_ways(module, x, *([one] if given else [])):
        assert torch.equal(short, long) and short.stride() == long.stride()
    assert len(taken) == 1


@pytest.mark.parametrize("name", CELLS)
def test_tokens_of_a_step(name, taken):
    module, (x, states) = layer_and_input(name)
    for one, other in both_ways(module, torch.randint(6, x.shape[:1]), states):
        assert torch.equal(one, other)
    assert len(taken) == 1


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_operands_that_are_not_dense(name, taken):
    module, (x, states) = layer_and_input(name)
    spread = lambda t: torch.stack((t, t), -1)[..., 0]  # noqa: E731
    states = tuple(map(spread, states)) if isinstance(states, tuple) else spread(states)
    for one, other in both_ways(module, spread(x), states):
        assert torch.equal(one, other)
    with torch.no_grad():
        weight = module.weight_hh if name in CELLS else module.weight_hh_l0
        weight.data = spread(weight.data)
    for one, other in both_ways(module, x.flip(0), states):
        assert torch.equal(one, other)
    assert len(taken) == 2


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_an_empty_batch(name, taken):
    module, (x, _) = layer_and_input(name)
    x = x[:0] if name in CELLS else x[:, :0]
    for one, other in both_ways(module, x):
        assert one.shape == other.shape
    assert len(taken) == 1


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_while_training_takes_the_long_way(name, taken):
    module, given = layer_and_input(name, num_layers=2)
    module.dropout = 0.5
    torch.manual_seed(0)
    long = flat(module(*given))
    torch.manual_seed(0)
    with torch.no_grad():
        assert all(map(torch.equal, flat(module(*given)), long))
    assert not taken
    module.eval()
    for one, other in both_ways(module, *given):
        assert torch.equal(one, other)
    assert len(taken) == 1


OTHER_OPTIONS = [("GRU", "backend", "reference"), ("GRU", "reset_after", False), ("LSTM", "schedule", "hoisted")]
OTHER_OPTIONS += [
    ("GRUCell", "reset_after", False),
    ("LSTMCell", "backend", "reference"),
    ("RNNCell", "nonlinearity", "relu"),
]
OTHER_OPTIONS += [("RNN", "batch_first", True)]


@pytest.mark.parametrize(("name", "option", "value"), OTHER_OPTIONS)
def test_an_option_that_is_set_later_is_the_one_that_counts(name, option, value):
    module, given = layer_and_input(name)
    if option == "batch_first":
        given = (given[0], torch.randn(1, given[0].shape[0], 5))
        with torch.no_grad():
            module(given[0])
    else:
        for _ in both_ways(module, *given):
            pass
    setattr(module, option, value)
    with torch.no_grad():
        first = flat(module(*given))
    for one, other, again in zip(first, flat(module(*given)), flat(type(module).forward(module, *given)), strict=True):
        assert torch.equal(one, other) and torch.equal(other, again)
    if option in ("reset_after", "nonlinearity"):
        setattr(module, option, getattr(type(module)(1, 1), option))
        assert not torch.equal(flat(module(*given))[0], first[0])


def test_an_attribute_of_a_subclass_is_no_option(taken):
    class Remembering(fusedrnn.GRU):
        def forward(self, *given):
            y, self.last = super().forward(*given)
            return y

    module = Remembering(6, 5)
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(4, 3, 6))
    assert len(taken) == 3


@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_parameters_can_be_swapped_after_it_was_taken(name, taken):
    """torch.utils.swap_tensors refuses tensors that anybody in C++ holds."""
    module, (x, states) = layer_and_input(name)
    with torch.no_grad():
        module(x, states)
        module(x, states)
    assert taken
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    for one, other in both_ways(module, x.double(), states.double()):
        assert one.dtype == torch.float64 and torch.equal(one, other)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_not_where_there_is_more_to_do(name, taken):
    module, given = layer_and_input(name)
    with torch.no_grad():
        if name != "LSTMCell":  # which torch's autocast on the CPU leaves alone
            with torch.autocast("cpu"):
                module(*given)
        torch.func.vmap(lambda x: module(x, given[1]))(torch.stack((given[0], given[0])))
        with pytest.raises((RuntimeError, ValueError)):
            module(given[0][..., :3], given[1])
    assert not taken


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_a_profiler_sees_an_op_either_way(name, grad, taken):
    module, given = layer_and_input(name)
    for way, ops in ((contextlib.nullcontext, "fusedrnn_cpu::"), (long_way, "fusedrnn::")):
        with torch.set_grad_enabled(grad), way(), torch.profiler.profile() as profile:
            module(*given)
        assert any(event.key.startswith(ops) for event in profile.key_averages())
    assert len(taken) == (not grad)


@pytest.mark.parametrize("name", ["GRU", "GRUCell"])
def test_the_backend_asked_for_is_the_one_that_runs(name, taken, monkeypatch):
    module, given = layer_and_input(name)
    module(*given)
    ran = []
    forward = REGISTRY["reference"].forward
    monkeypatch.setattr(REGISTRY["reference"], "forward", lambda call: ran.append(len(taken)) or forward(call))
    with torch.no_grad():
        module(*given)
        with fusedrnn.use_backend("reference"):
            module(*given)
        module(*given)
    assert ran == [1] and len(taken) == 2


@pytest.mark.parametrize("options", OPTIONS)
def test_a_new_length_is_decided_as_another_was(options, taken, monkeypatch):
    module = fusedrnn.GRU(6, 5, **options)
    x, time = torch.randn(9, 9, 6), 1 if options.get("batch_first") else 0
    asked = []
    select = dispatch.select
    monkeypatch.setattr(dispatch, "select", lambda *problem: asked.append(problem) or select(*problem))
    for grad in (False, True)[: 1 if "num_layers" in options else 2]:  # several layers have no short way with gradients
        with torch.set_grad_enabled(grad):
            module(x.narrow(time, 0, 4))
            before = len(asked)
            for T in (2, 3, 9):
                module(x.narrow(time, 0, T))
            assert 0 < before == len(asked)


def test_the_number_of_steps_decides_nothing():
    layer = shortcut.layers("gru", list(fusedrnn.GRU(6, 5).parameters()), 6, 5, bidirectional=False, bias=True,
                            batch_first=False, schedule="auto", memory="full", backend="auto")  # fmt: skip
    how = {T: layer.hows["", torch.float32, torch.Size((T, 3, 6))] for T in (5, 1, 2)}
    assert how == dict.fromkeys((5, 1, 2), cpu.options("gru", "auto", True, False))


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
