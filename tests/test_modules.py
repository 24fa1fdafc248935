"""The modules beside torch.nn's: construction, state, outputs, gradients, dropout, packing, cells, and every error."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import fusedrnn
from fusedrnn.dispatch import REGISTRY

LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bias": False, "batch_first": True},
    {"num_layers": 2, "batch_first": True, "bidirectional": True, "dropout": 0.25},
]
KINDS = [(name, options) for name in LAYERS for options in OPTIONS]
KINDS += [("RNN", {"nonlinearity": "relu"}), ("LSTM", {"proj_size": 2, "num_layers": 2, "bidirectional": True})]
CELL_KINDS = [(name, options) for name in CELLS for options in ({}, {"bias": False})]
CELL_KINDS += [("RNNCell", {"nonlinearity": "relu"})]


def names(kind) -> str:
    name, options = kind
    return "-".join((name, *(f"{key}={value}" for key, value in options.items())))


def pair(kind, dtype=torch.float64, seed: int = 3) -> tuple[nn.Module, nn.Module]:
    """torch.nn's module and ours, I = 4 and H = 5, each made under the same seed."""
    name, options = kind
    made = []
    for library in (nn, fusedrnn):
        torch.manual_seed(seed)
        made.append(getattr(library, name)(4, 5, dtype=dtype, **options))
    return made[0], made[1]


def states_for(module: nn.Module, batch: int, dtype=torch.float64):
    D = 2 if module.bidirectional else 1
    h0 = torch.randn(module.num_layers * D, batch, module.proj_size or 5, dtype=dtype)
    return (h0, torch.randn(module.num_layers * D, batch, 5, dtype=dtype)) if module.mode == "LSTM" else h0


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [] if value is None else [t for part in value for t in tensors(part)]


def outcome(module: nn.Module, x, hx=None) -> list[torch.Tensor]:
    """Outputs, and gradients of x, hx and the parameters for random cotangents on every output."""
    leaves = [t.clone().requires_grad_() for t in (*tensors(x), *tensors(hx)) if t.is_floating_point()]
    given = iter(leaves)
    if isinstance(x, PackedSequence):
        x = x._replace(data=next(given)) if x.data.is_floating_point() else x
    elif x.is_floating_point():
        x = next(given)
    hx = tuple(given) if isinstance(hx, tuple) else next(given, None)
    module.zero_grad()
    torch.manual_seed(5)  # dropout
    outputs = tensors(module(x, hx) if hx is not None else module(x))
    random = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(out.shape, generator=random, dtype=out.dtype) for out in outputs]
    torch.autograd.backward(outputs, cotangents)
    return [*outputs, *(t.grad for t in leaves), *(p.grad for p in module.parameters())]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS + CELL_KINDS, ids=names)
def test_construction_is_torchs(kind):
    theirs, ours = pair(kind)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert vars(ours).keys() == vars(theirs).keys()
    assert ours.load_state_dict(theirs.state_dict()) and theirs.load_state_dict(ours.state_dict())
    if kind[0] in LAYERS:
        assert [[p.shape for p in ps] for ps in ours.all_weights] == [
            [p.shape for p in ps] for ps in theirs.all_weights
        ]


@pytest.mark.parametrize("kind", KINDS, ids=names)
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_outputs_and_gradients_equal_torchs(kind, with_state):
    theirs, ours = pair(kind)
    x = torch.randn(3, 6, 4, dtype=torch.float64) if ours.batch_first else torch.randn(6, 3, 4, dtype=torch.float64)
    hx = states_for(ours, 3) if with_state else None
    assert_same(outcome(ours, x, hx), outcome(theirs, x, hx))
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        assert_same(tensors(ours(x, hx)), tensors(theirs(x, hx)))


@pytest.mark.parametrize("kind", KINDS, ids=names)
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_one_sequence_without_a_batch(kind, with_state):
    theirs, ours = pair(kind)
    x = torch.randn(6, 4, dtype=torch.float64)
    hx = states_for(ours, 1) if with_state else None
    if with_state:
        hx = tuple(s.squeeze(1) for s in hx) if isinstance(hx, tuple) else hx.squeeze(1)
    assert_same(outcome(ours, x, hx), outcome(theirs, x, hx))


@pytest.mark.parametrize("kind", KINDS, ids=names)
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_packed_sequences(kind, with_state):
    theirs, ours = pair(kind)
    packed = pack_sequence([torch.randn(T, 4, dtype=torch.float64) for T in (2, 5, 5, 1)], enforce_sorted=False)
    hx = states_for(ours, 4) if with_state else None
    assert_same(outcome(ours, packed, hx), outcome(theirs, packed, hx))
    out = ours(packed, hx)[0]
    assert torch.equal(out.batch_sizes, packed.batch_sizes)
    assert torch.equal(out.sorted_indices, packed.sorted_indices)


