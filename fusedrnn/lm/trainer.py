"""Train a language model by truncated backpropagation through time."""

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from fusedrnn.lm.batches import Batches
from fusedrnn.lm.captured import CapturedStep, Compute, CudaGraphs
from fusedrnn.lm.config import TrainConfig
from fusedrnn.lm.corpus import Corpus
from fusedrnn.lm.dataset import Dataset, complete
from fusedrnn.lm.errors import ConfigError, TrainingDiverged
from fusedrnn.lm.evaluation import evaluate, perplexity
from fusedrnn.lm.model import LanguageModel, State, build_model, detach
from fusedrnn.lm.optimization import build_optimizer, clip, gradients_of, learning_rate, set_learning_rate
from fusedrnn.lm.workers import ALONE, Workers

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Epoch:
    """What one pass over the text gave. loss is the mean cross-entropy in nats a token, on the validation part None
    where there is none; lr is the last step's; seconds are spent so far."""

    epoch: int
    loss: float
    perplexity: float
    validation_loss: float | None
    validation_perplexity: float | None
    lr: float
    tokens_per_second: float
    seconds: float


class Trainer:
    """Everything a run needs, built from a config and a corpus; config is completed with the corpus's own choices.

    workers: the processes that train it together, each with this config and corpus; batch_size is the streams of all
    corpus, data, batches, model, optimizer: what their names say
    history: an Epoch for each pass that has ended
    step: optimizer steps so far; steps: those of the whole run
    best: the weights of the best validation so far, None where there is no validation part

    Raises CorpusError when the text is shorter than one batch, and ConfigError for an unknown backend.
    """

    def __init__(
        self, config: TrainConfig, corpus: Corpus, device: torch.device | str = "cpu", workers: Workers = ALONE
    ):
        self.corpus, self.config = corpus, complete(config, corpus)
        self.device, self.workers = torch.device(device), workers
        config = self.config
        if config.batch_size % (workers.count * config.accumulate):
            raise ConfigError(
                f"{config.batch_size} streams do not divide among {workers.count} processes"
                + (f" of {config.accumulate} parts each" if config.accumulate > 1 else "")
            )
        self.data = Dataset.of(config, corpus)
        self.batches = Batches(
            self.data.train.to(self.device),
            config.batch_size,
            config.steps,
            config.sampling,
            torch.Generator().manual_seed(config.seed),
        )
        self.steps = len(self.batches) * config.epochs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = build_model(len(self.data.vocab), config).to(self.device)
            if workers.rank:  # each drops values of its own
                torch.manual_seed(config.seed + workers.rank)
            self.random = random_state(self.device)
        self.run_model: Any = torch.compile(self.model) if config.compile else self.model
        if workers.count > 1:
            self.run_model = DistributedDataParallel(self.run_model)
        self.parameters = list(self.model.parameters())
        alone = workers.count == 1 and not config.compile and config.amp != "fp16"
        captured = config.graph and self.device.type == "cuda" and alone
        self.optimizer = build_optimizer(config, self.model, captured)
        self.run_step: Compute = CapturedStep(self.compute, CudaGraphs()) if captured else self.compute
        self.scaled = config.amp == "fp16"  # gradients of float16 are kept from vanishing
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.scaled)
        self.history: list[Epoch] = []
        self.best: dict[str, torch.Tensor] | None = None
        self.best_epoch = 0
        self.seconds = 0.0
        self.step = 0
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Nothing has been read of it, and nothing is carried into it."""
        self.batches_random = self.batches.generator.get_state()
        self.losses: list[torch.Tensor] = []  # of every batch of this epoch so far
        self.states: list[State | None] = [None] * self.config.accumulate  # carried, of each part of the streams

    @property
    def finished(self) -> bool:
        """Whether all epochs have passed, or too many since the best validation."""
        patience = self.config.patience
        stale = patience > 0 and len(self.history) - self.best_epoch >= patience
        return len(self.history) >= self.config.epochs or stale

    def run(self, after_step: Callable[[], None] = lambda: None) -> Iterator[Epoch]:
        """Train on from where it stands; yields the record of each epoch, which history keeps too. after_step is called
        after every optimizer step. Raises TrainingDiverged.
        """
        while not self.finished:
            with self._random_of_its_own():
                for x, y in itertools.islice(self.batches, len(self.losses), None):
                    with self._clock():
                        self.losses.append(self.train_step(x, y))
                    after_step()
                self._end_epoch()
            yield self.history[-1]

    def train_step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One optimizer step on tokens x and targets y [T, B], from the carried states, which go on after x. Of several
        workers each takes its columns.

        Returns the mean cross-entropy of those before the step.
        """
        x, y = (tokens.chunk(self.workers.count, 1)[self.workers.rank] for tokens in (x, y))
        set_learning_rate(self.optimizer, learning_rate(self.config, self.step, self.steps))
        loss, states = self.run_step(x, y, self.states)
        if self.config.sampling == "sequential":
            self.states = list(states)
        self.step += 1
        return loss

    def compute(
        self, x: torch.Tensor, y: torch.Tensor, states: Sequence[State | None]
    ) -> tuple[torch.Tensor, list[State]]:
        """Forward, loss, backward and update of train_step, for this worker's columns and the states to begin with.

        Returns the mean cross-entropy, and the states after.
        """
        for parameter in self.parameters:
            parameter.grad = None
        parts = self.config.accumulate
        losses, after = [], []
        for part, (tokens, targets) in enumerate(zip(x.chunk(parts, 1), y.chunk(parts, 1), strict=True)):
            if self.workers.count > 1:
                self.run_model.require_backward_grad_sync = part == parts - 1
            with self._autocast():
                scores, state = self.run_model(tokens, states[part])
                loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten())
            share = loss if parts == 1 else loss / parts
            (self.scaler.scale(share) if self.scaled else share).backward()
            after.append(detach(state))
            losses.append(loss.detach())
        self.update()
        return losses[0] if parts == 1 else torch.stack(losses).mean(), after

    def update(self) -> None:
        """An optimizer step with the gradients that are there, clipped."""
        if self.scaled:
            self.scaler.unscale_(self.optimizer)
        if self.config.clip:
            clip(gradients_of(self.parameters), self.config.clip)
        if self.scaled:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def _end_epoch(self) -> None:
        number, validation = len(self.history) + 1, None
        with self._clock():
            loss = self.workers.mean(torch.stack(self.losses).mean()).item()
        self._check("the loss", loss)
        spent = self.seconds - (self.history[-1].seconds if self.history else 0.0)
        speed = len(self.losses) * self.config.batch_size * self.config.steps / spent
        if len(self.data.validation):
            with self._clock():
                validation = self._validate()
            known = [epoch.validation_loss for epoch in self.history if epoch.validation_loss is not None]
            if math.isfinite(validation) and not any(other <= validation for other in known):
                self.best = {name: weight.clone() for name, weight in self.model.state_dict().items()}
                self.best_epoch = number
        of_validation = None if validation is None else perplexity(validation)
        lr = learning_rate(self.config, self.step - 1, self.steps)
        self.history.append(Epoch(number, loss, perplexity(loss), validation, of_validation, lr, speed, self.seconds))
        self.begin_epoch()

    def check(self) -> None:
        """Raises TrainingDiverged where the last loss of this epoch, or a weight, is not finite; of several workers all
        have to ask.
        """
        if self.losses:
            self._check("the loss", self.workers.mean(self.losses[-1]).item())
        for parameter in self.parameters:
            self._check("a weight", parameter.detach().abs().max().item())

    def _check(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            epoch = -(-self.step // len(self.batches))
            raise TrainingDiverged(f"{name} became {value} in epoch {epoch}: lower lr, or clip the gradients more")

    def _validate(self) -> float:
        with self._autocast():
            found = evaluate(self.model, self.data.validation.to(self.device), self.config.batch_size)
        self.model.train()
        return found.nats

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = AMP_DTYPES.get(self.config.amp)
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    @contextlib.contextmanager
    def _random_of_its_own(self) -> Iterator[None]:
        """Dropout draws from torch's global generators: from a state of this run's, and what was there is put back."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            _set_random_state(self.random, self.device)
            self.random = {}  # the global generators have it
            try:
                yield
            finally:
                self.random = random_state(self.device)

    def best_model(self) -> LanguageModel:
        """A copy of the model with the weights of the best validation, or the model where there is none."""
        if self.best is None:
            return self.model
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.best)
        return model


def train(config: TrainConfig, corpus: Corpus, device: torch.device | str = "cpu") -> Trainer:
    """Train a new model on a corpus: the model, data and history of what is returned are the result.

    The same config, corpus and number of threads give the same weights on a CPU.
    """
    trainer = Trainer(config, corpus, device)
    for _ in trainer.run():
        pass
    return trainer


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Of the generators that dropout on this device draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
