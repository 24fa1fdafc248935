"""Bad input: modules raise torch.nn's type and text, functional forms name the argument and what they expected."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn
from fusedrnn import functional
from fusedrnn.call import Weights
from fusedrnn.dispatch import REGISTRY

LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")


def raised(call) -> tuple[type, str]:
    with pytest.raises(Exception) as error:
        call()
    return type(error.value), str(error.value)


def state(name: str, *shape: int, **options):
    zeros = torch.zeros(*shape, **options)
    return (zeros, zeros) if name.startswith("LSTM") else zeros


def packed(x: torch.Tensor) -> PackedSequence:
    return pack_padded_sequence(x, [5, 3])


X = torch.zeros(5, 2, 4)
LAYER_CALLS = {
    "x-1d": lambda net, name: net(X[0, 0]),
    "x-4d": lambda net, name: net(X[None]),
    "x-none": lambda net, name: net(None),
    "x-text": lambda net, name: net("time traveller"),
    "x-size": lambda net, name: net(torch.zeros(5, 2, 7)),
    "x-size-unbatched": lambda net, name: net(torch.zeros(5, 7)),
    "x-float64": lambda net, name: net(X.double()),
    "x-int32": lambda net, name: net(X.int()),
    "x-int64-3d": lambda net, name: net(X.long()),
    "x-bool": lambda net, name: net(X.bool()),
    "x-no-steps": lambda net, name: net(X[:0]),
    "x-meta": lambda net, name: net(X.to("meta")),
    "hx-2d": lambda net, name: net(X, state(name, 2, 3)),
    "hx-batch": lambda net, name: net(X, state(name, 1, 3, 3)),
    "hx-layers": lambda net, name: net(X, state(name, 2, 2, 3)),
    "hx-size": lambda net, name: net(X, state(name, 1, 2, 4)),
    "hx-meta": lambda net, name: net(X, state(name, 1, 2, 3, device="meta")),
    "hx-text": lambda net, name: net(X, "h"),
    "hx-number": lambda net, name: net(X, 3),
    "hx-3d-unbatched": lambda net, name: net(X[:, 0], state(name, 1, 1, 3)),
    "packed-float64": lambda net, name: net(packed(X.double())),
    "packed-empty": lambda net, name: net(PackedSequence(X[:0, 0], torch.zeros(0, dtype=torch.int64))),
}


@pytest.mark.parametrize("inferring", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bad", LAYER_CALLS)
def test_layers_raise_what_torch_raises(name, bad, inferring):
    nets = getattr(nn, name)(4, 3), getattr(fusedrnn, name)(4, 3)
    with torch.set_grad_enabled(not inferring):
        nets[1](X)
        theirs, ours = (raised(lambda net=net: LAYER_CALLS[bad](net, name)) for net in nets)
    assert ours == theirs


# Where torch.nn lets its kernels find out, it differs between layers, or finds nothing; the type is RuntimeError.
CLEARER_CALLS = {
    "hx-float64": (lambda net, name: net(X, state(name, 1, 2, 3, dtype=torch.float64)), "must have the same dtype"),
    "packed-size": (lambda net, name: net(packed(torch.zeros(5, 2, 7))), "Expected 4, got 7"),
    "packed-hx-batch": (lambda net, name: net(packed(X), state(name, 1, 3, 3)), r"size \(1, 2, 3\), got \[1, 3, 3\]"),
    "packed-hx-2d": (lambda net, name: net(packed(X), state(name, 2, 3)), r"size \(1, 2, 3\), got \[2, 3\]"),
    "packed-grows": (
        lambda net, name: net(PackedSequence(X.flatten(0, 1)[:8], torch.tensor([3, 5]))),
        "batch_sizes: expected .* none larger than the one before",
    ),
    "packed-too-few": (
        lambda net, name: net(PackedSequence(X.flatten(0, 1)[:8], torch.tensor([2, 2]))),
        "batch_sizes: expected a sum of 8, the rows of x, got 4",
    ),
    "packed-too-many": (
        lambda net, name: net(PackedSequence(X.flatten(0, 1)[:8], torch.tensor([9, 2]))),
        "batch_sizes: expected a sum of 8, the rows of x, got 11",
    ),
    "packed-int32": (
        lambda net, name: net(PackedSequence(X.flatten(0, 1)[:8], torch.tensor([4, 4], dtype=torch.int32))),
        r"batch_sizes: expected torch.int64 \[T\] on cpu, got torch.int32",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bad", CLEARER_CALLS)
def test_layers_say_more_than_torch(name, bad):
    call, text = CLEARER_CALLS[bad]
    with pytest.raises(RuntimeError, match=text):
        call(getattr(fusedrnn, name)(4, 3), name)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("parameter", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_parameters_replaced_by_misfits(name, parameter):
    for misfit in (lambda p: torch.zeros(7, *p.shape[1:]), lambda p: p.detach().double()):
        net = getattr(fusedrnn, name)(4, 3)
        setattr(net, parameter, nn.Parameter(misfit(getattr(net, parameter))))
        with pytest.raises((RuntimeError, ValueError)):
            net(X)
    theirs, ours = (getattr(library, name)(4, 3) for library in (nn, fusedrnn))
    for net in (theirs, ours):
        setattr(net, parameter, nn.Parameter(getattr(net, parameter).detach().to("meta")))
    assert raised(lambda: ours(X)) == raised(lambda: theirs(X))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("parameter", "shape"), [("weight_hh_l0", (2, 2)), ("weight_ih_l0", (12, 5)), ("bias_hh_l0", (2,))]
)
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_data_replaced_by_a_misfit_after_a_call(backend, parameter, shape, grad):
    net = fusedrnn.LSTM(4, 3, backend=backend)
    with torch.set_grad_enabled(grad):
        net(X)
        getattr(net, parameter).data = torch.zeros(shape)
        with pytest.raises((RuntimeError, ValueError)):
            net(X)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("parameter", ["weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_parameter_set_to_none(name, parameter):
    nets = [getattr(library, name)(4, 3) for library in (nn, fusedrnn)]
    for net in nets:
        net(X)
        setattr(net, parameter, None)
    theirs, ours = (raised(lambda net=net: net(X)) for net in nets)
    assert ours == theirs


@pytest.mark.parametrize("option", ["backend", "schedule", "memory"])
def test_unknown_options_are_refused_when_they_are_set(option):
    net = fusedrnn.GRU(4, 3)
    with pytest.raises(ValueError, match=f"{option}: expected .*, got 'bogus'"):
        setattr(net, option, "bogus")
    net(X)


PROJECTION_CALLS = {
    "h0": lambda net: net(X, (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))),
    "c0": lambda net: net(X, (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))),
}


@pytest.mark.parametrize("bad", PROJECTION_CALLS)
def test_projected_states(bad):
    theirs, ours = (lib.LSTM(4, 3, proj_size=2) for lib in (nn, fusedrnn))
    assert raised(lambda: PROJECTION_CALLS[bad](ours)) == raised(lambda: PROJECTION_CALLS[bad](theirs))


@pytest.mark.parametrize("count", [1, 3])
def test_lstm_wants_two_states(count):
    states = (torch.zeros(1, 2, 3),) * count
    theirs, ours = (raised(lambda lib=lib: lib.LSTM(4, 3)(X, states)) for lib in (nn, fusedrnn))
    assert ours == theirs


V = torch.zeros(2, 4)
CELL_CALLS = {
    "x-3d": lambda cell, name: cell(V[None]),
    "x-text": lambda cell, name: cell("t"),
    "x-size": lambda cell, name: cell(torch.zeros(2, 7)),
    "x-size-unbatched": lambda cell, name: cell(torch.zeros(7)),
    "x-float64": lambda cell, name: cell(V.double()),
    "x-int32": lambda cell, name: cell(V.int()),
    "x-int64-2d": lambda cell, name: cell(V.long()),
    "hx-batch": lambda cell, name: cell(V, state(name, 3, 3)),
    "hx-size": lambda cell, name: cell(V, state(name, 2, 4)),
    "hx-3d": lambda cell, name: cell(V, state(name, 1, 2, 3)),
    "hx-1d": lambda cell, name: cell(V, state(name, 3)),
    "hx-1d-as-long-as-the-batch": lambda cell, name: cell(V, state(name, 2)),
    "hx-2d-unbatched": lambda cell, name: cell(V[0], state(name, 1, 3)),
    "hx-2d-unbatched-of-2": lambda cell, name: cell(V[0], state(name, 2, 3)),
    "hx-text": lambda cell, name: cell(V, "h"),
    "hx-float64": lambda cell, name: cell(V, state(name, 2, 3, dtype=torch.float64)),
}


@pytest.mark.parametrize("inferring", [False, True])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bad", CELL_CALLS)
def test_cells_raise_what_torch_raises(name, bad, inferring):
    cells = getattr(nn, name)(4, 3), getattr(fusedrnn, name)(4, 3)
    with torch.set_grad_enabled(not inferring):
        cells[1](V)
        theirs, ours = (raised(lambda cell=cell: CELL_CALLS[bad](cell, name)) for cell in cells)
    assert ours == theirs


LSTM_CELL_STATES = {
    "c0-batch": (torch.zeros(2, 3), torch.zeros(3, 3)),
    "c0-size": (torch.zeros(2, 3), torch.zeros(2, 4)),
    "one": (torch.zeros(2, 3),),
    "three": (torch.zeros(2, 3),) * 3,
    "a-tensor": torch.zeros(2, 2, 3),
}


@pytest.mark.parametrize("bad", LSTM_CELL_STATES)
def test_lstm_cell_states(bad):
    theirs, ours = (raised(lambda lib=lib: lib.LSTMCell(4, 3)(V, LSTM_CELL_STATES[bad])) for lib in (nn, fusedrnn))
    assert ours == theirs


NONLINEARITY_CALLS = {
    "keyword": lambda lib: lib.RNN(4, 3, nonlinearity="gelu"),
    "fourth": lambda lib: lib.RNN(4, 3, 1, "gelu"),
    "cell": lambda lib: lib.RNNCell(4, 3, nonlinearity="gelu")(V),
}


@pytest.mark.parametrize("bad", NONLINEARITY_CALLS)
def test_an_unknown_nonlinearity(bad):
    theirs, ours = (raised(lambda lib=lib: NONLINEARITY_CALLS[bad](lib)) for lib in (nn, fusedrnn))
    assert ours == theirs


CONSTRUCTIONS = {
    "input_size-0": ((0, 3), {}),
    "input_size-text": (("4", 3), {}),
    "hidden_size-0": ((4, 0), {}),
    "hidden_size-tuple": ((4, (3, 3)), {}),
    "num_layers-0": ((4, 3, 0), {}),
    "bias-none": ((4, 3), {"bias": None}),
    "batch_first-int": ((4, 3), {"batch_first": 1}),
    "dropout-2": ((4, 3), {"dropout": 2.0}),
    "dropout-bool": ((4, 3), {"dropout": True}),
    "proj_size": ((4, 3), {"proj_size": 3}),
    "proj_size-negative": ((4, 3), {"proj_size": -1}),
    "dtype": ((4, 3), {"dtype": "float32"}),
    "nothing": ((), {}),
    "unknown": ((4, 3), {"hidden": 3}),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bad", CONSTRUCTIONS)
def test_constructors_raise_what_torch_raises(name, bad):
    arguments, options = CONSTRUCTIONS[bad]
    theirs, ours = (raised(lambda lib=lib: getattr(lib, name)(*arguments, **options)) for lib in (nn, fusedrnn))
    assert ours == theirs


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_on_one_layer_warns_as_torch_does(name):
    texts = []
    for library in (nn, fusedrnn):
        with pytest.warns(UserWarning, match="dropout option adds dropout") as caught:
            getattr(library, name)(4, 3, dropout=0.5)
        texts.append(str(caught[0].message))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("tokens", [torch.tensor([[0, 4]]), torch.tensor([[-1, 0]]), torch.tensor([4])])
@pytest.mark.parametrize("name", LAYERS)
def test_tokens_outside_the_vocabulary(name, tokens):
    net = getattr(fusedrnn, name)(4, 3)
    text = rf"expected tokens in \[0, 4\), the vocabulary, got {4 if tokens.max() > 3 else -1}"
    with pytest.raises(IndexError, match=text):
        net(tokens)
    with pytest.raises(IndexError, match=text), torch.no_grad():
        net(tokens)
    with pytest.raises(IndexError, match=text):
        getattr(fusedrnn, f"{name}Cell")(4, 3)(tokens.flatten())


def test_a_backend_that_cannot_run_the_layer_lists_every_reason():
    with pytest.raises(fusedrnn.BackendError) as error:
        fusedrnn.GRU(4, 3, backend="torch")(X)
    text = str(error.value)
    why = "torch: on the CPU oneDNN runs lstm only"
    assert text.startswith(f"backend 'torch' cannot run gru float32 T=5 B=2 I=4 H=3 on cpu. {why}")
    assert all(f"{name}: " in text for name in REGISTRY)


def weights(gates: int = 3, I: int = 4, H: int = 3, **replaced) -> list[Weights]:
    one = Weights(torch.zeros(gates * H, I), torch.zeros(gates * H, H), torch.zeros(gates * H), torch.zeros(gates * H))
    return [one._replace(**replaced)]


FUNCTIONAL_CALLS = {
    "x: expected torch.float32 [5, 2, 4] on cpu, got torch.float32 [5, 2, 7] on cpu": lambda: functional.gru(
        torch.zeros(5, 2, 7), None, weights()
    ),
    "x: expected torch.float32 [5, 2, 4] on cpu, got torch.float64 [5, 2, 4] on cpu": lambda: functional.gru(
        X.double(), None, weights()
    ),
    "x: expected [T, B, I] floats or [T, B] tokens, got torch.float32 [5]": lambda: functional.gru(
        X[:, 0, 0], None, weights()
    ),
    "x: expected at least one step, got none": lambda: functional.gru(X[:0], None, weights()),
    "h0: expected torch.float32 [1, 2, 3] on cpu, got torch.float32 [1, 3, 3] on cpu": lambda: functional.gru(
        X, torch.zeros(1, 3, 3), weights()
    ),
    "c0: expected torch.float32 [1, 2, 3] on cpu, got torch.float32 [1, 2, 3] on meta": lambda: functional.lstm(
        X, (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3, device="meta")), weights(4)
    ),
    "hx: expected (h0, c0), got 1 tensors": lambda: functional.lstm(X, (torch.zeros(1, 2, 3),), weights(4)),
    "weights: expected 2 for every layer, got 1": lambda: functional.gru(X, None, weights(), bidirectional=True),
    "weights: expected 1 for every layer, got 0": lambda: functional.gru(X, None, []),
    "weights[0].w_ih: expected [3*H, I], got [4, 4]": lambda: functional.gru(X, None, weights(4, H=1)),
    "weights[0].w_hh: expected [9, 3], got [9, 4]": lambda: functional.gru(X, None, weights(w_hh=torch.zeros(9, 4))),
    "weights[0].b_hh: expected [9], got None": lambda: functional.gru(X, None, weights(b_hh=None)),
    "weights[0].b_ih: expected torch.float32 on cpu like weights[0].w_ih, got torch.float64 on cpu": (
        lambda: functional.gru(X, None, weights(b_ih=torch.zeros(9).double()))
    ),
    "weights[1].w_ih: expected [9, 3], got [9, 4]": lambda: functional.gru(X, None, weights() * 2),
    "weights[0].w_hr: expected None, only lstm has a projection, got [2, 3]": lambda: functional.gru(
        X, None, weights(w_hr=torch.zeros(2, 3))
    ),
    "weights[0].w_hr: expected [P, 3], got []": lambda: functional.lstm(X, None, weights(4, w_hr=torch.zeros(()))),
    "weights[0].w_hr: expected [P, 3], got [0, 3]": lambda: functional.lstm(
        X, None, weights(4, w_hr=torch.zeros(0, 3), w_hh=torch.zeros(12, 0))
    ),
    "weights[0].w_ih: expected [3*H, I], got [9, 0]": lambda: functional.gru(X[..., :0], None, weights(I=0)),
    "weights[0].w_ih: expected a tensor, got NoneType": lambda: functional.gru(X, None, weights(w_ih=None)),
    "weights[0].b_ih: expected a tensor, got list": lambda: functional.gru(X, None, weights(b_ih=[0.0] * 9)),
    "weights[0]: expected a Weights, got tuple": lambda: functional.gru(X, None, [tuple(weights()[0])]),
    "weights[0]: expected a Weights, got Tensor": lambda: functional.gru(X, None, weights()[0]),
    "x: expected a tensor, got NoneType": lambda: functional.gru(None, None, weights()),
    "h0: expected a tensor, got int": lambda: functional.gru(X, 3, weights()),
    "lengths: expected a tensor, got list": lambda: functional.gru(X, None, weights(), lengths=[5, 2]),
    "resets: expected a tensor, got list": lambda: functional.gru(X, None, weights(), resets=[True]),
    "batch_sizes: expected a tensor, got list": lambda: functional.gru(X[:, 0], None, weights(), batch_sizes=[3, 2]),
    "nonlinearity: expected 'tanh' or 'relu', got 'gelu'": lambda: functional.rnn(
        X, None, weights(1), nonlinearity="gelu"
    ),
    "dropout: expected a probability in [0, 1], got 1.5": lambda: functional.gru(X, None, weights(), dropout=1.5),
    "schedule: expected one of auto, concat, hoisted, got 'fast'": lambda: functional.gru(
        X, None, weights(), schedule="fast"
    ),
    "backend: expected one of auto, cpu, cuda, triton, torch, reference, got 'fast'": lambda: functional.gru(
        X, None, weights(), backend="fast"
    ),
    "lengths: expected torch.int64 [2] on cpu, got torch.int64 [3] on cpu": lambda: functional.gru(
        X, None, weights(), lengths=torch.ones(3, dtype=torch.int64)
    ),
    "lengths: expected values in [0, 5], the steps, got 6": lambda: functional.gru(
        X, None, weights(), lengths=torch.tensor([6, 1]), backend="reference"
    ),
    "lengths: expected None with batch_sizes, which hold them": lambda: functional.gru(
        X[:, 0], None, weights(), batch_sizes=torch.tensor([3, 2]), lengths=torch.tensor([1])
    ),
    "batch_sizes: expected a sum of 5, the rows of x, got 4": lambda: functional.gru(
        X[:, 0], None, weights(), batch_sizes=torch.tensor([3, 1])
    ),
    "resets: expected torch.bool [5, 2] on cpu, got torch.bool [2, 5] on cpu": lambda: functional.gru(
        X, None, weights(), resets=torch.zeros(2, 5, dtype=torch.bool)
    ),
}


@pytest.mark.parametrize("text", FUNCTIONAL_CALLS)
def test_functional_forms_name_argument_expected_and_got(text):
    with pytest.raises(ValueError) as error:
        FUNCTIONAL_CALLS[text]()
    assert str(error.value) == text


def test_float64_under_autocast_is_named():
    text = r"x: expected floats but float64 \[5, 2, 4\] on cpu, got torch.float64"
    with torch.autocast("cpu"), pytest.raises(ValueError, match=text):
        functional.gru(X.double(), None, weights())
