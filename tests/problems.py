"""The sample problems of the value, gradient and cross-backend tests, how to run them, and how close is close."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedrnn import ops
from fusedrnn.backends.base import Problem
from fusedrnn.bench import grid
from fusedrnn.bench.precision import excess, norm
from fusedrnn.call import Call, Weights
from fusedrnn.cells import CELLS
from fusedrnn.dispatch import REGISTRY

NAMES = ("y", "h_n", "c_n", "dx", "dh0", "dc0", *(f"d{name}" for name in ops.DIFFERENTIABLE[3:]))


@dataclass(frozen=True)
class Sample:
    """One call of one layer. `lengths` is "" (none), "packed", or "given" (unsorted, with a 0 and a T among them)."""

    cell: str
    T: int
    B: int
    I: int
    H: int
    D: int = 1
    P: int = 0
    bias: bool = True
    reverse: bool = False
    tokens: bool = False
    lengths: str = ""
    resets: bool = False
    batch_first: bool = False
    strided: bool = False
    saturating: bool = False
    schedule: str = "auto"
    save: str = "full"
    draw: int = 0

    def __str__(self) -> str:
        sizes = f"T{self.T}-B{self.B}-I{self.I}-H{self.H}" + (f"-P{self.P}" if self.P else "")
        flags = ("reverse", "tokens", "resets", "batch_first", "strided", "saturating")
        named = [name for name in flags if getattr(self, name)]
        named += ["both"] * (self.D == 2) + ["nobias"] * (not self.bias)
        named += [self.lengths] * bool(self.lengths) + [self.schedule] * (self.schedule != "auto")
        named += [self.save] * (self.save != "full")
        return "-".join((self.cell, sizes, *named))

    def call(self, dtype: torch.dtype, device: str = "cpu") -> Call:
        """Inputs that depend on the sample alone: equal in every dtype but for what float32 already rounds away."""
        drawn_for = str(self.on("auto").keeping("full"))
        random = torch.Generator().manual_seed(1000 * self.draw + sum(map(ord, drawn_for)))
        gates, out = len(CELLS[self.cell].gates), self.P or self.H

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=random, dtype=torch.float32) * scale
            return _with_gaps(values.to(dtype)) if self.strided else values.to(dtype)

        sizes = self._lengths(random)
        row_offsets = None
        rows: tuple[int, ...] = (self.T, self.B)
        if self.lengths == "packed":
            batch_sizes = (sizes > torch.arange(self.T)[:, None]).sum(1)
            row_offsets, rows = batch_sizes.cumsum(0) - batch_sizes, (int(sizes.sum()),)
        x = torch.randint(self.I, rows, generator=random) if self.tokens else normal(*rows, self.I)
        if self.batch_first and row_offsets is None:
            x = x.transpose(0, 1).contiguous().transpose(0, 1)
        scale = (3.0 if self.saturating else 1.0) * self.H**-0.5
        weights = tuple(
            Weights(
                normal(gates * self.H, self.I, scale=20.0 if self.saturating else self.I**-0.5),
                normal(gates * self.H, out, scale=scale),
                normal(gates * self.H, scale=scale) if self.bias else None,
                normal(gates * self.H, scale=scale) if self.bias else None,
                normal(self.P, self.H, scale=scale) if self.P else None,
            )
            for _ in range(self.D)
        )
        drawn = Call(
            self.cell,
            x,
            normal(self.D, self.B, out),
            normal(self.D, self.B, self.H) if CELLS[self.cell].states == 2 else None,
            weights,
            (False, True) if self.D == 2 else (self.reverse,),
            row_offsets,
            sizes,
            self._resets(random),
            self.batch_first,
            self.schedule,
            self.save,
        )
        return drawn if device == "cpu" else _moved(drawn, device)

    def _lengths(self, random: torch.Generator) -> Tensor | None:
        if not self.lengths:
            return None
        sizes = torch.randint(1, self.T + 1, (self.B,), generator=random)
        sizes[0] = self.T
        if self.lengths == "packed":
            return sizes.sort(descending=True).values
        sizes[1] = 0
        return sizes[torch.randperm(self.B, generator=random)]

    def _resets(self, random: torch.Generator) -> Tensor | None:
        if not self.resets:
            return None
        drawn = torch.rand(self.T, self.B, generator=random) < 0.3
        return _with_gaps(drawn) if self.strided else drawn

    def cotangents(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        random = torch.Generator().manual_seed(1 + self.draw)
        drawn = (torch.randn(out.shape, generator=random, dtype=torch.float32).to(out) for out in outputs)
        return tuple(_with_gaps(g) if self.strided else g for g in drawn)

    def on(self, schedule: str) -> Sample:
        return dataclasses.replace(self, schedule=schedule)

    def keeping(self, save: str) -> Sample:
        return dataclasses.replace(self, save=save)


def _moved(call: Call, device: str) -> Call:
    weights = tuple(Weights._make(w if w is None else w.to(device) for w in one) for one in call.weights)
    tensors = {name: t.to(device) for name, t in call._asdict().items() if isinstance(t, Tensor)}
    return call._replace(**tensors, weights=weights)


def _with_gaps(values: Tensor) -> Tensor:
    """The same values as a window of a larger tensor whose last two dimensions are swapped in memory."""
    wide = values.new_full([size + 3 for size in values.shape], torch.nan)
    if values.ndim > 1:
        wide = wide.transpose(-1, -2).contiguous().transpose(-1, -2)
    window = wide[tuple(slice(2, 2 + size) for size in values.shape)]
    return window.copy_(values)


SIZES = (
    dict(T=1, B=1, I=1, H=1),
    dict(T=1, B=4, I=9, H=16),
    dict(T=13, B=1, I=5, H=33),
    dict(T=6, B=0, I=3, H=5),
    dict(T=40, B=6, I=1, H=48),
    dict(T=20, B=3, I=7, H=15, saturating=True),
    dict(T=9, B=5, I=6, H=18, strided=True),
    dict(T=9, B=5, I=6, H=18, batch_first=True),
    dict(T=9, B=3, I=4, H=11, reverse=True),
    dict(T=8, B=3, I=5, H=19, D=2, bias=False),
    dict(T=11, B=4, I=27, H=20, tokens=True),
    dict(T=11, B=4, I=27, H=20, tokens=True, D=2, batch_first=True),
    dict(T=31, B=9, I=20, H=37, D=2, lengths="packed"),
    dict(T=11, B=4, I=27, H=20, tokens=True, D=2, lengths="packed"),
    dict(T=9, B=5, I=6, H=18, D=2, lengths="given"),
    dict(T=9, B=5, I=6, H=18, resets=True),
    dict(T=9, B=5, I=6, H=18, D=2, resets=True, lengths="given", batch_first=True),
    dict(T=8, B=4, I=6, H=18, D=2, resets=True, lengths="packed"),
    dict(T=9, B=3, I=4, H=11, resets=True, reverse=True, strided=True),
    dict(T=11, B=4, I=27, H=20, resets=True, tokens=True, batch_first=True),
    dict(T=7, B=66, I=12, H=64),
    dict(T=4, B=3, I=259, H=257, D=2, lengths="packed"),
    dict(T=4, B=3, I=259, H=257),
)
PROJECTIONS = (
    dict(T=1, B=1, I=1, H=2, P=1),
    dict(T=10, B=4, I=6, H=18, P=7, D=2),
    dict(T=10, B=4, I=6, H=18, P=7, D=2, lengths="packed"),
    dict(T=10, B=4, I=6, H=18, P=7, lengths="given", resets=True),
)
LEAN = (  # a chunk of cells is 32 steps
    dict(T=1, B=1, I=1, H=1),
    dict(T=9, B=5, I=6, H=18, strided=True),
    dict(T=6, B=0, I=3, H=5),
    dict(T=40, B=3, I=7, H=15, saturating=True),
    dict(T=64, B=2, I=6, H=18, reverse=True, batch_first=True),
    dict(T=75, B=9, I=20, H=37, D=2, lengths="packed"),
    dict(T=33, B=5, I=6, H=18, D=2, lengths="given", bias=False),
    dict(T=35, B=4, I=27, H=20, tokens=True, D=2, lengths="packed"),
    dict(T=35, B=1, I=40, H=35, tokens=True),
    dict(T=37, B=3, I=6, H=18, resets=True),
    dict(T=35, B=4, I=27, H=20, D=2, resets=True, lengths="packed", tokens=True),
)
PROBLEMS = [Sample(cell, **size) for cell in CELLS for size in SIZES]
PROBLEMS += [Sample("lstm", **size) for size in PROJECTIONS]
PROBLEMS += [Sample(cell, **size, save="lean") for cell in ("gru", "lstm") for size in LEAN]
PROBLEMS += [Sample(cell, **LEAN[1], save="lean") for cell in CELLS if cell not in ("gru", "lstm")]


def cases(backends, dtype: torch.dtype, samples: Sequence[Sample] = PROBLEMS, device: str = "cpu") -> list:
    """pytest parameters (sample, backend) for all that the backends declare; skipped where one is not available."""
    found = []
    for name in backends:
        missing = REGISTRY[name].unavailable_reason()
        marks = [pytest.mark.skip(f"{name}: {missing}")] if missing else []
        for sample in samples:
            problem = dataclasses.replace(Problem.of(sample.call(dtype)), device=device)
            if set(REGISTRY[name].not_supported_reasons(problem)) <= {missing}:
                found.append(pytest.param(sample, name, id=f"{name}-{sample}", marks=marks))
    return found


def forward(call: Call, backend: str) -> tuple[Tensor, ...]:
    """y, h_n, c_n, saved, cells from the raw op."""
    op = ops.FORWARD[call.spec.op]
    return op(*ops.flat(call), *_options(call), backend)


def backward(call: Call, backend: str, cotangents, outputs: tuple[Tensor, ...], wanted: int = -1) -> tuple[Tensor, ...]:
    """The gradients from the raw op, all of them, or those of the bits set in `wanted`."""
    if wanted < 0:
        wanted = sum(1 << k for k, t in enumerate(inputs_of(call)) if t is not None and t.is_floating_point())
    y, _, _, saved, cells = outputs
    op = ops.BACKWARD[call.spec.op]
    return op(*cotangents, *ops.flat(call), y, saved, cells, *_options(call), backend, wanted)


def inputs_of(call: Call) -> tuple[Tensor | None, ...]:
    return (call.x, call.h0, call.c0, *(w for one in call.weights for w in one))


def _options(call: Call) -> tuple:
    return call.cell, call.direction, call.batch_first, call.schedule, call.save, call.precision


def run(
    sample: Sample,
    backend: str,
    dtype: torch.dtype,
    backward_on: str | None = None,
    device: str = "cpu",
    precision: str = "ieee",
) -> dict[str, Tensor]:
    """Outputs, and gradients for random cotangents on each of them, by name."""
    call = sample.call(dtype, device=device)._replace(precision=precision)
    outputs = forward(call, backend)
    grads = backward(call, backward_on or backend, sample.cotangents(outputs[:3]), outputs)
    return {name: t.cpu() for name, t in zip(NAMES, (*outputs[:3], *grads), strict=True) if _given(t)}


def _given(tensor: Tensor) -> bool:
    return tensor.ndim > 1 or tensor.shape[0] > 0


def run_torch(sample: Sample, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor] | None:
    """The same from torch.nn, or None where it has no such cell or option."""
    if sample.cell == "gru_reset_before" or sample.resets or sample.reverse or sample.lengths == "given":
        return None
    call = sample.call(dtype, device=device)
    module = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[call.spec.op]
    options = {"nonlinearity": sample.cell[4:]} if call.spec.op == "rnn" else {}
    if sample.P:
        options["proj_size"] = sample.P
    options |= {"bias": sample.bias, "bidirectional": sample.D == 2, "dtype": dtype, "device": device}
    net = module(sample.I, sample.H, **options)
    given = [w for direction in call.weights for w in direction if w is not None]
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), given, strict=True):
            parameter.copy_(value)
    x = nn.functional.one_hot(call.x, sample.I).to(dtype) if sample.tokens else call.x.clone()
    inputs = [t.clone().requires_grad_() for t in (x, call.h0, call.c0) if t is not None]
    state = tuple(inputs[1:]) if call.c0 is not None else inputs[1]
    if sample.lengths == "packed":
        sizes = torch.diff(call.row_offsets.cpu(), append=torch.tensor([call.R]))
        y, after = net(PackedSequence(inputs[0], sizes), state)
        y = y.data
    else:
        y, after = net(inputs[0], state)
    outputs = (y, *(after if isinstance(after, tuple) else (after,)))
    torch.autograd.backward(outputs, sample.cotangents(outputs))
    by_name = {name: out.detach() for name, out in zip(("y", "h_n", "c_n"), outputs, strict=False)}
    by_name |= {name: t.grad for name, t in zip(("dx", "dh0", "dc0"), inputs, strict=False)}
    if sample.tokens:
        del by_name["dx"]
    fields = [name for name, w in zip(Weights._fields, call.weights[0], strict=True) if w is not None]
    names = [f"d{name}{suffix}" for suffix in ("", "_reverse")[: sample.D] for name in fields]
    by_name |= {name: p.grad for name, p in zip(names, net.parameters(), strict=True)}
    return {name: t.cpu() for name, t in by_name.items()}


class Errors(NamedTuple):
    """Distances from float64 of the backend and of torch, and the values themselves."""

    ours: Tensor
    theirs: Tensor
    exact: Tensor


def errors_of(
    sample: Sample, backend: str, dtype: torch.dtype, draws: int, device: str = "cpu", precision: str = "ieee"
) -> dict[str, list[Errors]]:
    """By name, one for each drawing of the sample. On a GPU torch's own setting has to agree with `precision`."""
    on_it: dict = {"device": device, "precision": precision}
    found: dict[str, list[Errors]] = {}
    for draw in range(draws):
        drawn = dataclasses.replace(sample, draw=draw)
        exact = run(drawn, "reference", torch.float64)
        ours = run(drawn, backend, dtype, **on_it)
        theirs = run_torch(drawn, dtype, device) or run(drawn, "reference", dtype, **on_it)
        assert ours.keys() == exact.keys() == theirs.keys()
        for name, want in exact.items():
            assert ours[name].shape == want.shape, f"{name}: {list(ours[name].shape)}, expected {list(want.shape)}"
            found.setdefault(name, []).append(Errors(ours[name] - want, theirs[name] - want, want))
    return found


