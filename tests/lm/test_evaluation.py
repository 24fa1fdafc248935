import math

import pytest
import torch
import torch.nn.functional as F

from fusedrnn.lm.errors import CorpusError
from fusedrnn.lm.evaluation import evaluate
from fusedrnn.lm.model import build_model

TOKENS = torch.randint(1, 9, (83,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 7, 82, 4096])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_equals_one_pass_of_torch_over_the_whole_text(cell, steps):
    torch.manual_seed(0)
    model = build_model(9, cell, 12, 2)
    control = build_model(9, cell, 12, 2, library="torch").double()
    control.load_state_dict(model.state_dict())
    scores, _ = control(TOKENS[:-1, None])
    found = evaluate(model, TOKENS, steps)
    assert found.nats == pytest.approx(F.cross_entropy(scores[:, 0], TOKENS[1:]).item(), rel=1e-6)
    assert (found.tokens, found.unknown) == (82, 0)
    assert found.perplexity == pytest.approx(math.exp(found.nats))


def test_a_model_without_an_opinion_has_the_vocabulary_as_perplexity():
    model = build_model(9, "gru", 4)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    found = evaluate(model, torch.tensor([3, 0, 0, 5]))
    assert found.perplexity == pytest.approx(9)
    assert (found.tokens, found.unknown) == (3, 2)
    assert found.bits == pytest.approx(math.log2(9))


@pytest.mark.parametrize("tokens", [[], [1]])
def test_nothing_to_foretell(tokens):
    with pytest.raises(CorpusError, match="nothing to foretell"):
        evaluate(build_model(9, "gru", 4), torch.tensor(tokens, dtype=torch.int64))