@pytest.mark.parametrize("name", LAYERS)
def test_the_default_device_is_not_asked(name):
    theirs, ours = pair((name, {}))
    packed = pack_sequence([torch.randn(T, 4, dtype=torch.float64) for T in (5, 2)])
    with torch.device("meta"):
        got = ours(packed)
    assert_same(tensors(got), tensors(theirs(packed)))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["RNN", "RNNCell"])
def test_relu_passes_the_gradient_of_nan(name, backend):
    theirs, ours = pair((name, {"nonlinearity": "relu"}))
    ours.backend = backend
    x = torch.tensor([[1.0, torch.nan, 1, 1], [1, 2, 3, 4]], dtype=torch.float64)
    for one, other in zip(outcome(ours, x), outcome(theirs, x), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("kind", KINDS + CELL_KINDS, ids=names)
@pytest.mark.parametrize("count", [1, None], ids=["one", "all"])
@pytest.mark.parametrize("called_before", [False, True])
def test_parametrized_weights(kind, count, called_before):
    theirs, ours = pair(kind)
    x = torch.randn(*(6, 3, 4)[-3 if kind[0] in LAYERS else -2 :], dtype=torch.float64)
    if called_before:
        ours(x)
    for module in (theirs, ours):
        for name in list(module.state_dict())[:count]:
            parametrize.register_parametrization(module, name, Doubled())
    for _ in range(2):
        assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_an_empty_batch(kind):
    theirs, ours = pair(kind)
    x = torch.randn(0, 6, 4, dtype=torch.float64) if ours.batch_first else torch.randn(6, 0, 4, dtype=torch.float64)
    assert_same(outcome(ours, x), outcome(theirs, x))


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_tokens_are_one_hot_rows(kind):
    _, ours = pair(kind)
    shape = (3, 6) if ours.batch_first else (6, 3)
    for tokens in (torch.randint(4, shape), torch.randint(4, (6,))):
        rows = nn.functional.one_hot(tokens, 4).double()
        (y, *_, w), (y_rows, *_, w_rows) = outcome(ours, tokens), outcome(ours, rows)
        torch.testing.assert_close(y, y_rows, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(w, w_rows, rtol=1e-12, atol=1e-12)
    packed = pack_padded_sequence(torch.randint(4, (6, 3)), [6, 2, 1])
    rows = packed._replace(data=nn.functional.one_hot(packed.data, 4).double())
    for got, want in zip(outcome(ours, packed)[:1], outcome(ours, rows)[:1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", CELL_KINDS, ids=names)
@pytest.mark.parametrize("shape", [(3,), (), (0,)], ids=["batch", "single", "empty"])
def test_cells_equal_torchs(kind, shape):
    theirs, ours = pair(kind)
    x, state = torch.randn(*shape, 4, dtype=torch.float64), torch.randn(*shape, 5, dtype=torch.float64)
    for hx in (None, (state, state.flip(0)) if kind[0] == "LSTMCell" else state):
        assert_same(outcome(ours, x, hx), outcome(theirs, x, hx))
    tokens = torch.randint(4, shape)
    assert_same(tensors(ours(tokens)), tensors(theirs(nn.functional.one_hot(tokens, 4).double())))


def test_dropout_draws_the_masks_of_torch():
    for batch_first in (False, True):
        theirs, ours = pair(("LSTM", {"num_layers": 3, "dropout": 0.5, "batch_first": batch_first}))
        x = torch.randn(4, 6, 4, dtype=torch.float64)
        assert_same(outcome(ours, x), outcome(theirs, x))
        assert not torch.equal(ours(x)[0], ours(x)[0])
        packed = pack_padded_sequence(x, [4, 4, 2, 2, 2, 1])
        assert_same(outcome(ours, packed), outcome(theirs, packed))


@pytest.mark.parametrize("kind", [("RNN", {}), ("GRU", {}), ("LSTM", {})], ids=names)
def test_y_of_a_batch_first_layer_is_contiguous(kind):
    net = getattr(fusedrnn, kind[0])(4, 5, batch_first=True)
    assert net(torch.randn(3, 6, 4))[0].is_contiguous()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "auto") for name in LAYERS), ("GRU", "reference"), ("LSTM", "torch")]
)
def test_y_can_be_written_to(name, backend, batch_first):
    """It is no view that a Function returned. Backward reads it, and says so, where torch.nn's does not."""
    net = getattr(fusedrnn, name)(4, 5, batch_first=batch_first, backend=backend)
    for y in (net(torch.randn(3, 6, 4))[0], net(torch.randn(6, 4))[0]):
        y[:, 1:] = 0
        assert y.grad_fn is not None and not y[:, 1:].any()
        if backend == "torch" and batch_first:  # a copy in that order
            y.sum().backward()
            continue
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[4:5] + KINDS[8:9] + CELL_KINDS[::2], ids=names)
def test_autocast_casts_what_torch_casts(kind, dtype, state):
    theirs, ours = pair(kind, torch.float32)
    x, h = torch.randn(6, 3, 4, dtype=dtype), None
    if state is not None:
        h = torch.randn(theirs.num_layers if "Cell" not in kind[0] else 1, 3, 5, dtype=state)
    if "Cell" in kind[0]:
        x, h = x[0], None if h is None else h[0]
    given = (x, (h, h) if kind[0].startswith("LSTM") and h is not None else h)
    # torch's LSTM is cast on its way to oneDNN; a CPU without bfloat16 refuses it there, and without oneDNN it is not.
    with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
        if torch.float64 in (dtype, state):
            for net in (theirs, ours):
                with pytest.raises(RuntimeError, match="mat1 and mat2 must have the same dtype"):
                    net(*given)
            return
        for got, want in zip(tensors(ours(*given)), tensors(theirs(*given)), strict=True):
            assert got.dtype == (torch.bfloat16 if kind[0] == "LSTM" else want.dtype)
            torch.testing.assert_close(got, want, rtol=0.02, atol=0.02, check_dtype=False)


