"""A corpus as a run sees it: tokens, their vocabulary, and which of them train, validate and test."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusedrnn.lm.config import TrainConfig
from fusedrnn.lm.corpus import Corpus
from fusedrnn.lm.errors import CorpusError
from fusedrnn.lm.text import BYTES, TOKENIZERS, UNKNOWN, Vocab


@dataclass(frozen=True)
class Dataset:
    """The tokens in the order of the text: those to train on, then to validate, then to test, then what max_tokens
    leaves out. All int64 [N].

    Characters have the vocabulary of the whole text, as the course has it; words that of what is trained on.
    """

    tokens: Sequence[str]
    vocab: Vocab
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    unused: torch.Tensor

    @classmethod
    def of(cls, config: TrainConfig, corpus: Corpus) -> "Dataset":
        """As a completed config says, see complete. Raises CorpusError for a part of fewer than two tokens."""
        tokens = TOKENIZERS[config.tokens].split(corpus.text)
        used = config.max_tokens or len(tokens)
        validation, test = (int(share * used) for share in (config.validation, config.test))
        train = used - validation - test
        for name, size in (("validation", validation), ("test", test)):
            if getattr(config, name) and size < 2:
                raise CorpusError(f"{name}: {getattr(config, name):g} of {used:,} tokens leaves nothing to foretell")
        if config.tokens == "byte":
            vocab = Vocab.of(BYTES)
        else:
            vocab = Vocab(tokens[:train] if config.tokens == "word" else tokens, config.max_vocab)
        if vocab.idx_to_token == [UNKNOWN]:
            raise CorpusError(f"the text has no token but {UNKNOWN}")
        sizes = (train, validation, test, len(tokens) - used)
        return cls(tokens, vocab, *vocab.encode(tokens).split(sizes))

    @property
    def held_out(self) -> tuple[Sequence[str], str]:
        """What was not trained on, and its name: the test, else the validation, else what max_tokens leaves out.
        Nothing where the whole text was trained on.
        """
        end = len(self.tokens) - len(self.unused)
        test = end - len(self.test)
        if len(self.test):
            return self.tokens[test:end], "test"
        if len(self.validation):
            return self.tokens[test - len(self.validation) : test], "validation"
        return self.tokens[end:], "what it was not trained on"


def complete(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The config with the corpus's own choices in place of 'auto' and None, and no max_tokens beyond the text.

    Raises ConfigError where they do not go with the rest.
    """
    tokens = corpus.tokens if config.tokens == "auto" else config.tokens
    max_tokens = corpus.max_tokens if config.max_tokens is None else config.max_tokens
    if max_tokens >= len(TOKENIZERS[tokens].split(corpus.text)):
        max_tokens = 0
    return dataclasses.replace(config, tokens=tokens, max_tokens=max_tokens)
