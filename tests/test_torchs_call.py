"""Where torch's own library runs a layer, all layers are torch.nn's own call, with gradients and without.

On the CPU that library is oneDNN: LSTM in float32, dense. What it lacks torch computes itself, by the same call: with
the reasons of the backend lifted it stands for cuDNN.
"""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fusedrnn
from fusedrnn import ops, stack
from fusedrnn.backends import torch as backend

T, B, I, H = 6, 4, 3, 5
OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True, "bias": False}]
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def ops_run(monkeypatch):
    """The ops that were run."""
    run = []

    def forward(op, *arguments, whole=ops.forward):
        run.append(op)
        return whole(op, *arguments)

    monkeypatch.setattr(ops, "forward", forward)
    return run


@pytest.fixture
def of_every_cell(monkeypatch):
    """The backend runs on the CPU what it runs on a GPU."""
    monkeypatch.setattr(backend, "_onednn_reasons", lambda problem: [])
    stack.select.cache_clear()
    yield
    stack.select.cache_clear()


def pair(name: str, *sizes, **options) -> tuple[nn.Module, nn.Module]:
    theirs = getattr(nn, name)(*sizes, **options)
    ours = getattr(fusedrnn, name)(*sizes, backend="torch", **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def tensors(outputs) -> list[torch.Tensor]:
    """Those in outputs of a layer or a cell."""
    if isinstance(outputs, PackedSequence):
        return [outputs.data]
    return [outputs] if isinstance(outputs, torch.Tensor) else [t for part in outputs for t in tensors(part)]


def loss(outputs) -> torch.Tensor:
    return sum((t * torch.linspace(-1, 2, t.numel()).view_as(t)).square().sum() for t in tensors(outputs))


def gradients(module: nn.Module, *given: torch.Tensor, create_graph: bool = False) -> tuple[torch.Tensor, ...]:
    """By what is given, x and the states, and by all parameters."""
    x, *states = given
    hx = None if not states else tuple(states) if len(states) == 2 else states[0]
    wanted = [*given, *module.parameters()]
    return torch.autograd.grad(loss(module(x, hx)), wanted, create_graph=create_graph)


def of_input(layer: nn.Module, cells: int = 2) -> list[torch.Tensor]:
    """x and a state, not contiguous, which want gradients."""
    x = torch.randn(B, T, I) if layer.batch_first else torch.randn(T, B, I)
    states = [torch.randn(B, len(layer.all_weights), H).transpose(0, 1) for _ in range(cells)]
    return [t.requires_grad_() for t in (x, *states)]


def assert_equal(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_gradients(options, ops_run):
    ours, theirs = pair("LSTM", I, H, **options)
    x, *states = of_input(ours)
    with torch.no_grad():
        for hx in (None, tuple(states)):
            outputs = ours(x, hx)
            assert outputs[0].is_contiguous()
            assert_equal(tensors(outputs), tensors(theirs(x, None if hx is None else [s.contiguous() for s in hx])))
    assert not ops_run


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_gradients(options, ops_run):
    ours, theirs = pair("LSTM", I, H, **options)
    given = of_input(ours)
    outputs = ours(given[0], tuple(given[1:]))
    assert outputs[0].is_contiguous()
    assert_equal(tensors(outputs), tensors(theirs(given[0], tuple(given[1:]))))
    assert_equal(gradients(ours, *given), gradients(theirs, *given))
    assert not ops_run


@pytest.mark.parametrize("bias", [True, False])
def test_a_step(bias, ops_run):
    ours, theirs = pair("LSTMCell", I, H, bias)
    x, h, c = (torch.randn(B, n, requires_grad=True) for n in (I, H, H))
    for create_graph in (False, True):
        first = [gradients(net, x, h, c, create_graph=create_graph) for net in (ours, theirs)]
        assert_equal(*first)
    second = (torch.autograd.grad(sum(g.square().sum() for g in grads), x) for grads in first)
    assert_equal(*second)
    layer, weights = fusedrnn.LSTM(I, H, bias=bias, batch_first=True, backend="torch"), list(ours.parameters())
    layer.load_state_dict(dict(zip(layer.state_dict(), weights, strict=True)))
    with torch.no_grad():
        for hx in (None, (h, c)):
            assert_equal(ours(x, hx), theirs(x, hx))
        y, (h_n, c_n) = layer(x[:, None], (h[None], c[None]))
        assert torch.equal(y[:, 0], h_n[0]) and y.shape == (B, 1, H) and y.is_contiguous()
        assert_equal((h_n[0], c_n[0]), theirs(x, (h, c)))
        h_n.zero_()
        assert y.any()
    assert not ops_run


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_every_cell(name, options, of_every_cell, ops_run):
    ours, theirs = pair(name, I, H, **options)
    given = of_input(ours, 2 if name == "LSTM" else 1)
    torch.testing.assert_close(gradients(ours, *given), gradients(theirs, *given))  # added up in another order
    with torch.no_grad():
        assert_equal(tensors(ours(given[0])), tensors(theirs(given[0])))
    assert not ops_run


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell"])
def test_every_cells_step(name, of_every_cell, ops_run):
    ours, theirs = pair(name, I, H)
    given = [torch.randn(B, n, requires_grad=True) for n in (I, H)]
    assert_equal(gradients(ours, *given), gradients(theirs, *given))
    assert not ops_run


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_packed(name, sort, of_every_cell, ops_run):
    ours, theirs = pair(name, I, H, num_layers=2, bidirectional=True)
    lengths = [6, 4, 3, 1] if sort else [3, 6, 1, 4]
    x = pack_padded_sequence(torch.randn(T, B, I), lengths, enforce_sorted=sort)
    for one, other in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        assert torch.equal(one, other)
    wanted = (torch.autograd.grad(loss(net(x)), list(net.parameters())) for net in (ours, theirs))
    assert_equal(*wanted)
    with torch.no_grad():
        assert_equal(tensors(ours(x)), tensors(theirs(x)))
    assert not ops_run


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_second_derivatives(options):
    """cuDNN has none."""
    ours, theirs = pair("LSTM", I, H, **options)
    reference = fusedrnn.LSTM(I, H, backend="reference", **options)
    reference.load_state_dict(theirs.state_dict())
    given = of_input(ours)

    def second(net: nn.Module) -> tuple[torch.Tensor, ...]:
        first = gradients(net, *given, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [*given, *net.parameters()])

    torch.testing.assert_close(second(ours), second(reference), rtol=1e-3, atol=1e-3)


def test_a_state_made_of_the_input_is_counted_once():
    """Where gradients are differentiated again, and x leads to h0 as well."""
    ours, _ = pair("LSTM", I, I)
    x = torch.randn(T, B, I, requires_grad=True)

    def by_x(create_graph: bool) -> torch.Tensor:
        outputs = ours(x, (x[:1] * 2, x[1:2] * 3))
        return torch.autograd.grad(loss(outputs), x, create_graph=create_graph)[0]

    torch.testing.assert_close(by_x(True), by_x(False), rtol=1e-4, atol=1e-4)


def test_gradients_of_a_batch_of_cotangents():
    ours, _ = pair("LSTM", I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    y = ours(x)[0]
    cotangents = torch.randn(3, *y.shape)
    together = torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)[0]
    for one, cotangent in zip(together, cotangents, strict=True):
        torch.testing.assert_close(one, torch.autograd.grad(y, x, cotangent, retain_graph=True)[0])


def test_some_outputs_and_some_gradients():
    ours, theirs = pair("LSTM", I, H)
    x = torch.randn(T, B, I)
    for net in (ours, theirs):
        net.weight_hh_l0.requires_grad_(False)
    for of in (lambda out: out[0], lambda out: out[1][0], lambda out: out[1][1]):
        assert_equal(*(torch.autograd.grad(loss(of(net(x))), net.weight_ih_l0) for net in (ours, theirs)))
    loss(ours(x)).backward()
    assert ours.weight_hh_l0.grad is None and ours.bias_hh_l0.grad is not None


def test_backward_twice_is_as_everywhere():
    ours, _ = pair("LSTM", I, H)
    value, weight = loss(ours(torch.randn(T, B, I))), ours.weight_hh_l0
    first = torch.autograd.grad(value, weight, retain_graph=True)
    assert_equal(first, torch.autograd.grad(value, weight))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, weight)


def test_what_backward_needs_is_gone_after_it():
    ours, _ = pair("LSTM", I, H)
    y, (h_n, _) = ours(torch.randn(T, B, I, requires_grad=True))
    value, graph = loss((y, h_n)), weakref.ref(y.grad_fn.graph[1][0])
    assert graph() is not None
    value.backward()
    assert graph() is None
    assert value.grad_fn is not None
    y = ours(torch.randn(T, B, I))[0]
    graph = weakref.ref(y.grad_fn.graph[1][0])
    del y
    gc.collect()
    assert graph() is None, "also where there is no backward"


@pytest.mark.parametrize("changed", ["y", "weight"])
def test_a_change_before_backward_is_refused(changed):
    ours, _ = pair("LSTM", I, H)
    y = ours(torch.randn(T, B, I))[0]
    value = loss(y)
    with torch.no_grad():
        (y.detach() if changed == "y" else ours.weight_hh_l0).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    ours, theirs = pair("LSTM", I, H)
    x = torch.randn(T, B, I, requires_grad=True)
    found = []
    for net in (ours, theirs):
        y = checkpoint(lambda x, net=net: net(x)[0], x, use_reentrant=reentrant)
        found.append(torch.autograd.grad(loss(y), x) if not reentrant else (loss(y).backward(), x.grad.clone())[1:])
        x.grad = None
    torch.testing.assert_close(*found)


def test_an_op_of_our_own_runs_where_torchs_call_would_not_do(ops_run):
    layer, x = fusedrnn.LSTM(I, H, 2, dropout=0.5, backend="torch"), torch.randn(T, B, I)
    with torch.no_grad():
        layer(x)  # in training torch draws masks of its own
        assert len(ops_run) == 2
        layer.eval()
        torch.func.vmap(lambda x: layer(x)[0])(x[None])
        assert len(ops_run) == 4
    with torch.autograd.graph.save_on_cpu():  # a hook is to see what is saved, once
        layer(x)
    assert len(ops_run) == 6
    layer(x)
    assert len(ops_run) == 6
