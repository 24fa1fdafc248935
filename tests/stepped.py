"""Layers with hidden_size=(forward, reverse), and the loop over torch.nn's cells that tells what they should give."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fusedrnn
from fusedrnn.call import Weights

T, B, I, SIZES = 6, 4, 3, (5, 2)
KINDS = [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("GRU", {"reset_after": False}), ("LSTM", {})]
LAYERS = ("RNN", "GRU", "LSTM")


def names(value) -> str:
    return "-".join(map(str, (value[0], *value[1].values()))) if isinstance(value, tuple) else ""


def made(kind, sizes=SIZES, **options) -> nn.Module:
    name, own = kind if isinstance(kind, tuple) else (kind, {})
    return getattr(fusedrnn, name)(I, sizes, bidirectional=True, **{"dtype": torch.float64} | own | options)


def rows(*leading: int) -> Tensor:
    return torch.randn(*leading, I, dtype=torch.float64)


def state_of(module: nn.Module, *batch: int):
    """Random states: (forward, reverse), and of an LSTM (h, c) of these."""

    def one():
        shapes = [(module.num_layers, *batch, size) for size in module.hidden_size]
        return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)

    return (one(), one()) if module.mode == "LSTM" else one()


def tensors(tree) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [t for part in tree or () for t in tensors(part)]


def cell_of(module: nn.Module, *sizes: int) -> nn.Module:
    """One step on whatever parameters it is called with: torch.nn's wherever torch.nn has it."""
    if module.mode.startswith("RNN"):
        return nn.RNNCell(*sizes, module.bias, module.nonlinearity, device="meta")
    if module.mode == "LSTM":
        return nn.LSTMCell(*sizes, module.bias, device="meta")
    if module.reset_after:
        return nn.GRUCell(*sizes, module.bias, device="meta")
    return fusedrnn.GRUCell(*sizes, module.bias, device="meta", reset_after=False)


class Stepped(nn.Module):
    """The module in question as a loop of cells over time, time-major, on that module's parameters."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, hx=None, lengths: Tensor | None = None, resets: Tensor | None = None):
        module, is_lstm = self.module, self.module.mode == "LSTM"
        hx = hx or tuple(x.new_zeros(module.num_layers, x.shape[1], size) for size in module.hidden_size)
        given = (hx if isinstance(hx[0], tuple) else (hx, hx)) if is_lstm else (hx,)
        last = [([], []) for _ in given]
        for layer in range(module.num_layers):
            both = []
            for d, suffix in enumerate(("", "_reverse")):
                states = [state[d][layer] for state in given]
                y, states = self._direction(x, states, f"_l{layer}{suffix}", d == 1, lengths, resets)
                both.append(y)
                for of, state in zip(last, states, strict=True):
                    of[d].append(state)
            x = torch.cat(both, -1)
            if layer < module.num_layers - 1:
                x = torch.dropout(x, module.dropout, module.training)
        after = tuple(tuple(map(torch.stack, of)) for of in last)
        return x, after if is_lstm else after[0]

    def _direction(self, x, states, suffix, reverse, lengths, resets):
        cell = cell_of(self.module, x.shape[-1], states[0].shape[-1])
        weights = {name: getattr(self.module, name + suffix) for name, _ in cell.named_parameters()}
        ys = []
        for t in reversed(range(len(x))) if reverse else range(len(x)):
            active = (torch.ones(x.shape[1]).bool() if lengths is None else t < lengths)[:, None]
            if resets is not None:
                states = [torch.where(resets[t][:, None] & active, 0.0, state) for state in states]
            after = torch.func.functional_call(cell, weights, (x[t], tuple(states) if len(states) == 2 else states[0]))
            after = after if len(states) == 2 else (after,)
            states = [torch.where(active, new, old) for new, old in zip(after, states, strict=True)]
            ys.append(torch.where(active, states[0], 0.0))
        return torch.stack(ys[::-1] if reverse else ys), states


def outcome(run, parameters, x: Tensor, hx=None, **given) -> list[Tensor]:
    """Outputs of `run`, and the gradients of x, the states and the parameters for random cotangents on every output."""
    leaves = [t.clone().requires_grad_() for t in (x, *tensors(hx))]
    fresh = iter(leaves[1:])

    def again(tree):
        return next(fresh) if isinstance(tree, Tensor) else tuple(map(again, tree))

    torch.manual_seed(5)  # dropout
    outputs = tensors(run(leaves[0], *(() if hx is None else (again(hx),)), **given))
    random = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(out.shape, generator=random, dtype=torch.float64) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [*leaves, *parameters], cotangents)]


def agree(got, want, atol: float = 1e-11) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def beside_the_loop(module: nn.Module, x: Tensor, hx=None, **given) -> None:
    """Agree with the loop of cells; x and resets are time-major, and turned for a batch_first module."""
    parameters, turned = list(module.parameters()), module.batch_first

    def run(x, *hx, **given):
        if not turned:
            return module(x, *hx, **given)
        given = {name: t.T if name == "resets" else t for name, t in given.items()}
        y, state = module(x.transpose(0, 1), *hx, **given)
        assert y.is_contiguous()
        return y.transpose(0, 1), state

    agree(outcome(run, parameters, x, hx, **given), outcome(Stepped(module), parameters, x, hx, **given))


def weights_of(module: nn.Module) -> list[Weights]:
    return [Weights(*own) for own in module.all_weights]
