"""The helpers that textbook programs on recurrent networks call, under the names they call them by.

Such programs are written for tokens [B, T] and nets with two methods, `net(X, state)` and `net.begin_state(...)`.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from fusedrnn.lm.batches import Batches
from fusedrnn.lm.corpus import load_corpus
from fusedrnn.lm.errors import ConfigError
from fusedrnn.lm.model import LanguageModel, State
from fusedrnn.lm.text import TOKENIZERS, Vocab


class CourseNet(Protocol):
    """What predict asks of a net; RNNModel is one."""

    def __call__(self, X: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]: ...

    def begin_state(self, *, batch_size: int, device: torch.device | str | None) -> Any: ...


class RNNModel(LanguageModel):
    """A recurrent layer of `fusedrnn` or `torch.nn` with a linear head, called the way textbook programs do."""

    def forward(self, X: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """X: int64 [B, T]; returns scores [T * B, V], step by step, and the state after the last step."""
        scores, state = super().forward(X.t(), state)
        return scores.flatten(0, 1), state

    def begin_state(self, batch_size: int = 1, device: torch.device | str | None = None) -> State:
        """Zeros [L, B, H], for an LSTM a pair of them."""
        assert isinstance(self.rnn, nn.RNNBase)
        h = torch.zeros(self.rnn.num_layers, batch_size, self.rnn.hidden_size, device=device)
        return (h, torch.zeros_like(h)) if self.rnn.mode == "LSTM" else h


class CourseBatches:
    """Iterate for one epoch: pairs X, Y of int64 [B, T], Y the tokens that follow X's."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in self.batches:
            yield x.t(), y.t()


def load_data_time_machine(
    batch_size: int, num_steps: int, use_random_iter: bool = False, max_tokens: int = 10_000
) -> tuple[CourseBatches, Vocab]:
    """Batches of The Time Machine's first max_tokens characters (0 for all), and the whole text's vocabulary.

    The offset of each epoch comes from torch's global generator. Raises CorpusError, see fusedrnn.lm.corpus.
    """
    corpus = load_corpus("timemachine")
    text = TOKENIZERS[corpus.tokens].split(corpus.text)
    vocab = Vocab(text)
    tokens = vocab.encode(text[:max_tokens] if max_tokens > 0 else text)
    sampling = "random" if use_random_iter else "sequential"
    return CourseBatches(Batches(tokens, batch_size, num_steps, sampling)), vocab


@torch.no_grad()
def predict(prefix: str, num_preds: int, net: CourseNet, vocab: Vocab, device: torch.device | str | None = None) -> str:
    """The prefix and the num_preds characters that net holds likeliest after it, one step at a time.

    Raises ConfigError when the prefix is empty: there is nothing to go on from.
    """
    if not prefix:
        raise ConfigError("the prefix is empty")
    state = net.begin_state(batch_size=1, device=device)
    tokens = vocab[list(prefix)]
    for step in range(len(prefix) + num_preds - 1):
        scores, state = net(torch.tensor([[tokens[step]]], device=device), state)
        if step + 1 == len(tokens):
            tokens.append(int(scores.argmax(dim=1)))
    return prefix + "".join(vocab.to_tokens(tokens[len(prefix) :]))
