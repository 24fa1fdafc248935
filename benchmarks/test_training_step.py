"""A whole step of the character model's training, against the same loop on torch.nn fed with one-hot rows. Timed where
the losses of the first steps are as near to those in float64 as torch.nn's are; the ReLU network, unclipped, lets
rounding grow, and torch.nn's loss has been 4e-5 from float64's after 20 steps where ours was 3e-7.

In training a step follows a step: each side's turn is an epoch of them, so that only the first finds the caches full of
the other side's code and data.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks import replay
from benchmarks.record import Row
from benchmarks.training_steps import MODELS, Steps, check_losses
from fusedrnn.bench import pairs
from fusedrnn.bench.grid import TORCH
from fusedrnn.lm.corpus import load_corpus

pytestmark = pytest.mark.benchmark(timer=replay.clock)


def _steps(library: str, cell: str, hidden: int, clip: float) -> Steps:
    return Steps(load_corpus("pydoc"), library=library, cell=cell, hidden=hidden, clip=clip)


def _name(cell: str, hidden: int) -> str:
    return f"training step {cell} {hidden}"


@pytest.mark.parametrize(("cell", "hidden", "clip"), MODELS)
def test_training_step(cell, hidden, clip, threads, budget, benchmark, record):
    ours, theirs, exact = (_steps(library, cell, hidden, clip) for library in ("fusedrnn", "torch", "torch"))
    exact.trainer.model.double()
    check_losses({"auto": ours, TORCH: theirs}, exact, rounding=1e-6)
    steps = len(ours.trainer.batches)
    times = pairs.paired({"auto": ours.epoch, TORCH: theirs.epoch}, 6 * budget)
    own, opponent = ([s / steps for s in times[side]] for side in ("auto", TORCH))
    replay.show(benchmark, f"{_name(cell, hidden)}, {threads} threads", "auto", own)
    milliseconds = map(pairs.milliseconds, (own, opponent))
    record.rows.append(Row(_name(cell, hidden), "auto", threads, *milliseconds, pairs.ratios(opponent, own)))


@pytest.mark.parametrize(("cell", "hidden", "clip"), MODELS)
def test_rest_of_the_step(cell, hidden, clip, threads, budget, benchmark, record):
    """Head, loss, clipping and optimizer alone: the part of the step that is the same on both sides."""
    trainer = _steps("fusedrnn", cell, hidden, clip).trainer
    model, (_, targets) = trainer.model, next(iter(trainer.batches))
    y = torch.randn(*targets.shape, hidden, requires_grad=True)
    of_layer = [(parameter, torch.zeros_like(parameter)) for parameter in model.rnn.parameters()]

    def backward_of_layer(dy: torch.Tensor) -> None:
        for parameter, gradient in of_layer:
            parameter.grad = gradient

    y.register_hook(backward_of_layer)

    def rest():
        y.grad = None
        trainer.optimizer.zero_grad()
        F.cross_entropy(model.head(y).flatten(0, 1), targets.flatten()).backward()
        trainer.update()

    own = pairs.paired({"rest": rest}, budget)["rest"]
    replay.show(benchmark, f"{_name(cell, hidden)}, {threads} threads", "rest of the step", own)
    record.rows.append(Row(_name(cell, hidden), "rest", threads, pairs.milliseconds(own)))
