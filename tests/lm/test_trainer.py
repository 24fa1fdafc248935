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
    perplexity,
    train,
)
from fusedrnn.lm.config import CELLS

from .conftest import SMALL


def cross_entropy(scores, target):
    return F.cross_entropy(torch.tensor([scores]), torch.tensor([target])).item()


def test_perplexity_of_a_perfect_an_impossible_and_a_uniform_model():
    assert perplexity(cross_entropy([0.0, -math.inf, -math.inf], 0)) == 1
    assert perplexity(cross_entropy([0.0, -math.inf, 0.0], 1)) == math.inf
    assert perplexity(cross_entropy([0.3] * 28, 5)) == pytest.approx(28)
    assert perplexity(1e6) == math.inf


@pytest.mark.parametrize("sampling", ["sequential", "random"])
@pytest.mark.parametrize("cell", CELLS)
def test_twenty_steps_give_the_losses_of_the_control(cell, sampling, small):
    losses = []
    for library in ("fusedrnn", "torch"):
        config = TrainConfig(cell=cell, hidden=32, sampling=sampling, library=library)
        trainer = Trainer(config, small)
        steps = itertools.islice(itertools.chain.from_iterable(itertools.repeat(trainer.batches)), 20)
        losses.append(torch.stack([trainer.train_step(x, y) for x, y in steps]))
    assert losses[1][-1] < losses[1][0]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("clip", [0.0, 0.01, 100.0])
def test_a_step_is_that_of_torchs_sgd_to_the_bit(clip, small):
    ours, theirs = (Trainer(dataclasses.replace(SMALL, clip=clip), small) for _ in range(2))
    optimizer = torch.optim.SGD(theirs.model.parameters(), theirs.config.lr, fused=True)
    state = None
    for x, y in itertools.islice(ours.batches, 3):
        loss = ours.train_step(x, y)
        scores, state = theirs.model(x, state)
        state = state.detach()
        want = F.cross_entropy(scores.flatten(0, 1), y.flatten())
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


@pytest.mark.parametrize("sampling", ["sequential", "random"])
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_parts_of_the_streams_give_the_steps_of_all(small, cell, sampling):
    whole = train(dataclasses.replace(SMALL, cell=cell, sampling=sampling), small)
    parts = train(dataclasses.replace(SMALL, cell=cell, sampling=sampling, accumulate=4), small)
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_training_in_16_bits_learns_like_float32(small, amp):
    losses = []
    for mode in ("none", amp):
        trainer = train(dataclasses.replace(SMALL, epochs=5, amp=mode), small)
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
        losses.append([epoch.loss for epoch in trainer.history])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_validation_picks_the_weights_and_patience_ends_the_run(small):
    """Trained on 150 letters at a high rate, the model soon foretells others worse."""
    config = dataclasses.replace(
        SMALL, max_tokens=300, validation=0.5, batch_size=2, epochs=200, optimizer="adam", lr=0.03, patience=5
    )
    trainer = Trainer(config, small)
    best, kept = math.inf, {}
    for epoch in trainer.run():
        assert epoch.validation_perplexity == perplexity(epoch.validation_loss)
        if epoch.validation_loss < best:
            best, kept = epoch.validation_loss, {n: w.clone() for n, w in trainer.model.state_dict().items()}
    losses = [epoch.validation_loss for epoch in trainer.history]
    assert trainer.best_epoch == 1 + losses.index(best) == len(losses) - 5
    assert len(losses) < 200
    assert all(torch.equal(trainer.best[name], kept[name]) for name in kept)


def test_a_compiled_model_gives_the_losses_of_the_plain_one(small):
    plain, compiled = (train(dataclasses.replace(SMALL, epochs=1, compile=way), small) for way in (False, True))
    assert plain.history[0].loss == pytest.approx(compiled.history[0].loss, rel=1e-5)
