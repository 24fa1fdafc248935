"""The grid: sizes, precisions and layouts, and the modules of both libraries with the same weights."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import cells
from fusedrnn.backends.base import Problem as Facts
from fusedrnn.cells import CellSpec
from fusedrnn.dispatch import REGISTRY

TORCH = "torch.nn"
CELLS = {
    "rnn": ("RNN", {"nonlinearity": "tanh"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
# float32 with IEEE products or with TF32's, which only a GPU has
PRECISIONS = {"ieee": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {
    "": {},
    "bidirectional": {"bidirectional": True},
    "2 layers": {"num_layers": 2},
    "packed": {},
}


@dataclass(frozen=True)
class Size:
    """T steps, B sequences, I inputs, H hidden units."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T}-B{self.B}-I{self.I}-H{self.H}"

    @classmethod
    def of(cls, name: str) -> Size:
        """A named size, or what `str` makes of one."""
        if name in SIZES:
            return SIZES[name]
        found = re.fullmatch(r"T(\d+)-B(\d+)-I(\d+)-H(\d+)", name)
        if not found:
            raise ValueError(f"size: expected one of {', '.join(SIZES)} or T1-B1-I1-H1, got {name!r}")
        return cls(*map(int, found.groups()))


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
    """One module to be timed: what both sides are given, whichever way the rows divide it up."""

    cell: str
    size: str
    training: bool
    device: str = "cpu"
    precision: str = "ieee"
    layout: str = ""

    @property
    def sizes(self) -> Size:
        return Size.of(self.size)

    @property
    def spec(self) -> CellSpec:
        return cells.CELLS["rnn_tanh" if self.cell == "rnn" else self.cell]

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]

    @property
    def options(self) -> dict[str, Any]:
        return CELLS[self.cell][1] | LAYOUTS[self.layout]

    @property
    def directions(self) -> int:
        return 2 if self.layout == "bidirectional" else 1

    @property
    def layers(self) -> int:
        return self.options.get("num_layers", 1)

    @property
    def work(self) -> str:
        return "forward+backward" if self.training else "forward"

    def __str__(self) -> str:
        parts = (self.cell, self.size, self.work, self.device, self.precision.replace("ieee", ""), self.layout)
        return " ".join(part for part in parts if part)

    def batch_sizes(self) -> torch.Tensor:
        """How many sequences have a row at each step, [T]: of lengths drawn evenly from 1 to T, if they are packed."""
        T, B = self.sizes.T, self.sizes.B
        if self.layout != "packed":
            return torch.full((T,), B)
        lengths = torch.randint(1, T + 1, (B,), generator=torch.Generator().manual_seed(2))
        lengths[0] = T
        return (lengths > torch.arange(T)[:, None]).sum(1)

    def products(self) -> list[tuple[int, int, int]]:
        """The GEMM that each layer's direction amounts to over all steps, x and h together: rows, inputs, columns."""
        rows, H = int(self.batch_sizes().sum()), self.sizes.H
        widths = [self.sizes.I, *[self.directions * H] * (self.layers - 1)]
        return [(rows, width + H, len(self.spec.gates) * H) for width in widths for _ in range(self.directions)]


@contextlib.contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """TF32's or IEEE products in float32, for torch's recurrent networks and its GEMMs alike."""
    settings: list[Any] = [torch.backends.cudnn.rnn, torch.backends.cuda.matmul]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def torch_module(problem: Problem) -> nn.RNNBase:
    """The opponent, its weights drawn from the seed of the size."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if problem.device == "cuda" else ()):
        torch.manual_seed(0)
        opponent = getattr(nn, CELLS[problem.cell][0])
        module = opponent(problem.sizes.I, problem.sizes.H, **problem.options, device=problem.device)
    return module.to(problem.dtype)


def fused_module(problem: Problem, backend: str, schedule: str) -> nn.RNNBase:
    """Ours with the opponent's weights."""
    ours = getattr(fusedrnn, CELLS[problem.cell][0])
    module = ours(problem.sizes.I, problem.sizes.H, **problem.options, backend=backend, schedule=schedule)
    module.load_state_dict(torch_module(problem).state_dict())
    return module.to(problem.device, problem.dtype)


def our_sides(problem: Problem) -> list[str]:
    """What `auto` takes; every backend that can run the problem, and where a schedule can be forced, every schedule.
    `reference` is the yardstick and no rival."""
    size, found = problem.sizes, ["auto"]
    asked = {"D": problem.directions, "packed": problem.layout == "packed"}
    asked |= {"precision": "tf32" if problem.precision == "tf32" else "ieee"}
    facts = Facts(problem.spec.name, problem.device, problem.dtype, size.T, size.B, size.I, size.H, **asked)
    for name, backend in REGISTRY.items():
        if name != "reference" and not backend.not_supported_reasons(facts):
            found += [f"{name} {schedule}" for schedule in sorted(backend.schedules)] or [name]
    return found


def module_of(problem: Problem, side: str) -> nn.RNNBase:
    """torch.nn's, or ours on the backend and with the schedule that the side's name says."""
    if side == TORCH:
        return torch_module(problem)
    backend, _, schedule = side.partition(" ")
    return fused_module(problem, backend, schedule or "auto")


def inputs(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, B, I] and the cotangent of y [T, B, D*H]; their rows alone where they are packed. Rounded to the problem's
    dtype, they are the same values in every one."""
    random = torch.Generator(problem.device).manual_seed(1)
    shape = (problem.sizes.T, problem.sizes.B)
    if problem.layout == "packed":
        shape = (int(problem.batch_sizes().sum()),)
    widths = (problem.sizes.I, problem.directions * problem.sizes.H)
    x, dy = (torch.randn(*shape, width, generator=random, device=problem.device) for width in widths)
    return x.to(problem.dtype).requires_grad_(problem.training), dy.to(problem.dtype)


def layer(module: nn.RNNBase, problem: Problem, x: torch.Tensor, dy: torch.Tensor):
    """The function that is timed: input to output, in training on to the gradients of x and of every weight.

    The module is set to training or not: in training cuDNN keeps what backward needs, wanted or not.
    """
    module.train(problem.training)
    batch_sizes = problem.batch_sizes() if problem.layout == "packed" else None

    def forward():
        return module(x)[0] if batch_sizes is None else module(PackedSequence(x, batch_sizes))[0].data

    if not problem.training:

        def run():
            with torch.no_grad():
                return (forward(),)

        return run
    given = [x, *module.parameters()]

    def run():
        y = forward()
        return (y, *torch.autograd.grad(y, given, dy))

    return run


def floor(problem: Problem):
    """The function that costs what the products of the module cost as GEMMs over all steps at once."""
    drawn = []
    for rows, inputs, columns in problem.products():
        shapes = (rows, inputs), (inputs, columns), (rows, columns)
        drawn.append([torch.randn(shape, device=problem.device, dtype=problem.dtype) for shape in shapes])

    def run():
        with torch.no_grad():
            for xh, w, dgates in drawn:
                torch.mm(xh, w)
                if problem.training:
                    torch.mm(dgates, w.T)
                    torch.mm(xh.T, dgates)

    return run
