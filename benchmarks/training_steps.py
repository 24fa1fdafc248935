"""Training steps of the character model on both libraries, and the gate before they are timed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch

from fusedrnn.bench.gate import GateError
from fusedrnn.bench.grid import TORCH
from fusedrnn.lm.config import TrainConfig
from fusedrnn.lm.corpus import Corpus
from fusedrnn.lm.trainer import Trainer

STEPS_COMPARED = 20

# (cell, hidden, clip): program 1 of the course is the ReLU network, without clipping.
MODELS = [("rnn_relu", 64, 0.0), ("rnn", 64, 1.0), ("gru", 64, 1.0), ("lstm", 64, 1.0)]
MODELS += [("rnn", 256, 1.0), ("gru", 256, 1.0), ("lstm", 256, 1.0)]


class Steps:
    """Training steps one at a time, over and over the same epoch's batches; `options` are TrainConfig's."""

    def __init__(self, corpus: Corpus, device: str = "cpu", **options: object):
        config = TrainConfig(tokens="course", max_tokens=10_000, **options)  # type: ignore[arg-type]
        self.trainer = Trainer(config, corpus, device)
        self.batches = itertools.cycle(list(self.trainer.batches))

    def step(self) -> torch.Tensor:
        return self.trainer.train_step(*next(self.batches))

    def epoch(self) -> None:
        for _ in range(len(self.trainer.batches)):
            self.step()


def check_losses(sides: Mapping[str, Steps], exact: Steps, rounding: float) -> None:
    """Raises GateError where the loss of one of the first steps is further from exact's, in float64, than rounding (of
    the loss, of 1 where it is less) and twice torch.nn's own distance, the largest in any step so far.
    """
    farthest = 0.0
    for step in range(STEPS_COMPARED):
        losses, wanted = {name: float(side.step()) for name, side in sides.items()}, float(exact.step())
        farthest = max(farthest, abs(losses[TORCH] - wanted))
        for name, loss in losses.items():
            if not abs(loss - wanted) <= rounding * max(1.0, wanted) + 2 * farthest:
                raise GateError(f"loss of step {step} of {name}: {loss}, torch.nn {losses[TORCH]}, float64 {wanted}")
