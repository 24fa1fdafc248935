"""convert, from_torch and to_torch: what is shared, what is kept and why, and the way back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fusedrnn
from fusedrnn import convert

NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")


class Tagger(nn.Module):
    """A model with layers at several depths, one of them in two places."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.encoder = nn.Sequential(nn.Dropout(0.5), nn.ModuleDict({"rnn": nn.LSTM(4, 3, 2, bidirectional=True)}))
        self.cells = nn.ModuleList([nn.GRUCell(6, 5), nn.RNNCell(5, 5, nonlinearity="relu")])
        self.again = self.cells[0]
        self.head = nn.Linear(5, 2)

    def forward(self, tokens):
        y, _ = self.encoder[1]["rnn"](self.embed(tokens))
        return self.head(self.cells[1](self.again(y[-1])))


class Noisy(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(input + 1, hx)


def outcome(model, tokens):
    model.zero_grad()
    y = model(tokens)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_close(got, want):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_model_is_converted_in_place_and_back():
    model, tokens = Tagger().double(), torch.randint(10, (7, 3))
    want, parameters, names = outcome(model, tokens), list(model.parameters()), list(model.state_dict())
    found = convert(model)
    assert found.model is model
    assert found.converted == {"encoder.1.rnn": "LSTM", "cells.0": "GRUCell", "cells.1": "RNNCell", "again": "GRUCell"}
    assert not found.kept
    assert type(model.encoder[1]["rnn"]) is fusedrnn.LSTM
    assert model.again is model.cells[0] and type(model.again) is fusedrnn.GRUCell
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == names
    assert_close(outcome(model, tokens), want)
    back = convert(model, to="torch")
    assert back.converted == found.converted
    assert type(model.again) is nn.GRUCell and type(model.encoder[1]["rnn"]) is nn.LSTM
    assert_close(outcome(model, tokens), want)


@pytest.mark.parametrize("name", NAMES)
def test_from_torch_and_to_torch_share_everything(name):
    stock = getattr(nn, name)(4, 3).eval()
    stock.note = "mine"
    calls = []
    handle = stock.register_forward_hook(lambda *_: calls.append(1))
    ours = getattr(fusedrnn, name).from_torch(stock, backend="reference")
    assert not ours.training and ours.note == "mine" and ours.backend == "reference"
    x = torch.randn(2, 4) if name.endswith("Cell") else torch.randn(5, 2, 4)
    ours(x)
    assert calls == [1]
    handle.remove()  # what was returned for the one works on the other
    again = ours.to_torch()
    again(x)
    assert calls == [1]
    assert type(again) is getattr(nn, name)
    assert set(again.__dict__) == set(stock.__dict__)
    for p, q, r in zip(stock.parameters(), ours.parameters(), again.parameters(), strict=True):
        assert p is q and q is r
    with torch.no_grad():
        next(ours.parameters()).add_(1.0)
    for one, other in zip(flat(ours(x)), flat(stock(x)), strict=True):
        torch.testing.assert_close(one, other)


def flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flat(part)]


def test_the_model_itself_may_be_a_layer():
    stock = nn.GRU(4, 3)
    found = convert(stock, backend="reference")
    assert type(found.model) is fusedrnn.GRU and found.model.backend == "reference"
    assert found.converted == {"": "GRU"}
    assert str(found) == "converted 1: the model itself (GRU)"


def test_training_goes_on_with_the_same_optimizer():
    torch.manual_seed(0)
    model, tokens = Tagger().double(), torch.randint(10, (7, 3))
    model.encoder[0].p = 0.0
    twin = copy.deepcopy(model)
    for one in (model, twin):
        optimizer = torch.optim.Adam(one.parameters(), fused=True)
        for step in range(4):
            if step == 2 and one is model:
                convert(one)
            optimizer.zero_grad()
            one(tokens).square().sum().backward()
            optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


