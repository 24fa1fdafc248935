"""The captured step without a GPU: what is recorded is run again on the same buffers, as a CUDA graph would."""

import contextlib
import dataclasses

import pytest
import torch

from fusedrnn.lm import Trainer
from fusedrnn.lm.captured import WARM_UP, CapturedStep

from .conftest import SMALL


class Again:
    """Records by keeping what to call; counts what it was asked for."""

    def __init__(self):
        self.before = self.recorded = self.launched = 0

    @contextlib.contextmanager
    def beside(self):
        self.before += 1
        yield

    def record(self, launch):
        self.recorded += 1

        def again():
            self.launched += 1
            launch()

        return again


@pytest.mark.parametrize(
    "options", [{}, {"sampling": "random"}, {"accumulate": 2}, {"layers": 2, "dropout": 0.2}], ids=str
)
@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_captured_steps_are_the_plain_ones(small, cell, options):
    config = dataclasses.replace(SMALL, epochs=3, cell=cell, optimizer="adam", lr=0.01, schedule="cosine", **options)
    plain, captured = Trainer(config, small), Trainer(config, small)
    recorder = Again()
    captured.run_step = CapturedStep(captured.compute, recorder)
    for trainer in (plain, captured):
        for _ in trainer.run():
            pass
    assert [epoch.loss for epoch in plain.history] == [epoch.loss for epoch in captured.history]
    assert all(map(torch.equal, plain.parameters, captured.parameters))
    assert (recorder.before, recorder.recorded, recorder.launched) == (WARM_UP, 1, plain.steps - WARM_UP)


def test_buffers_stay_and_losses_do_not(small):
    trainer = Trainer(SMALL, small)
    trainer.run_step = CapturedStep(trainer.compute, Again())
    batches = list(trainer.batches)
    losses = [trainer.train_step(*batch) for batch in batches[: WARM_UP + 1]]
    state, loss = trainer.states[0], losses[-1].clone()
    losses.append(trainer.train_step(*batches[WARM_UP + 1]))
    assert trainer.states[0] is state
    assert torch.equal(losses[-2], loss)
    assert not torch.equal(losses[-1], loss)