def typical_ratio(drawn: list[Errors], dtype: torch.dtype) -> float:
    """The error of a backend over that of torch, or over 2 eps of the scale where torch is exact: geometric mean over
    drawings of root mean squares."""
    found = []
    for errors in drawn:
        error, their_error, scale = (norm(t, "rms") for t in errors)
        if error:
            found.append(math.log(error / max(their_error, 2 * torch.finfo(dtype).eps * scale)))
    return math.exp(sum(found) / max(len(found), 1))


def assert_close_to_float64(sample: Sample, backend: str, dtype: torch.dtype, draws: int, **on_it: str) -> None:
    """The rule of precision over all drawings: one tensor of 45 values, of which saturation leaves a few alive, has too
    few roundings."""
    for name, drawn in errors_of(sample, backend, dtype, draws, **on_it).items():
        pooled = (torch.cat([t.flatten() for t in column]) for column in zip(*drawn, strict=True))
        assert not (fault := excess(*pooled, dtype)), f"{name}: {fault}"


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor], relative: float = 0.0) -> None:
    """Bitwise, or to `relative` of each tensor's scale."""
    assert got.keys() == want.keys()
    for name, value in got.items():
        assert value.shape == want[name].shape, name
        if value.numel():
            error, scale = float((value - want[name]).abs().max()), float(want[name].abs().max())
            assert error <= relative * max(scale, 1.0), f"{name}: differs by {error:.3g} at a scale of {scale:.3g}"


def make_auto_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the benchmarks' grid the module of the side `auto` has one weight that is not the opponent's."""
    right = grid.module_of

    def module_of(problem, side):
        module = right(problem, side)
        if side == "auto":
            with torch.no_grad():
                module.weight_hh_l0[0, 0] += 0.1
        return module

    monkeypatch.setattr(grid, "module_of", module_of)
