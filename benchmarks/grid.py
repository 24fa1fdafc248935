"""The grid: named sizes, and the modules of both libraries with the same weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import fusedrnn
from fusedrnn import cells
from fusedrnn.cells import CellSpec

CELLS = {
    "rnn": ("RNN", {"nonlinearity": "tanh"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}


@dataclass(frozen=True)
class Size:
    """T steps, B sequences, I inputs, H hidden units."""

    T: int
    B: int
    I: int
    H: int


SIZES = {
    "seed-64": Size(35, 32, 28, 64),
    "d2l-256": Size(35, 32, 28, 256),
    "ptb-650": Size(35, 20, 650, 650),
    "mid-512": Size(100, 64, 512, 512),
    "stream-128": Size(256, 8, 128, 128),
    "long-64": Size(2048, 4, 64, 64),
    "decode-256": Size(1, 1, 256, 256),
    "seq1-256": Size(35, 1, 256, 256),
}


@dataclass(frozen=True)
class Problem:
    """One layer to be timed: what both sides are given, whichever way the rows divide it up."""

    cell: str
    size: str
    training: bool
    device: str = "cpu"

    @property
    def sizes(self) -> Size:
        return SIZES[self.size]

    @property
    def spec(self) -> CellSpec:
        return cells.CELLS["rnn_tanh" if self.cell == "rnn" else self.cell]

    @property
    def work(self) -> str:
        return "forward+backward" if self.training else "forward"

    def __str__(self) -> str:
        return f"{self.cell} {self.size} {self.work} {self.device}"


def torch_module(problem: Problem, dtype: torch.dtype = torch.float32) -> nn.RNNBase:
    """The opponent, its weights drawn from the seed of the size."""
    name, options = CELLS[problem.cell]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(nn, name)(problem.sizes.I, problem.sizes.H, **options)
    return module.to(problem.device, dtype)


def fused_module(problem: Problem, backend: str, schedule: str) -> nn.RNNBase:
    """Ours with the opponent's weights."""
    name, options = CELLS[problem.cell]
    module = getattr(fusedrnn, name)(problem.sizes.I, problem.sizes.H, **options, backend=backend, schedule=schedule)
    module.load_state_dict(torch_module(problem).state_dict())
    return module.to(problem.device)


def inputs(problem: Problem, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, B, I] and the cotangent of y [T, B, H], the same values in every dtype."""
    random = torch.Generator().manual_seed(1)
    T, B = problem.sizes.T, problem.sizes.B
    x, dy = (torch.randn(T, B, width, generator=random) for width in (problem.sizes.I, problem.sizes.H))
    return x.to(problem.device, dtype).requires_grad_(problem.training), dy.to(problem.device, dtype)


def layer(module: nn.RNNBase, problem: Problem, x: torch.Tensor, dy: torch.Tensor):
    """The function that is timed: input to output, in training on to the gradients of x and of every weight."""
    if not problem.training:

        def run():
            with torch.no_grad():
                return (module(x)[0],)

        return run
    given = [x, *module.parameters()]

    def run():
        y = module(x)[0]
        return (y, *torch.autograd.grad(y, given, dy))

    return run


def floor(problem: Problem):
    """The function that costs what the products of the layer cost as GEMMs over all steps at once, x and h together."""
    size, device = problem.sizes, problem.device
    rows, inputs, columns = size.T * size.B, size.I + size.H, len(problem.spec.gates) * size.H
    shapes = (rows, inputs), (inputs, columns), (rows, columns)
    xh, w, dgates = (torch.randn(shape, device=device) for shape in shapes)

    def run():
        with torch.no_grad():
            torch.mm(xh, w)
            if problem.training:
                torch.mm(dgates, w.T)
                torch.mm(xh.T, dgates)

    return run