def test_pruned_weights_stay_pruned():
    stock = prune.l1_unstructured(nn.LSTM(4, 3), "weight_hh_l0", 0.5)
    x = torch.randn(5, 2, 4)
    ours = convert(stock).model
    torch.testing.assert_close(ours(x)[0], stock(x)[0])
    assert (ours.weight_hh_l0 == 0).sum() == 18


def test_what_would_lose_its_code_is_kept_with_the_reason():
    model = nn.ModuleDict(
        {
            "plain": nn.GRU(4, 3),
            "noisy": Noisy(4, 3),
            "normed": parametrizations.weight_norm(nn.LSTM(4, 3), "weight_hh_l0"),
            "patched": nn.RNN(4, 3),
            "complex": nn.GRU(4, 3, dtype=torch.complex64),
        }
    )
    model["patched"].forward = lambda x: x
    found = convert(model)
    assert found.converted == {"plain": "GRU"}
    assert found.kept == {
        "noisy": "Noisy is a subclass, whose own code would be lost",
        "normed": "its weights are parametrized, which makes a class of its own: convert it before that",
        "patched": "its forward was replaced on the module itself",
        "complex": "its numbers are complex, which no backend computes with",
    }
    assert str(found).splitlines()[1] == "kept noisy: Noisy is a subclass, whose own code would be lost"
    assert type(model["noisy"]) is Noisy


def test_a_layer_that_was_compiled_is_kept_with_the_reason():
    model = nn.Sequential(nn.GRU(4, 3), torch.compile(nn.GRU(4, 3), backend="eager"))
    model[0].compile(backend="eager")
    found = convert(model)
    assert not found.converted
    assert found.kept == {
        "0": "its call was compiled, which holds the old module: convert it before that",
        "1._orig_mod": "it is what torch.compile was given, which holds it: convert it before that",
    }


def test_layers_of_a_model_that_was_compiled_are_converted():
    model = torch.compile(nn.Sequential(nn.GRU(4, 3)), backend="eager")
    x = torch.randn(5, 2, 4)
    want, _ = model(x)
    assert convert(model).converted == {"_orig_mod.0": "GRU"}
    model._orig_mod[0].backend = "torch"  # which has no GRU on the CPU
    with pytest.raises(fusedrnn.BackendError):
        model(x)
    model._orig_mod[0].backend = "auto"
    torch.testing.assert_close(model(x)[0], want)


def test_hooks_of_load_state_dict_see_the_module_in_place():
    seen, model = [], nn.Sequential(nn.GRU(4, 3))
    handle = model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(module))
    for to in ("fusedrnn", "torch", "fusedrnn"):
        convert(model, to=to)
        copies = copy.deepcopy(model)
        for one in (model, copies):
            one.load_state_dict(model.state_dict())
            assert seen.pop() is one[0]
    model[0].to_torch()  # and is gone
    model.load_state_dict(model.state_dict())
    assert seen == [model[0]]
    handle.remove()
    model.load_state_dict(model.state_dict())
    assert len(seen) == 1


def test_what_torch_does_not_have_stays_ours():
    model = nn.Sequential(fusedrnn.GRU(4, 3, reset_after=False))
    found = convert(model, to="torch")
    assert found.kept == {"0": "to_torch: torch.nn.GRU has no reset_after=False"}
    assert type(model[0]) is fusedrnn.GRU


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "jax"}, "to: expected 'fusedrnn' or 'torch', got 'jax'"),
        ({"backend": "gpu"}, "backend: expected one of auto, "),
        ({"schedule": "late"}, "schedule: expected one of auto, "),
    ],
)
def test_unknown_options_are_refused_before_anything_is_done(options, said):
    model = nn.Sequential(nn.GRU(4, 3))
    with pytest.raises(ValueError, match=said):
        convert(model, **options)
    assert type(model[0]) is nn.GRU


def test_from_torch_wants_the_class_itself():
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.LSTM, got .*Noisy"):
        fusedrnn.LSTM.from_torch(Noisy(4, 3))
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.GRU, got torch\.nn\.modules\.rnn\.LSTM"):
        fusedrnn.GRU.from_torch(nn.LSTM(4, 3))
