"""How well a language model foretells a text it was not trained on."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fusedrnn.lm.errors import CorpusError
from fusedrnn.lm.model import LanguageModel, State
from fusedrnn.lm.trainer import perplexity

STEPS = 4096  # tokens that are scored at once


@dataclass(frozen=True)
class Evaluation:
    """nats: the mean cross-entropy of a token, over `tokens` of them. unknown: how many were not in the vocabulary."""

    tokens: int
    unknown: int
    nats: float

    @property
    def bits(self) -> float:
        """The mean cross-entropy of a token in bits: nats / ln 2."""
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats): 1 for a perfect model, V for one that finds all V tokens equally likely."""
        return perplexity(self.nats)


@torch.no_grad()
def evaluate(model: LanguageModel, tokens: torch.Tensor, steps: int = STEPS) -> Evaluation:
    """Score every token of a text but the first, each after all that come before it: one stream, whose state starts at
    zeros and is carried to the end.

    tokens: int64 [N]
    steps: how many are handed to the model at once; the result does not depend on it but for rounding

    Raises CorpusError for fewer than two tokens.
    """
    if len(tokens) < 2:
        raise CorpusError(f"a text of {len(tokens)} tokens leaves nothing to foretell")
    model.eval()
    state: State | None = None
    nats = 0.0
    for x, y in zip(tokens[:-1].split(steps), tokens[1:].split(steps), strict=True):
        scores, state = model(x.unsqueeze(1), state)  # [T, 1, V]
        nats += F.cross_entropy(scores.squeeze(1).double(), y, reduction="sum").item()
    return Evaluation(len(tokens) - 1, int((tokens[1:] == 0).sum()), nats / (len(tokens) - 1))
