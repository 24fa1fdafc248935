"""Let a language model go on from a prompt, one token a step."""

from collections.abc import Iterator

import torch

from fusedrnn.lm.errors import ConfigError
from fusedrnn.lm.model import LanguageModel
from fusedrnn.lm.text import UNKNOWN, Vocab


def generate(
    model: LanguageModel,
    vocab: Vocab,
    prompt: str,
    num_chars: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[str]:
    """Yield num_chars characters that follow the prompt, each as soon as it is known.

    temperature: 0 takes the likeliest token every time, 1 draws from the model's distribution, between sharpens it
    generator: where draws come from; torch's global one by default

    `<unk>` is never produced. Raises ConfigError, before the first character, when the prompt is empty or holds a
    character that the vocabulary does not, and when an argument is out of range.
    """
    unknown = sorted({character for character in prompt if character not in vocab})
    if not prompt:
        raise ConfigError("the prompt is empty")
    if unknown:
        raise ConfigError(f"the prompt holds {', '.join(map(repr, unknown))}, which the model was not trained on")
    if num_chars < 0:
        raise ConfigError(f"num_chars must not be negative, got {num_chars}")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature must be 0 or a positive number, got {temperature}")
    return _generate(model, vocab, prompt, num_chars, temperature, generator)


@torch.no_grad()
def _generate(
    model: LanguageModel,
    vocab: Vocab,
    prompt: str,
    num_chars: int,
    temperature: float,
    generator: torch.Generator | None,
) -> Iterator[str]:
    model.eval()
    tokens, state = vocab.encode(prompt).unsqueeze(1), None  # [T, 1]
    for _ in range(num_chars):
        scores, state = model(tokens, state)
        last = scores[-1, 0]  # [V]
        last[vocab[UNKNOWN]] = -torch.inf
        if temperature > 0:
            sharpened = (last - last.max()).double() / temperature
            token = torch.multinomial(sharpened.softmax(0), 1, generator=generator)
        else:
            token = last.argmax(0, keepdim=True)
        yield vocab.idx_to_token[int(token)]
        tokens = token.unsqueeze(0)


def continuation(model: LanguageModel, vocab: Vocab, prompt: str, num_chars: int) -> str:
    """The prompt and the greedy continuation of it."""
    return prompt + "".join(generate(model, vocab, prompt, num_chars))
