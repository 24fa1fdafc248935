import pytest
import torch
from torch import nn

from fusedrnn.lm import TrainConfig, build_model
from fusedrnn.lm.config import CELLS
from fusedrnn.lm.model import detach, drop_locked

V, H = 11, 7


def pair(cell, **options):
    """The same model on fusedrnn and on torch.nn, from the same seed."""
    models = []
    for library in ("fusedrnn", "torch"):
        torch.manual_seed(0)
        models.append(build_model(V, TrainConfig(cell=cell, hidden=H, library=library, **options)))
    return models


@pytest.mark.parametrize("init", ["torch", "normal"])
@pytest.mark.parametrize("cell", CELLS)
def test_same_seed_gives_the_same_weights_under_the_same_names(cell, init):
    fused, control = (model.state_dict() for model in pair(cell, layers=2, init=init))
    assert list(fused) == list(control)
    assert all(torch.equal(fused[name], control[name]) for name in fused)


@pytest.mark.parametrize("cell", CELLS)
def test_scores_and_gradients_match_the_control(cell):
    fused, control = (model.double() for model in pair(cell, layers=2))
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
    model = build_model(200, TrainConfig(hidden=100, library=library, init="normal"))
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


DROPOUTS = {
    "plain": {"dropout": 0.3},
    "locked": {"locked_dropout": 0.3, "embed": 5},
    "embedding": {"embed_dropout": 0.3, "embed": 5},
    "weights": {"weight_drop": 0.3},
    "all, tied": {"locked_dropout": 0.3, "embed_dropout": 0.2, "weight_drop": 0.5, "tied": True},
}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", DROPOUTS.values(), ids=DROPOUTS)
def test_what_is_dropped_in_training_is_the_same_in_the_control(cell, layers, options):
    models = [model.double() for model in pair(cell, layers=layers, **options)]
    tokens = torch.randint(V, (5, 3))
    cotangent = torch.randn(5, 3, V, dtype=torch.float64)
    results = []
    for model in models:
        torch.manual_seed(1)
        scores, state = model(tokens)
        scores, state = model(tokens, state)
        (scores * cotangent).sum().backward()
        plain, _ = model.eval()(tokens)
        assert not torch.equal(plain, model.train()(tokens)[0])
        results.append([scores, plain, *(parameter.grad for parameter in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_levels_are_one_layer_of_several(cell):
    one, levels = pair(cell, layers=3, embed=5)[0], pair(cell, layers=3, embed=5, locked_dropout=0.5)[0]
    weights = levels.state_dict()
    assert list(weights) == list(one.state_dict())
    assert all(torch.equal(weight, weights[name]) for name, weight in one.state_dict().items())
    for parameter in one.parameters():
        nn.init.normal_(parameter)
    levels.load_state_dict(one.state_dict())
    tokens = torch.randint(V, (6, 2))
    scores, state = levels.eval()(tokens)
    wanted, last = one.eval()(tokens)
    torch.testing.assert_close(scores, wanted)
    torch.testing.assert_close(state, last)


def test_locked_dropout_drops_the_same_in_every_step_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = drop_locked(torch.ones(6, 100, 50), 0.25, training=True)
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop_locked(torch.ones(6, 2, 3), 0.25, training=False), torch.ones(6, 2, 3))


def test_embedding_dropout_drops_whole_tokens():
    torch.manual_seed(0)
    (model, _) = pair("gru", embed=5, embed_dropout=0.5)
    rows = model.embed(torch.arange(V).view(1, V))[0]  # [V, E]
    kept = rows.abs().sum(1) > 0
    assert 0 < kept.sum() < V
    torch.testing.assert_close(rows[kept], 2 * model.embedding.weight[kept])


@pytest.mark.parametrize("library", ["fusedrnn", "torch"])
def test_a_tied_matrix_learns_from_both_its_uses(library):
    model = build_model(V, TrainConfig(hidden=H, tied=True, library=library))
    assert model.head.weight is model.embedding.weight
    assert sum(weight.numel() for weight in model.parameters()) == 6 * H * H + 6 * H + V * H + V
    model(torch.zeros(2, 3, dtype=torch.int64))[0][..., 5].sum().backward()
    assert model.head.weight.grad[5].abs().sum() > 0
    assert model.head.weight.grad[0].abs().sum() > 0
