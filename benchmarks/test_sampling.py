"""Writing one text, a character at a time, beside the same loop on torch.nn fed with one-hot rows. Timed where both
write what the model writes in float64.
"""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks import replay
from benchmarks.record import Row
from fusedrnn.bench import pairs
from fusedrnn.bench.grid import TORCH
from fusedrnn.lm.config import TrainConfig
from fusedrnn.lm.model import LanguageModel, build_model
from fusedrnn.lm.sampling import continuation
from fusedrnn.lm.text import Vocab

pytestmark = pytest.mark.benchmark(timer=replay.clock)

HIDDEN, CHARACTERS = 256, 200
VOCAB = Vocab("abcdefghijklmnopqrstuvwxyz ")
PROMPT = "time traveller"


def text(model: LanguageModel) -> str:
    return continuation(model, VOCAB, PROMPT, CHARACTERS)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_sampling(cell, threads, budget, benchmark, record):
    torch.manual_seed(0)
    ours = build_model(len(VOCAB), TrainConfig(cell=cell, hidden=HIDDEN))
    for weight in (ours.head.weight, ours.rnn.weight_ih_l0):  # so that scores are far apart, and texts not of one word
        torch.nn.init.normal_(weight)
    torch.nn.init.normal_(ours.rnn.weight_hh_l0, std=2 / HIDDEN**0.5)
    theirs = build_model(len(VOCAB), TrainConfig(cell=cell, hidden=HIDDEN, library="torch"))
    theirs.load_state_dict(ours.state_dict())
    exact = text(copy.deepcopy(theirs).double())
    assert text(ours) == exact == text(theirs)
    assert len(set(exact[len(PROMPT) :])) > 3
    times = pairs.paired({"auto": lambda: text(ours), TORCH: lambda: text(theirs)}, 2 * budget)
    own, opponent = ([s / CHARACTERS for s in times[side]] for side in ("auto", TORCH))
    name = f"sampling {cell} {HIDDEN}"
    replay.show(benchmark, f"{name}, {threads} threads", "auto", own)
    milliseconds = map(pairs.milliseconds, (own, opponent))
    record.rows.append(Row(name, "auto", threads, *milliseconds, pairs.ratios(opponent, own)))
