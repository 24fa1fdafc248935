"""torch.utils.checkpoint: the layer runs again in backward, and gives the same gradients."""

import contextlib

import pytest
import torch
from test_transforms import LAYERS, SINGLE, gradients, input_of, pair, scalar, tensors
from torch import nn
from torch.utils.checkpoint import checkpoint


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_checkpointing_changes_no_gradient(name, reentrant):
    ours, _ = pair(name)
    x = input_of(name)
    got = gradients_of_checkpoint(ours, x, reentrant)
    assert all(map(torch.equal, got, gradients(ours, lambda net, x: scalar(net(x)), x)))


@pytest.mark.parametrize("profiled", ["forward", "backward"])
@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_checkpointing_with_a_profiler_around_one_half(name, profiled):
    ours, _ = pair(name)
    x = input_of(name)
    halves = {half: contextlib.nullcontext() for half in ("forward", "backward")}
    halves[profiled] = torch.profiler.profile()
    with halves["forward"]:
        outputs = checkpoint(lambda x: tuple(tensors(ours(x))), x, use_reentrant=False)
    with halves["backward"]:
        got = torch.autograd.grad(scalar(outputs), list(ours.parameters()))
    assert all(map(torch.equal, got, gradients(ours, lambda net, x: scalar(net(x)), x)[1:]))


def gradients_of_checkpoint(module: nn.Module, x: torch.Tensor, reentrant: bool) -> list[torch.Tensor]:
    """Into .grad: the reentrant kind knows no other way."""
    x = x.clone().requires_grad_()
    outputs = checkpoint(lambda x: tuple(tensors(module(x))), x, use_reentrant=reentrant)  # it sees no nested tuples
    scalar(outputs).backward()
    return [x.grad, *(p.grad for p in module.parameters())]
