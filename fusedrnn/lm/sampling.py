"""Let a language model go on from a prompt, one token a step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fusedrnn.lm.errors import ConfigError
from fusedrnn.lm.model import LanguageModel
from fusedrnn.lm.text import TOKENIZERS, UNKNOWN, Tokenizer, Vocab

PROMPT = "time traveller"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the next token is chosen from a model's scores.

    temperature: 0 takes the likeliest token every time; else scores are divided by it: 1 draws from the model's
        distribution, between sharpens it
    top_k: draw from the so many likeliest tokens, 0 for all
    top_p: draw from the likeliest tokens that have this probability together, the one that reaches it included
        (Holtzman et al., 2020, arXiv:1904.09751)

    Raises ConfigError.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 or a positive number, got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be positive, or 0 for all, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def __call__(self, scores: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """scores [B, V]; returns tokens, int64 [B]."""
        if self.temperature == 0:
            return scores.argmax(-1)
        return torch.multinomial(self.probabilities(scores), 1, generator=generator).squeeze(1)

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """What is drawn from, in float64: [B, V]."""
        sharpened = (scores - scores.amax(-1, keepdim=True)).double() / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            least = sharpened.topk(self.top_k).values[:, -1:]
            sharpened = sharpened.masked_fill(sharpened < least, -torch.inf)
        probabilities = sharpened.softmax(-1)
        if self.top_p == 1:
            return probabilities
        falling, order = probabilities.sort(descending=True, stable=True)
        beyond = falling.cumsum(-1) - falling >= self.top_p
        return probabilities.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)


GREEDY = Choice()


def generate(
    model: LanguageModel,
    vocab: Vocab,
    prompt: Sequence[str],
    num_tokens: int,
    choice: Choice = GREEDY,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """Yield num_tokens tokens that follow those of the prompt, each as soon as it is known.

    generator: where draws come from; torch's global one by default

    `<unk>` is never produced. Raises ConfigError, before the first token, when the prompt is empty or holds a token
    that the vocabulary does not, and when num_tokens is negative.
    """
    return (tokens[0] for tokens in generate_many(model, vocab, prompt, num_tokens, 1, choice, generator))


def generate_many(
    model: LanguageModel,
    vocab: Vocab,
    prompt: Sequence[str],
    num_tokens: int,
    num: int,
    choice: Choice = GREEDY,
    generator: torch.Generator | None = None,
) -> Iterator[list[str]]:
    """As generate, for num texts side by side, a batch of the model, that go on from the same prompt: yields the next
    token of each.
    """
    unknown = sorted({token for token in prompt if token not in vocab})
    if vocab.idx_to_token == [UNKNOWN]:
        raise ConfigError(f"the model knows no token but {UNKNOWN}, which is never produced")
    if not prompt:
        raise ConfigError("the prompt is empty")
    if unknown:
        raise ConfigError(f"the prompt holds {', '.join(map(repr, unknown))}, which the model was not trained on")
    if num_tokens < 0:
        raise ConfigError(f"the number of tokens must not be negative, got {num_tokens}")
    if num < 1:
        raise ConfigError(f"the number of texts must be at least 1, got {num}")
    read = vocab.encode(prompt).to(model.head.weight.device)
    tokens = vocab.idx_to_token
    return (
        [tokens[index] for index in step] for step in _steps(model, vocab, read, num_tokens, num, choice, generator)
    )


def _steps(
    model: LanguageModel,
    vocab: Vocab,
    prompt: torch.Tensor,
    num_tokens: int,
    num: int,
    choice: Choice,
    generator: torch.Generator | None,
) -> Iterator[list[int]]:
    model.eval()
    weight, bias = model.head.weight.detach(), model.head.bias.detach().clone()
    if vocab.unknown is not None:
        bias[vocab.unknown] = -torch.inf
    tokens, state = prompt.unsqueeze(1).repeat(1, num), None  # [T, B]
    for _ in range(num_tokens):
        with torch.no_grad():
            y, state = model.recur(model.embed(tokens), state)
            chosen = choice(F.linear(y[-1], weight, bias), generator)  # [B]
        yield chosen.tolist()
        tokens = chosen.unsqueeze(0)


def continuation(
    model: LanguageModel, vocab: Vocab, prompt: str, num_tokens: int, tokenizer: Tokenizer = TOKENIZERS["char"]
) -> str:
    """The prompt and the greedy continuation of it."""
    split = tokenizer.split_prompt(prompt)
    return "".join(tokenizer.spell([*split, *generate(model, vocab, split, num_tokens)]))
