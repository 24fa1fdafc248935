"""Train a language model: SGD on truncated backpropagation through time, gradients clipped by their global norm."""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fusedrnn.lm.batches import SAMPLINGS, Batches
from fusedrnn.lm.corpus import Corpus
from fusedrnn.lm.errors import ConfigError, TrainingDiverged
from fusedrnn.lm.model import CELLS, INITS, LIBRARIES, State, build_model, detach
from fusedrnn.lm.text import TOKEN_MODES, Vocab, normalize


@dataclass(frozen=True)
class TrainConfig:
    """What determines a training run, besides the text and the number of threads. Raises ConfigError.

    clip: the largest global norm of the gradients, 0 for no clipping
    steps: T, time steps a batch, through which gradients flow
    tokens: 'course' or 'char', see fusedrnn.lm.text; 'auto' for the corpus's own choice
    max_tokens: train on the first so many, 0 for all, None for the corpus's own choice
    """

    cell: str = "gru"
    hidden: int = 256
    layers: int = 1
    epochs: int = 500
    lr: float = 1.0
    clip: float = 1.0
    seed: int = 0
    batch_size: int = 32
    steps: int = 35
    sampling: str = "sequential"
    init: str = "torch"
    tokens: str = "auto"
    max_tokens: int | None = None
    library: str = "fusedrnn"
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("hidden", "layers", "epochs", "batch_size", "steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"lr must be a positive number, got {self.lr}")
        if not (math.isfinite(self.clip) and self.clip >= 0):
            raise ConfigError(f"clip must be a positive number, or 0 for no clipping, got {self.clip}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise ConfigError(f"max_tokens must be positive, or 0 for the whole text, got {self.max_tokens}")


CHOICES = {
    "cell": tuple(CELLS),
    "sampling": SAMPLINGS,
    "init": INITS,
    "tokens": ("auto", *TOKEN_MODES),
    "library": LIBRARIES,
}


@dataclass(frozen=True)
class Epoch:
    """What one pass over the text gave. loss is the mean cross-entropy in nats a token, seconds are spent so far."""

    epoch: int
    loss: float
    perplexity: float
    tokens_per_second: float
    seconds: float


class Trainer:
    """Everything a run needs, built from a config and a corpus; config is completed with the corpus's own choices.

    Raises CorpusError when the text is shorter than one batch, and ConfigError for an unknown backend.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus):
        tokens = corpus.tokens if config.tokens == "auto" else config.tokens
        max_tokens = corpus.max_tokens if config.max_tokens is None else config.max_tokens
        self.corpus = corpus
        self.text = normalize(corpus.text, tokens)
        if max_tokens >= len(self.text):
            max_tokens = 0
        self.config = config = dataclasses.replace(config, tokens=tokens, max_tokens=max_tokens)
        self.vocab = Vocab(self.text)
        self.batches = Batches(
            self.vocab.encode(self.text[: max_tokens or None]),
            config.batch_size,
            config.steps,
            config.sampling,
            torch.Generator().manual_seed(config.seed),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build_model(
                len(self.vocab),
                config.cell,
                config.hidden,
                config.layers,
                library=config.library,
                backend=config.backend,
                init=config.init,
            )
        self.parameters: list[torch.Tensor] = list(self.model.parameters())
        self.history: list[Epoch] = []

    def run(self) -> Iterator[Epoch]:
        """Train for all epochs; yields the record of each, which history keeps too. Raises TrainingDiverged."""
        tokens_per_epoch = len(self.batches) * self.config.batch_size * self.config.steps
        seconds = 0.0
        for number in range(1, self.config.epochs + 1):
            start = time.perf_counter()
            loss = self.train_epoch()
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss became {loss} in epoch {number}: lower lr, or clip the gradients more"
                )
            duration = time.perf_counter() - start
            seconds += duration
            self.history.append(Epoch(number, loss, perplexity(loss), tokens_per_epoch / duration, seconds))
            yield self.history[-1]

    def train_epoch(self) -> float:
        """One pass over the text; returns its mean cross-entropy in nats a token."""
        self.model.train()
        losses = []
        state: State | None = None
        for x, y in self.batches:
            loss, state = self.train_step(x, y, state if self.config.sampling == "sequential" else None)
            losses.append(loss)
        return torch.stack(losses).mean().item()

    def train_step(self, x: torch.Tensor, y: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """One SGD step on tokens x and targets y [T, B] from a state, or from zeros.

        Returns the mean cross-entropy before the step, and the state after x to go on from.
        """
        scores, state = self.model(x, state)
        return self.learn(scores, y), detach(state)

    def learn(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One SGD step from scores [T, B, V] of targets y [T, B]; returns the mean cross-entropy before it."""
        loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        gradients = gradients_of(self.parameters)
        if self.config.clip:
            clip(gradients, self.config.clip)
        with torch.no_grad():  # what torch.optim.SGD computes, in one call
            torch._foreach_add_(self.parameters, gradients, alpha=-self.config.lr)
        return loss.detach()


def train(config: TrainConfig, corpus: Corpus) -> Trainer:
    """Train a new model on a corpus: the model, vocab and history of what is returned are the result.

    The same config, corpus and number of threads give the same weights.
    """
    trainer = Trainer(config, corpus)
    for _ in trainer.run():
        pass
    return trainer


def grad_clipping(net: nn.Module, theta: float) -> torch.Tensor:
    """Scale the gradients g of all of net's parameters by min(1, theta / |g|), |g| their global norm; returns |g|."""
    return clip(gradients_of(net.parameters()), theta)


def clip(gradients: list[torch.Tensor], theta: float) -> torch.Tensor:
    """Scale the gradients in place, as grad_clipping does; returns their global norm."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (theta / norm).clamp(max=1.0))
    return norm


def gradients_of(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients that backward left; parameters that took no part have none."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def perplexity(loss: float) -> float:
    """exp of a mean cross-entropy in nats: 1 if perfect, V if uniform, infinite for probability zero."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
