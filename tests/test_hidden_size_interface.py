"""hidden_size=(forward, reverse): parameters, the functional forms, and what does not fit."""

import copy
import pickle

import pytest
import torch
from stepped import KINDS, LAYERS, SIZES, B, I, T, agree, made, names, outcome, rows, state_of, tensors, weights_of
from torch import Tensor, nn

import fusedrnn
from fusedrnn import convert, functional
from fusedrnn.call import Weights


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_parameters(kind):
    torch.manual_seed(0)
    module = made(kind, (96, 64), num_layers=2)
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind[0]]
    one = getattr(nn, kind[0])(I, 4, num_layers=2, bidirectional=True)
    assert list(module.state_dict()) == list(one.state_dict())
    for name, parameter in module.named_parameters():
        H = 64 if name.endswith("_reverse") else 96
        I_l = I if "_l0" in name else 160
        columns = {"weight_ih": (I_l,), "weight_hh": (H,)}.get(name[:9], ())
        assert parameter.shape == (gates * H, *columns) and parameter.dtype == torch.float64
        assert 0.85 * H**-0.5 < parameter.abs().max() <= H**-0.5
    x, other = rows(T, B), made(kind, (96, 64), num_layers=2)
    other.load_state_dict(module.state_dict())
    want = module(x)[0]
    for same in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(same) == repr(module)
        agree([same(x)[0]], [want], 0)
    assert "(3, (96, 64), num_layers=2, bidirectional=True" in repr(module)
    agree([module.float()(x.float())[0]], [want.float()], 1e-5)


def test_device_and_dtype():
    module = made("GRU", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    y, state = module(torch.empty(T, B, I, device="meta", dtype=torch.bfloat16))
    assert y.shape == (T, B, 7) and [s.shape for s in state] == [(1, B, 5), (1, B, 2)]
    torch.manual_seed(0)
    module.to_empty(device="cpu").reset_parameters()
    assert module.weight_hh_l0_reverse.abs().max() > 5**-0.5
    with torch.device("meta"):
        assert made("LSTM").weight_ih_l0.device.type == "meta"


def test_cudnn_is_not_asked_to_flatten_weights_of_two_sizes(monkeypatch):
    asked = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda module: asked.append(module.hidden_size))
    made("GRU").float()
    made("GRU", 5).float()
    assert asked and set(asked) == {5}


@pytest.mark.parametrize("form", ["rnn", "gru", "lstm"])
def test_functional_forms_equal_the_modules(form):
    run, module = getattr(functional, form), made(form.upper(), num_layers=2)
    x, hx, weights = rows(T, B), state_of(module, B), weights_of(module)
    for state in (None, hx):
        agree(tensors(run(x, state, weights, bidirectional=True)), tensors(module(x, state)), 0)
    lists = ([*hx[0]], [*hx[1]]) if form == "lstm" else [*hx]
    agree(tensors(run(x, lists, weights, bidirectional=True)), tensors(module(x, hx)), 0)
    equal = made(form.upper(), (5, 5))
    one, hx = run(x, None, weights_of(equal), bidirectional=True)[1], state_of(equal, B)
    assert {s.shape for s in (one if form == "lstm" else [one])} == {(2, B, 5)}
    agree(tensors(run(x, hx, weights_of(equal), bidirectional=True)), tensors(equal(x, hx)), 0)


@pytest.mark.parametrize("projections", [(2, 1), (2, 2)])
def test_functional_lstm_projects_each_direction(projections):
    """Beside two of torch.nn's LSTMs of one direction, one over the steps in reverse."""
    ways = [nn.LSTM(I, H, proj_size=P, dtype=torch.float64) for H, P in zip((5, 4), projections, strict=True)]
    weights = [Weights(*way.all_weights[0]) for way in ways]
    parameters = [p for way in ways for p in way.parameters()]
    x = rows(T, B)
    h0, c0 = (tuple(torch.randn(1, B, n, dtype=torch.float64) for n in widths) for widths in (projections, (5, 4)))

    def both(x, hx):
        (y, (h, c)), (y_reverse, (h_reverse, c_reverse)) = (
            way(x.flip(0) if d else x, (hx[0][d], hx[1][d])) for d, way in enumerate(ways)
        )
        return torch.cat((y, y_reverse.flip(0)), -1), ((h, h_reverse), (c, c_reverse))

    ours = outcome(lambda x, hx: functional.lstm(x, hx, weights, bidirectional=True), parameters, x, (h0, c0))
    agree(ours, outcome(both, parameters, x, (h0, c0)))


