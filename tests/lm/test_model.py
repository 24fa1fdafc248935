import pytest
import torch
from torch import nn

from fusedrnn.lm import build_model
from fusedrnn.lm.model import CELLS, detach

V, H = 11, 7


def pair(cell, **options):
    """The same model on fusedrnn and on torch.nn, from the same seed."""
    models = []
    for library in ("fusedrnn", "torch"):
        torch.manual_seed(0)
        models.append(build_model(V, cell, H, library=library, **options))
    return models


@pytest.mark.parametrize("init", ["torch", "normal"])
@pytest.mark.parametrize("cell", CELLS)
def test_same_seed_gives_the_same_weights_under_the_same_names(cell, init):
    fused, control = (model.state_dict() for model in pair(cell, num_layers=2, init=init))
    assert list(fused) == list(control)
    assert all(torch.equal(fused[name], control[name]) for name in fused)


@pytest.mark.parametrize("cell", CELLS)
def test_scores_and_gradients_match_the_control(cell):
    fused, control = (model.double() for model in pair(cell, num_layers=2))
    tokens = torch.randint(V, (5, 3))
    state = torch.randn(2, 3, H, dtype=torch.float64)
    state = (state, torch.randn_like(state)) if cell == "lstm" else state
    cotangent = torch.randn(5, 3, V, dtype=torch.float64)
    results = []
    for model in (fused, control):
        scores, last = model(tokens, state)
        scores.backward(cotangent)
        results.append([scores, *(last if cell == "lstm" else [last]), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("library", ["fusedrnn", "torch"])
def test_normal_init(library):
    model = build_model(200, "gru", 100, library=library, init="normal")
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert not parameter.any()
        else:
            assert abs(parameter.std().item() - 0.01) < 1e-3
            assert abs(parameter.mean().item()) < 1e-3


def test_weights_load_into_the_layer_of_torch():
    fused, _ = pair("gru")
    weights = {name.removeprefix("rnn."): value for name, value in fused.state_dict().items() if "rnn." in name}
    nn.GRU(V, H).load_state_dict(weights)


def test_detach_keeps_the_numbers_and_drops_the_graph():
    h = torch.ones(2, requires_grad=True) * 3
    assert not detach(h).requires_grad
    assert all(torch.equal(part, h) and not part.requires_grad for part in detach((h, h)))
