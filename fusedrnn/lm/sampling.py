"""Let a language model go on from a prompt, one token a step."""

from collections.abc import Iterator, Sequence

import torch

from fusedrnn.lm.errors import ConfigError
from fusedrnn.lm.model import LanguageModel
from fusedrnn.lm.text import TOKENIZERS, Tokenizer, Vocab

PROMPT = "time traveller"


def generate(
    model: LanguageModel,
    vocab: Vocab,
    prompt: Sequence[str],
    num_tokens: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """Yield num_tokens tokens that follow those of the prompt, each as soon as it is known.

    temperature: 0 takes the likeliest token every time, 1 draws from the model's distribution, between sharpens it
    generator: where draws come from; torch's global one by default

    `<unk>` is never produced. Raises ConfigError, before the first token, when the prompt is empty or holds a token
    that the vocabulary does not, and when an argument is out of range.
    """
    unknown = sorted({token for token in prompt if token not in vocab})
    if not prompt:
        raise ConfigError("the prompt is empty")
    if unknown:
        raise ConfigError(f"the prompt holds {', '.join(map(repr, unknown))}, which the model was not trained on")
    if num_tokens < 0:
        raise ConfigError(f"num_tokens must not be negative, got {num_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature must be 0 or a positive number, got {temperature}")
    return _generate(model, vocab, prompt, num_tokens, temperature, generator)


@torch.no_grad()
def _generate(
    model: LanguageModel,
    vocab: Vocab,
    prompt: Sequence[str],
    num_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
) -> Iterator[str]:
    model.eval()
    tokens, state = vocab.encode(prompt).unsqueeze(1), None  # [T, 1]
    for _ in range(num_tokens):
        scores, state = model(tokens, state)
        last = scores[-1, 0]  # [V]
        if vocab.unknown is not None:
            last[vocab.unknown] = -torch.inf
        if temperature > 0:
            sharpened = (last - last.max()).double() / temperature
            token = torch.multinomial(sharpened.softmax(0), 1, generator=generator)
        else:
            token = last.argmax(0, keepdim=True)
        yield vocab.idx_to_token[int(token)]
        tokens = token.unsqueeze(0)


def continuation(
    model: LanguageModel, vocab: Vocab, prompt: str, num_tokens: int, tokenizer: Tokenizer = TOKENIZERS["char"]
) -> str:
    """The prompt and the greedy continuation of it."""
    split = tokenizer.split_prompt(prompt)
    return "".join(tokenizer.spell([*split, *generate(model, vocab, split, num_tokens)]))
