import dataclasses
import math

import pytest
import torch
from torch import nn

from fusedrnn.lm import TrainConfig, grad_clipping, train
from fusedrnn.lm.optimization import build_optimizer, learning_rate

from .conftest import SMALL


def rates(steps=11, **options):
    config = TrainConfig(lr=2.0, **options)
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_schedules():
    assert rates() == [2.0] * 11
    assert rates(schedule="linear", min_lr=1.0) == pytest.approx([2 - step / 10 for step in range(11)])
    assert rates(schedule="cosine") == pytest.approx([1 + math.cos(math.pi * step / 10) for step in range(11)])
    assert rates(warmup=4)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates(schedule="cosine", warmup=4, min_lr=0.5)[4:] == pytest.approx(
        [1.25 + 0.75 * math.cos(math.pi * step / 6) for step in range(7)]
    )
    assert rates(steps=1, schedule="linear") == [2.0]
    assert rates(steps=3, schedule="cosine", warmup=9) == pytest.approx([2 / 9, 4 / 9, 6 / 9])


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"momentum": 0.9}, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
        ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, 0.01)),
        ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.0)),
        ({"weight_decay": 0.1}, None),
        ({"optimizer": "adamw", "weight_decay": 0.1}, None),
    ],
    ids=["momentum", "adam", "adamw", "sgd decay", "adamw decay"],
)
def test_optimizers_are_torchs_and_biases_do_not_decay(options, theirs):
    torch.manual_seed(0)
    ours, control = nn.Linear(3, 2), nn.Linear(3, 2)
    control.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(TrainConfig(lr=0.01, **options), ours)
    if theirs is None:
        kind = torch.optim.SGD if options.get("optimizer") is None else torch.optim.AdamW
        groups = [{"params": [control.weight], "weight_decay": 0.1}, {"params": [control.bias], "weight_decay": 0.0}]
        expected = kind(groups, lr=0.01)
    else:
        expected = theirs(control.parameters())
    x = torch.randn(4, 3)
    for _ in range(5):
        for model, own in ((ours, optimizer), (control, expected)):
            own.zero_grad()
            model(x).square().sum().backward()
            own.step()
    for one, other in zip(ours.parameters(), control.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 1.0), ("adam", 0.01), ("adamw", 0.01)])
def test_every_optimizer_learns_and_its_rate_is_told(small, optimizer, lr):
    config = dataclasses.replace(SMALL, epochs=6, optimizer=optimizer, lr=lr, schedule="linear", min_lr=lr / 10)
    history = train(config, small).history
    assert history[-1].loss < history[0].loss - 0.1
    assert history[-1].lr == pytest.approx(lr / 10)


@pytest.mark.parametrize(("theta", "scale"), [(1.0, 1 / 13), (26.0, 1.0)])
def test_clipping_scales_by_the_global_norm(theta, scale):
    net = nn.Linear(2, 1)
    net.weight.grad, net.bias.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([12.0])
    assert grad_clipping(net, theta) == 13
    torch.testing.assert_close(net.weight.grad, scale * torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(net.bias.grad, scale * torch.tensor([12.0]))


def test_clipping_leaves_zero_gradients_alone():
    net = nn.Linear(2, 1)
    net.weight.grad = torch.zeros(1, 2)
    grad_clipping(net, 1.0)
    assert not net.weight.grad.any()
