"""How well a language model foretells a text it was not trained on."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fusedrnn.lm.errors import CorpusError
from fusedrnn.lm.model import LanguageModel, State

SCORED_AT_ONCE = 4096  # tokens


@dataclass(frozen=True)
class Evaluation:
    """nats: the mean cross-entropy of a token, over `tokens` of them."""

    tokens: int
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
def evaluate(model: LanguageModel, tokens: torch.Tensor, streams: int = 1, at_once: int = SCORED_AT_ONCE) -> Evaluation:
    """Score the tokens of a text, each after all that come before it in its stream. A stream's state starts at zeros
    and is carried to the end; one stream scores every token but the first, several are faster and leave out a few.

    tokens: int64 [N]
    streams: how many to fold the text into, at most N - 1
    at_once: how many tokens are handed to the model; the result does not depend on it but for rounding

    The model is left in evaluation mode. Raises CorpusError for fewer than two tokens.
    """
    if len(tokens) < 2:
        raise CorpusError(f"a text of {len(tokens)} tokens leaves nothing to foretell")
    model.eval()
    streams = min(streams, len(tokens) - 1)
    length = (len(tokens) - 1) // streams
    rows = (row[: streams * length].view(streams, length) for row in (tokens[:-1], tokens[1:]))
    x, y = (row.t().contiguous() for row in rows)  # [length, B]
    state: State | None = None
    nats = torch.zeros((), dtype=torch.float64, device=tokens.device)
    for given, wanted in zip(*(row.split(max(1, at_once // streams)) for row in (x, y)), strict=True):
        scores, state = model(given, state)  # [T, B, V]
        nats += F.cross_entropy(scores.flatten(0, 1).double(), wanted.flatten(), reduction="sum")
    return Evaluation(streams * length, nats.item() / (streams * length))


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy in nats: 1 if perfect, V if uniform, infinite for probability zero."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
