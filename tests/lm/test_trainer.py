import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusedrnn import dispatch
from fusedrnn.lm import (
    ConfigError,
    CorpusError,
    TrainConfig,
    Trainer,
    TrainingDiverged,
    grad_clipping,
    perplexity,
    train,
)
from fusedrnn.lm.model import CELLS

from .conftest import SMALL


def cross_entropy(scores, target):
    return F.cross_entropy(torch.tensor([scores]), torch.tensor([target])).item()


def test_perplexity_of_a_perfect_an_impossible_and_a_uniform_model():
    assert perplexity(cross_entropy([0.0, -math.inf, -math.inf], 0)) == 1
    assert perplexity(cross_entropy([0.0, -math.inf, 0.0], 1)) == math.inf
    assert perplexity(cross_entropy([0.3] * 28, 5)) == pytest.approx(28)
    assert perplexity(1e6) == math.inf


@pytest.mark.parametrize(("theta", "scale"), [(1.0, 1 / 13), (26.0, 1.0)])
def test_clipping_scales_by_the_global_norm(theta, scale):
    net = nn.Linear(2, 1)
    net.weight.grad, net.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
    assert grad_clipping(net, theta) == 13
    torch.testing.assert_close(net.weight.grad, scale * torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(net.bias.grad, scale * torch.tensor([12.0]))


def test_clipping_leaves_zero_gradients_alone():
    net = nn.Linear(2, 1)
    net.weight.grad = torch.zeros(1, 2)
    grad_clipping(net, 1.0)
    assert not net.weight.grad.any()


@pytest.mark.parametrize("sampling", ["sequential", "random"])
@pytest.mark.parametrize("cell", CELLS)
def test_twenty_steps_give_the_losses_of_the_control(cell, sampling, small):
    losses = []
    for library in ("fusedrnn", "torch"):
        config = TrainConfig(cell=cell, hidden=32, sampling=sampling, library=library)
        trainer = Trainer(config, small)
        state, run = None, []
        for x, y in itertools.islice(itertools.chain.from_iterable(itertools.repeat(trainer.batches)), 20):
            loss, state = trainer.train_step(x, y, state if sampling == "sequential" else None)
            run.append(loss)
        losses.append(torch.stack(run))
    assert losses[1][-1] < losses[1][0]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("clip", [0.0, 0.01, 100.0])
def test_a_step_is_that_of_torchs_sgd_to_the_bit(clip, small):
    ours, theirs = (Trainer(dataclasses.replace(SMALL, clip=clip), small) for _ in range(2))
    optimizer = torch.optim.SGD(theirs.model.parameters(), theirs.config.lr)
    for x, y in itertools.islice(ours.batches, 3):
        loss, _ = ours.train_step(x, y, None)
        want = F.cross_entropy(theirs.model(x)[0].flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        want.backward()
        if clip:
            norm = nn.utils.get_total_norm([parameter.grad for parameter in theirs.model.parameters()])
            assert (norm > clip) == (clip < 1)
            for parameter in theirs.model.parameters():
                parameter.grad *= (clip / norm).clamp(max=1.0)
        optimizer.step()
        assert torch.equal(loss, want)
        for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_state_is_carried_through_an_epoch_and_not_into_the_next(small):
    seen = []
    for sampling in ("sequential", "random"):
        trainer = Trainer(dataclasses.replace(SMALL, sampling=sampling), small)
        trainer.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1] is not None))
        for _ in trainer.run():
            pass
    one_epoch = [False, *[True] * (len(seen) // 4 - 1)]
    assert seen == one_epoch * 2 + [False] * (len(seen) // 2)


@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_same_seed_same_run(small, sampling):
    config = dataclasses.replace(SMALL, sampling=sampling)
    torch.manual_seed(1)
    first = train(config, small)
    torch.manual_seed(2)
    second = train(config, small)
    other = train(dataclasses.replace(config, seed=1), small)
    assert [epoch.loss for epoch in first.history] == [epoch.loss for epoch in second.history]
    assert all(map(torch.equal, first.model.state_dict().values(), second.model.state_dict().values()))
    assert first.history[-1].loss != other.history[-1].loss


def test_training_leaves_the_global_generator_alone(small):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    train(SMALL, small)
    assert torch.equal(torch.rand(1), expected)


def test_history(small):
    history = train(SMALL, small).history
    assert [epoch.epoch for epoch in history] == [1, 2]
    assert all(epoch.perplexity == perplexity(epoch.loss) for epoch in history)
    assert all(epoch.tokens_per_second > 0 for epoch in history)
    assert 0 < history[0].seconds < history[1].seconds


def test_config_is_completed_by_the_corpus(small):
    config = Trainer(dataclasses.replace(SMALL, max_tokens=None), small).config
    assert (config.tokens, config.max_tokens) == ("course", 10_000)
    trainer = Trainer(dataclasses.replace(SMALL, tokens="char", max_tokens=0), small)
    assert (trainer.config.tokens, trainer.config.max_tokens) == ("char", 0)
    assert len(trainer.batches.tokens) == len(small.text)
    assert Trainer(dataclasses.replace(SMALL, max_tokens=10**9), small).config.max_tokens == 0


def test_short_run_learns(timemachine):
    """GRU 64 on the course's text: well past counting pairs of letters (10.11 on the whole text) in 60 epochs."""
    result = train(TrainConfig(hidden=64, epochs=60), timemachine)
    assert len(result.batches) == 8
    assert result.history[0].perplexity == pytest.approx(22.0, abs=2.5)
    assert result.history[-1].perplexity < 9.2


def test_unknown_backend(small, monkeypatch):
    with pytest.raises(ConfigError, match="abacus"):
        Trainer(dataclasses.replace(SMALL, backend="abacus"), small)
    monkeypatch.setattr(dispatch, "_environment", "abacus")
    with pytest.raises(ConfigError, match="abacus"):
        Trainer(SMALL, small)


def test_divergence_is_said(small):
    with pytest.raises(TrainingDiverged, match=r"the loss became .* in epoch"):
        train(dataclasses.replace(SMALL, cell="rnn_relu", lr=1e6, clip=0, epochs=20), small)


def test_text_shorter_than_a_batch(small):
    with pytest.raises(CorpusError, match="has 80 tokens and one batch takes 81"):
        Trainer(dataclasses.replace(SMALL, max_tokens=80), small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "elman"}, "cell must be one of rnn, rnn_relu, gru, lstm, got 'elman'"),
        ({"sampling": "shuffled"}, "sampling must be one of"),
        ({"library": "jax"}, "library must be one of"),
        ({"init": "zeros"}, "init must be one of"),
        ({"tokens": "word"}, "tokens must be one of"),
        ({"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        ({"layers": 1.5}, "layers must be an integer"),
        ({"epochs": -1}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"steps": 0}, "steps must be"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"lr": math.nan}, "lr must be a positive number"),
        ({"clip": -1.0}, "clip must be"),
        ({"clip": math.inf}, "clip must be"),
        ({"seed": -1}, "seed must be"),
        ({"max_tokens": -1}, "max_tokens must be"),
    ],
    ids=str,
)
def test_bad_config(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)
