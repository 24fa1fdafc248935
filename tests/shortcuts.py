"""Modules and their inputs for the tests of fusedrnn.shortcut, and a way around it."""

import contextlib

import pytest
import torch

import fusedrnn
from fusedrnn import shortcut

LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")
OPTIONS = [{}, {"batch_first": True}, {"bidirectional": True, "bias": False}, {"num_layers": 3, "bidirectional": True}]
OPTIONS += [{"num_layers": 2, "batch_first": True}]


@contextlib.contextmanager
def long_way():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcut, "anything_listens", lambda: True)
        yield


def flat(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flat(part)]


def layer_and_input(name: str, dtype=torch.float32, **options):
    module = getattr(fusedrnn, name)(6, 5, dtype=dtype, **options)
    if name.endswith("Cell"):
        states = (torch.randn(3, 5, dtype=dtype), torch.randn(3, 5, dtype=dtype))
        return module, (torch.randn(3, 6, dtype=dtype), states if name == "LSTMCell" else states[0])
    D = (2 if options.get("bidirectional") else 1) * options.get("num_layers", 1)
    x = torch.randn((3, 4, 6) if options.get("batch_first") else (4, 3, 6), dtype=dtype)
    states = (torch.randn(D, 3, module.proj_size or 5, dtype=dtype), torch.randn(D, 3, 5, dtype=dtype))
    return module, (x, states if name == "LSTM" else states[0])
