"""Random layers on the `cuda` backend: no draw of sizes, rows or options may hang it or make a value wrong.

python -m benchmarks.gpu.soak [FIRST [COUNT]] runs the layers of these numbers on the GPU that is here, or on the CPU
where the kernels are those built for it.

Each is run twice, and by the formulas in float64 and in its own dtype: it has to repeat bit for bit, and to be about
as near to float64 as the formulas are in its dtype. A stale, missing or misplaced value is far beyond that; how near
exactly is for the tests to look at.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fusedrnn
from benchmarks.gpu.layers import lost
from fusedrnn.backends import cuda
from fusedrnn.backends.base import Problem
from fusedrnn.bench import grid
from fusedrnn.bench.measure import first_line
from fusedrnn.bench.precision import norm
from fusedrnn.dispatch import REGISTRY

WHOLE = 10_000  # layers of a soak
LARGEST = 2048  # units
MODULES = {"rnn_tanh": fusedrnn.RNN, "rnn_relu": fusedrnn.RNN, "gru": fusedrnn.GRU, "lstm": fusedrnn.LSTM}
PRECISIONS = {"ieee": 2.0**-23, "tf32": 2.0**-11, "bf16": 2.0**-8, "fp16": 2.0**-11}  # an eps of products
FACTOR, LEAST = 4, 8  # times the error of the formulas; times an eps of a tensor's scale, where they have less


@dataclass(frozen=True)
class Layer:
    """A layer and its input. rows: "dense", "packed", "lengths" or "resets"."""

    number: int
    cell: str  # of rnn_relu no gradients: they are those of units that were positive, which rounding may change
    precision: str
    T: int
    B: int
    I: int
    H: int
    directions: int
    rows: str
    tokens: bool
    training: bool
    batch_first: bool
    bias: bool
    schedule: str

    def __str__(self) -> str:
        flags = [name for name in ("tokens", "training", "batch_first") if getattr(self, name)]
        flags += ["both ways"] * (self.directions - 1) + ["no bias"] * (not self.bias)
        sizes = f"T={self.T} B={self.B} I={self.I} H={self.H}"
        return ", ".join((f"{self.number}: {self.cell} {self.precision} {sizes}", self.rows, self.schedule, *flags))

    def problem(self, device: str) -> Problem:
        sizes = {"T": self.T, "B": self.B, "I": self.I, "H": self.H, "D": self.directions}
        options = {"tokens": self.tokens, "schedule": self.schedule, "save": "full" if self.training else "none"}
        return Problem(self.cell, device, grid.PRECISIONS[self.precision], **sizes, **options, precision=self.precision)


def drawn(number: int, device: str, largest: int = LARGEST) -> Layer:
    """The layer of this number: the first drawn that the backend serves. Small sizes and those near powers of two are
    drawn as often as all others."""
    draw = random.Random(number)
    while True:
        cell, precision = draw.choice(list(MODULES)), draw.choice(list(PRECISIONS))
        rows = draw.choice(("dense", "dense", "packed", "lengths", "resets"))
        whole = 4 if grid.PRECISIONS[precision] == torch.float32 else 8
        near = 2 ** draw.randrange(4, largest.bit_length()) + draw.randrange(-16, 17)
        layer = Layer(
            number,
            cell,
            precision,
            T=draw.choice((1, 2, 3, draw.randrange(1, 40))),
            B=draw.choice((1, 2, draw.randrange(1, 20), draw.randrange(1, 300))),
            I=draw.choice((draw.randrange(1, 33), draw.randrange(1, 300))),
            H=max(1, draw.choice((near, draw.randrange(largest) + 1)) // whole) * whole,
            directions=draw.choice((1, 1, 2)),
            rows=rows,
            tokens=draw.random() < 0.2,
            training=cell != "rnn_relu" and draw.random() < 0.8,
            batch_first=rows != "packed" and draw.random() < 0.3,
            bias=draw.random() < 0.8,
            schedule=draw.choice(("hoisted", "hoisted", "concat")),
        )
        if not REGISTRY["cuda"].not_supported_reasons(layer.problem(device)):
            return layer


def wrong(layer: Layer, device: str) -> str:
    """What is wrong with it, or nothing."""
    torch.manual_seed(layer.number)
    options = {"nonlinearity": layer.cell[4:]} if layer.cell.startswith("rnn") else {}
    options |= {"bias": layer.bias, "bidirectional": layer.directions == 2, "batch_first": layer.batch_first}
    dtype, training = grid.PRECISIONS[layer.precision], layer.training
    ours = MODULES[layer.cell](layer.I, layer.H, **options, backend="cuda", device=device, dtype=dtype)
    formulas = MODULES[layer.cell](layer.I, layer.H, **options, backend="reference", device=device, dtype=dtype)
    formulas.load_state_dict(ours.state_dict())
    ours.schedule = layer.schedule
    given = _given(layer, device)
    with grid.float32_precision(layer.precision):
        found, again, like = (_run(module, given, training) for module in (ours, ours, formulas))
    wide = {name: t if name == "packed" else _wide(t) for name, t in given.items()}
    exact = _run(formulas.double(), wide, training)
    for name, want in exact.items():
        if not torch.equal(found[name], again[name]):
            return f"{name} does not repeat"
        error, of_formulas = (norm(of[name].double() - want, "max") for of in (found, like))
        allowed = max(FACTOR * of_formulas, LEAST * PRECISIONS[layer.precision] * norm(want, "max"))
        if not error <= allowed:
            return f"{name} is {error:.3g} off, {allowed:.3g} allowed"
    return ""


def _given(layer: Layer, device: str) -> dict[str, Any]:
    """The arguments of the module; packed: the lengths by which the input is to be packed."""
    T, B, dtype = layer.T, layer.B, grid.PRECISIONS[layer.precision]
    sizes = (B, T) if layer.batch_first else (T, B)
    states = tuple(torch.randn(layer.directions, B, layer.H, device=device, dtype=dtype) for _ in range(2))
    given: dict[str, Any] = {
        "input": torch.randint(layer.I, sizes, device=device)
        if layer.tokens
        else torch.randn(*sizes, layer.I, device=device, dtype=dtype),
        "hx": states if layer.cell == "lstm" else states[0],
    }
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    if layer.rows == "packed":
        given["packed"] = lengths.sort(descending=True).values
    elif layer.rows == "lengths":
        given["lengths"] = lengths.to(device)
    elif layer.rows == "resets":
        given["resets"] = torch.rand(sizes, device=device) < 0.3
    return given


def _wide(given: Any) -> Any:
    """In float64, what is not whole numbers."""
    if isinstance(given, tuple):
        return tuple(map(_wide, given))
    return given.double() if given.is_floating_point() else given


def _run(module: torch.nn.RNNBase, given: dict[str, Any], training: bool) -> dict[str, Tensor]:
    """Outputs, and gradients where it is trained, by name."""
    input, hx, *states = (given["input"], given["hx"], *(given["hx"] if isinstance(given["hx"], tuple) else ()))
    leaves = {"x": input} | dict(zip(("h0", "c0"), states or (hx,), strict=False))
    leaves = {name: t.detach().requires_grad_(training) for name, t in leaves.items() if t.is_floating_point()}
    input, h0 = leaves.get("x", input), leaves["h0"]
    hx = (h0, leaves["c0"]) if states else h0
    if "packed" in given:
        input = pack_padded_sequence(input, given["packed"])
    y, after = module(input, hx, **{name: given[name] for name in ("lengths", "resets") if name in given})
    y = y.data if isinstance(y, PackedSequence) else y
    found = {"y": y} | dict(zip(("h_n", "c_n"), after if isinstance(after, tuple) else (after,), strict=False))
    if training:
        cotangents = torch.Generator(y.device).manual_seed(1)
        loss = sum((out * torch.randn(out.shape, generator=cotangents, device=y.device).to(y)).sum()
                   for out in found.values())  # fmt: skip
        leaves |= dict(module.named_parameters())
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        found |= {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: t.detach() for name, t in found.items()}


def soak(numbers: Iterable[int], device: str = "cuda", largest: int = LARGEST) -> Iterator[tuple[Layer, str]]:
    """Each layer of these numbers, and what is wrong with it; no more after one that cost the process its GPU."""
    for number in numbers:
        layer = drawn(number, device, largest)
        try:
            said = wrong(layer, device)
        except Exception as error:
            said = first_line(error)
        yield layer, said
        if said and device == "cuda" and lost():
            return


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("first", type=int, nargs="?", default=0, help="number of the first layer (default 0)")
    parser.add_argument("count", type=int, nargs="?", default=WHOLE, help=f"how many (default {WHOLE})")
    given = parser.parse_args()
    if missing := REGISTRY["cuda"].unavailable_reason():
        parser.error(missing)
    run = faults = 0
    for layer, said in soak(range(given.first, given.first + given.count), "cpu" if cuda.ON_HOST else "cuda"):
        run += 1
        if said:
            faults += 1
            print(f"{layer}: {said}", flush=True)
    print(f"{run} layers, {faults} wrong")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