CONSTRUCTIONS = {
    "one": ((5,), {}, ValueError, r"hidden_size should be one size or two, \(forward, reverse\), got: \(5,\)"),
    "three": ((5, 2, 3), {}, ValueError, r"hidden_size should be one size or two, .* got: \(5, 2, 3\)"),
    "a-float": ((5, 2.0), {}, TypeError, "hidden_size should be of type int, got: float"),
    "zero": ((5, 0), {}, ValueError, "hidden_size must be greater than zero"),
    "negative": ((-5, 2), {}, ValueError, "hidden_size must be greater than zero"),
    "a-list": ([5, 2], {}, TypeError, "hidden_size should be of type int, got: list"),
    "one-direction": ((5, 2), {"bidirectional": False}, TypeError, "hidden_size should be of type int, got: tuple"),
    "bias": ((5, 2), {"bias": None}, TypeError, "bias should be of type bool, got: NoneType"),
    "unknown": ((5, 2), {"hidden": 3}, TypeError, "unexpected keyword argument 'hidden'"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bad", CONSTRUCTIONS)
def test_sizes_that_make_no_layer(name, bad):
    sizes, options, error, text = CONSTRUCTIONS[bad]
    with pytest.raises(error, match=text):
        getattr(fusedrnn, name)(I, sizes, **{"bidirectional": True} | options)


def test_projections_are_refused():
    with pytest.raises(ValueError, match="proj_size should be zero where hidden_size has two sizes, got: 1"):
        made("LSTM", proj_size=1)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


WANTED = r"size \(\(1, 4, 5\), \(1, 4, 2\)\), got "
STATES = {
    "swapped": ((zeros(1, B, 2), zeros(1, B, 5)), WANTED + r"\(\[1, 4, 2\], \[1, 4, 5\]\)"),
    "batch": ((zeros(1, 3, 5), zeros(1, 3, 2)), WANTED + r"\(\[1, 3, 5\], \[1, 3, 2\]\)"),
    "one": ((zeros(1, B, 5),), WANTED + r"\(\[1, 4, 5\],\)"),
    "2d": ((zeros(1, B, 5), zeros(B, 2)), r"should also be 3-D but got .*2-D"),
    "float32": ((zeros(1, B, 5), zeros(1, B, 2).float()), "must have the same dtype, but got Float and Double"),
    "meta": ((zeros(1, B, 5), zeros(1, B, 2).to("meta")), "Input and hidden tensors are not at the same device"),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bad", STATES)
def test_states_that_do_not_fit(name, bad):
    state, text = STATES[bad]
    good = (zeros(1, B, 5), zeros(1, B, 2))
    module = made(name)
    for hx in ((state, good), (good, state)) if name == "LSTM" else (state,):
        with pytest.raises(RuntimeError, match=text):
            module(rows(T, B), hx)


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_state_that_is_not_a_pair(name):
    with pytest.raises(RuntimeError, match=rf"^Expected hidden {WANTED}\[2, 4, 5\]$"):
        made(name)(rows(T, B), zeros(2, B, 5))


def test_lstm_names_the_state():
    good, bad = (zeros(1, B, 5), zeros(1, B, 2)), zeros(1, B, 5)
    for k, hx in enumerate(((bad, good), (good, bad))):
        with pytest.raises(RuntimeError, match=rf"^Expected hidden\[{k}\] {WANTED}\[1, 4, 5\]$"):
            made("LSTM")(rows(T, B), hx)


def test_reverse_weights_of_another_size_do_not_fit_one_size():
    module, other = made("GRU", 5), made("GRU", (5, 2))
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(module, f"{name}_l0_reverse", getattr(other, f"{name}_l0_reverse"))
    with pytest.raises(RuntimeError, match=r"weights\[1\].w_ih: expected \[15, 3\], got \[6, 3\]"):
        module(rows(T, B))


PAIR = "(forward, reverse), a tensor for each direction"
FUNCTIONAL = {
    f"h0: expected {PAIR}, got [2, 4, 5]": ({}, zeros(2, B, 5)),
    f"h0: expected {PAIR}, got 1 of them": ({}, (zeros(1, B, 5),)),
    "h0[1]: expected torch.float64 [1, 4, 2] on cpu, got torch.float64 [1, 4, 5] on cpu": ({}, (zeros(1, B, 5),) * 2),
    "h0: expected one tensor, got 2 of them": ({"bidirectional": False}, (zeros(1, B, 5),) * 2),
    "weights[1].w_ih: expected [3*H, I], got [2, 3]": ({"w_ih": zeros(2, 3)}, None),
    "weights[1].w_ih: expected [3*H, I], got [6]": ({"w_ih": zeros(6)}, None),
    "weights[1].w_ih: expected [6, 3], got [6, 4]": ({"w_ih": zeros(6, 4)}, None),
    "weights[1].w_hh: expected [6, 2], got [6, 5]": ({"w_hh": zeros(6, 5)}, None),
    "weights[1].w_hr: expected None like weights[0].w_hr, got [1, 2]": ({"w_hr": zeros(1, 2)}, None),
}


@pytest.mark.parametrize("text", FUNCTIONAL)
def test_functional_forms_name_argument_expected_and_got(text):
    replaced, h0 = FUNCTIONAL[text]
    weights = weights_of(made("GRU"))
    both = replaced.get("bidirectional", True)
    weights = [weights[0], weights[1]._replace(**replaced)] if both else weights[:1]
    with pytest.raises(ValueError) as error:
        functional.gru(rows(T, B), h0, weights, bidirectional=both)
    assert str(error.value) == text


@pytest.mark.parametrize("name", LAYERS)
def test_torch_has_no_such_layer(name):
    with pytest.raises(TypeError, match="hidden_size should be of type int, got: tuple"):
        getattr(nn, name)(I, SIZES, bidirectional=True)
    reason = f"to_torch: torch.nn.{name} has one hidden size for both directions"
    with pytest.raises(ValueError, match=reason):
        made(name).to_torch()
    model = nn.Sequential(made(name))
    assert convert(model, to="torch").kept == {"0": reason} and type(model[0]) is getattr(fusedrnn, name)
