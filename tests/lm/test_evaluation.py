import math

import pytest
import torch
import torch.nn.functional as F

from fusedrnn.lm import CorpusError, TrainConfig, build_model, evaluate

TOKENS = torch.randint(1, 9, (83,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 7, 82, 4096])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_equals_one_pass_of_torch_over_the_whole_text(cell, steps):
    torch.manual_seed(0)
    model = build_model(9, TrainConfig(cell=cell, hidden=12, layers=2))
    control = build_model(9, TrainConfig(cell=cell, hidden=12, layers=2, library="torch")).double()
    control.load_state_dict(model.state_dict())
    scores, _ = control(TOKENS[:-1, None])
    found = evaluate(model, TOKENS, at_once=steps)
    assert found.nats == pytest.approx(F.cross_entropy(scores[:, 0], TOKENS[1:]).item(), rel=1e-6)
    assert found.tokens == 82
    assert found.perplexity == pytest.approx(math.exp(found.nats))


@pytest.mark.parametrize(("streams", "length"), [(2, 41), (3, 27), (82, 1), (500, 1)])
def test_streams_are_texts_of_their_own(streams, length):
    torch.manual_seed(0)
    model = build_model(9, TrainConfig(hidden=12))
    found = evaluate(model, TOKENS, streams, at_once=50)
    count = min(streams, 82)
    parts = [evaluate(model, TOKENS[start : start + length + 1]) for start in range(0, count * length, length)]
    assert found.tokens == count * length
    assert found.nats == pytest.approx(sum(part.nats for part in parts) / count, rel=1e-6)


def test_a_model_without_an_opinion_has_the_vocabulary_as_perplexity():
    model = build_model(9, TrainConfig(hidden=4))
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    found = evaluate(model, torch.tensor([3, 0, 0, 5]))
    assert found.perplexity == pytest.approx(9)
    assert found.tokens == 3
    assert found.bits == pytest.approx(math.log2(9))


@pytest.mark.parametrize("tokens", [[], [1]])
def test_nothing_to_foretell(tokens):
    with pytest.raises(CorpusError, match="nothing to foretell"):
        evaluate(build_model(9, TrainConfig(hidden=4)), torch.tensor(tokens, dtype=torch.int64))