def test_reset_before_differs_from_torch_and_keeps_its_parameters():
    theirs, ours = pair(("GRU", {}))
    before = fusedrnn.GRU(4, 5, dtype=torch.float64, reset_after=False)
    before.load_state_dict(theirs.state_dict())
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    assert not torch.allclose(before(x)[0], ours(x)[0])
    cell = fusedrnn.GRUCell(4, 5, dtype=torch.float64, reset_after=False)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in theirs.state_dict().items()})
    torch.testing.assert_close(before(x[:1])[0][0], cell(x[0]))


def test_options_of_our_own_show_only_where_they_are_set():
    assert repr(fusedrnn.GRU(4, 5, backend="auto", schedule="auto", reset_after=True)) == "GRU(4, 5)"
    net = fusedrnn.GRU(4, 5, backend="reference", schedule="hoisted", reset_after=False)
    assert repr(net) == "GRU(4, 5, reset_after=False, schedule=hoisted, backend=reference)"
    assert repr(fusedrnn.LSTMCell(4, 5, backend="reference")) == "LSTMCell(4, 5, backend=reference)"
    for made in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert repr(made) == repr(net)
        assert made(torch.zeros(2, 1, 4))[0].shape == (2, 1, 5)
    with pytest.raises(ValueError, match=f"backend: expected one of auto, {', '.join(REGISTRY)}, got 'cudnn'"):
        fusedrnn.RNNCell(4, 5, backend="cudnn")
    with pytest.raises(ValueError, match="schedule: expected one of auto, concat, hoisted, got 'fast'"):
        fusedrnn.LSTM(4, 5, schedule="fast")


def test_replaced_parameters_are_the_ones_used():
    theirs, ours = pair(("LSTM", {}))
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    doubled = {name: 2 * value for name, value in ours.state_dict().items()}
    got = torch.func.functional_call(ours, doubled, (x,))
    assert_same(tensors(got), tensors(torch.func.functional_call(theirs, doubled, (x,))))
    for net in (ours, theirs):
        net.weight_hh_l0 = nn.Parameter(doubled["weight_hh_l0"])
        net.bias_ih_l0.data = doubled["bias_ih_l0"]
    assert_same(outcome(ours, x), outcome(theirs, x))
    assert_same(outcome(ours.float(), x.float()), outcome(ours, x.float()))


def test_twenty_steps_of_training_give_the_losses_of_torch():
    tokens = torch.randint(9, (31, 8), generator=torch.Generator().manual_seed(0))
    for kind in ("RNN", "GRU", "LSTM"):
        losses = []
        for library in (nn, fusedrnn):
            torch.manual_seed(0)
            net, head = getattr(library, kind)(9, 24), nn.Linear(24, 9)
            parameters = [*net.parameters(), *head.parameters()]
            optimizer = torch.optim.SGD(parameters, 1.0)
            x = nn.functional.one_hot(tokens[:-1], 9).float() if library is nn else tokens[:-1]
            ran = []
            for _ in range(20):
                loss = nn.functional.cross_entropy(head(net(x)[0]).flatten(0, 1), tokens[1:].flatten())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                ran.append(loss.item())
            losses.append(ran)
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_asks_for_a_parametrized_weight_once(name):
    class Counted(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return weight

    cell = getattr(fusedrnn, name)(4, 5)
    counted = Counted()
    parametrize.register_parametrization(cell, "weight_hh", counted, unsafe=True)
    counted.calls = 0
    cell(torch.randn(3, 4))
    assert counted.calls == 1
