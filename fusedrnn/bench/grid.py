"""The grid: sizes, precisions and layouts, and the modules of both libraries with the same weights."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn
from fusedrnn import cells
from fusedrnn.backends.base import Problem as Facts
from fusedrnn.cells import CellSpec
from fusedrnn.dispatch import REGISTRY

TORCH = "torch.nn"
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn": ("RNN", {"nonlinearity": "tanh"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
# float32 with IEEE products or with TF32's, which only a GPU has
PRECISIONS = {
    "ieee": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
LAYOUTS = ("", "bidirectional", "2 layers", "packed", "batch_first", "tokens")

Run = Callable[[], tuple[torch.Tensor, ...]]


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
    """One module to be timed: what both sides are given, whichever way the rows divide it up.

    `layout`: one of LAYOUTS, or several joined by ", "; any number of layers. Tokens are int64, of which torch.nn is
    given the one-hot rows: that it makes them is part of its time.
    """

    cell: str
    size: str
    training: bool
    device: str = "cpu"
    precision: str = "ieee"
    layout: str = ""

    @classmethod
    def of(cls, name: str) -> Problem:
        """What `str` makes of one. ValueError for anything else."""
        cell, size, work, device, *rest = name.split(" ")
        precision = rest.pop(0) if rest and rest[0] in PRECISIONS else "ieee"
        found = cls(cell, size, work == "forward+backward", device, precision, " ".join(rest))
        if cell not in CELLS or str(found) != name:
            raise ValueError(f"problem: expected e.g. {cls('gru', 'd2l-256', True)}, got {name!r}")
        return found

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
    def parts(self) -> list[str]:
        return self.layout.split(", ")

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the module."""
        flags = {name: True for name in ("bidirectional", "batch_first") if name in self.parts}
        return CELLS[self.cell][1] | flags | ({"num_layers": self.layers} if self.layers > 1 else {})

    @property
    def packed(self) -> bool:
        return "packed" in self.parts

    @property
    def tokens(self) -> bool:
        return "tokens" in self.parts

    @property
    def directions(self) -> int:
        return 2 if "bidirectional" in self.parts else 1

    @property
    def layers(self) -> int:
        return next((int(part.split()[0]) for part in self.parts if part.endswith(" layers")), 1)

    @property
    def work(self) -> str:
        return "forward+backward" if self.training else "forward"

    @property
    def facts(self) -> Facts:
        """What the backends are asked about, of the first layer."""
        size = self.sizes
        return Facts(
            self.spec.name, self.device, self.dtype, size.T, size.B, size.I, size.H, self.directions,
            tokens=self.tokens, packed=self.packed, batch_first="batch_first" in self.parts,
            save="full" if self.training else "none", precision="tf32" if self.precision == "tf32" else "ieee",
        )  # fmt: skip

    def __str__(self) -> str:
        parts = (self.cell, self.size, self.work, self.device, self.precision.replace("ieee", ""), self.layout)
        return " ".join(part for part in parts if part)

    def batch_sizes(self) -> torch.Tensor:
        """How many sequences have a row at each step, [T]: of lengths drawn evenly from 1 to T, if they are packed."""
        T, B = self.sizes.T, self.sizes.B
        if not self.packed:
            return torch.full((T,), B)
        lengths = torch.randint(1, T + 1, (B,), generator=torch.Generator().manual_seed(2))
        lengths[0] = T
        return (lengths > torch.arange(T)[:, None]).sum(1)

    def products(self) -> list[tuple[int, int, int]]:
        """The GEMM that each layer's direction amounts to over all steps, x and h together: rows, inputs, columns.
        Tokens pick rows of a matrix and multiply none."""
        rows, H = int(self.batch_sizes().sum()), self.sizes.H
        widths = [0 if self.tokens else self.sizes.I, *[self.directions * H] * (self.layers - 1)]
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
    found, facts = ["auto"], problem.facts
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
    """x [T, B, I], or tokens [T, B], and the cotangent of y [T, B, D*H]; [B, T, ...] with batch_first; their rows alone
    where they are packed. Rounded to the problem's dtype, they are the same values in every one."""
    random = torch.Generator(problem.device).manual_seed(1)
    rows: tuple[int, ...] = (problem.sizes.T, problem.sizes.B)
    if problem.packed:
        rows = (int(problem.batch_sizes().sum()),)
    elif "batch_first" in problem.parts:
        rows = rows[::-1]
    I, width = problem.sizes.I, problem.directions * problem.sizes.H
    if problem.tokens:
        x = torch.randint(I, rows, generator=random, device=problem.device)
    else:
        x = torch.randn(*rows, I, generator=random, device=problem.device).to(problem.dtype)
        x.requires_grad_(problem.training)
    dy = torch.randn(*rows, width, generator=random, device=problem.device)
    return x, dy.to(problem.dtype)


def layer(module: nn.RNNBase, problem: Problem, x: torch.Tensor, dy: torch.Tensor) -> Run:
    """The function that is timed: input to output, in training on to the gradients of x and of every weight.

    The module is set to training or not: in training cuDNN keeps what backward needs, wanted or not.
    """
    module.train(problem.training)
    batch_sizes = problem.batch_sizes() if problem.packed else None
    wants_one_hot = problem.tokens and type(module) is getattr(nn, CELLS[problem.cell][0])

    def forward():
        rows = F.one_hot(x, problem.sizes.I).to(dy.dtype) if wants_one_hot else x
        return module(rows)[0] if batch_sizes is None else module(PackedSequence(rows, batch_sizes))[0].data

    if not problem.training:

        def infer():
            with torch.no_grad():
                return (forward(),)

        return infer
    given = [*([] if problem.tokens else [x]), *module.parameters()]

    def train():
        y = forward()
        return (y, *torch.autograd.grad(y, given, dy))

    return train


def floor(problem: Problem) -> Callable[[], None]:
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
