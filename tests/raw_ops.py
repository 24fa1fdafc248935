"""Raw calls with operands that do not fit, made in a process that may die of them.

python raw_ops.py table         every case of `cases()`, a JSON line each: the case, and what it raised, or ""
python raw_ops.py fuzz COUNT    calls with operands changed at random, a line before each and one for how it ended

Operands lie against a page that can be neither read nor written, so that one step outside them is a segmentation fault.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from problems import Sample, forward, inputs_of
from problems import cases as cases_of_problems
from torch import Tensor

from fusedrnn import ops
from fusedrnn.backends import cpu
from fusedrnn.backends.base import Problem
from fusedrnn.backends.cpu import INSTRUCTION_SETS, instruction_sets
from fusedrnn.cells import CELLS, SCHEDULES
from fusedrnn.dispatch import REGISTRY

_libc = ctypes.CDLL(None)
KINDS = ("private-forward", "private-backward", "private-layers", "private-layer", "public-forward", "public-backward")
KINDS += ("torch-forward", "torch-backward")  # the public ops on the backend `torch`
NUMBERS = {"rnn_tanh": 0, "rnn_relu": 1, "gru": 2, "lstm": 3}  # of the cells, in the private ops
SIZES = dict(T=5, B=3, I=4, H=6)  # all different, so that no operand fits where another belongs
SAMPLES = [
    Sample("rnn_tanh", **SIZES, lengths="given"),
    Sample("rnn_tanh", **SIZES, tokens=True, lengths="packed"),
    Sample("gru", **SIZES),
    Sample("gru", **SIZES, tokens=True),
    Sample("lstm", **SIZES, lengths="packed"),
    Sample("lstm", **SIZES, tokens=True, lengths="given"),
    Sample("lstm", **SIZES),
    Sample("lstm", **SIZES, D=2, bias=False),
    Sample("gru", **SIZES, tokens=True, save="lean"),
    Sample("lstm", **SIZES, lengths="packed", D=2, save="lean"),
    Sample("gru", **SIZES, lengths="given", resets=True),
    Sample("lstm", **SIZES, lengths="packed", D=2, resets=True, save="lean"),
]
FITTING = [case.values[0] for case in cases_of_problems(("cpu",), torch.float64)]
FITTING = [sample for sample in FITTING if not sample.strided]


@functools.cache
def operands_of(kind: str, sample: Sample, dtype: torch.dtype) -> dict[str, Tensor | int | str]:
    """The arguments of a call that fits, in order."""
    call, backend = sample.call(dtype), "torch" if kind.startswith("torch") else "cpu"
    outputs = forward(call, backend) if kind.endswith("backward") else REGISTRY[backend].new_outputs(call)
    y, h_n, c_n, saved, cells = outputs
    cotangents = dict(zip(("dy", "dh_n", "dc_n"), sample.cotangents(outputs[:3]), strict=True))
    tensors = dict(zip(ops.TENSORS, ops.flat(call), strict=True))
    if kind.startswith(("public", "torch")):
        options = dict(cell=call.cell, direction=call.direction, batch_first=False)
        options |= dict(schedule="auto", save=call.save, precision="ieee", backend=backend)
        if kind.endswith("forward"):
            return tensors | options
        wanted = sum(1 << k for k, t in enumerate(inputs_of(call)) if t is not None and t.is_floating_point())
        return cotangents | tensors | dict(y=y, saved=saved, cells=cells) | options | dict(wanted=wanted)
    if kind in ("private-layers", "private-layer"):
        states = dict(h0=call.h0, c0=call.c0 if call.c0 is not None else call.h0.new_empty(0))
        weights = {f"{name}{d or ''}": t for d, one in enumerate(call.weights) for name, t in one._asdict().items()}
        weights = {name: t for name, t in weights.items() if t is not None}
        how = cpu.options(call.cell, "auto", call.weights[0].b_ih is not None, False, call.D == 2)
        if kind == "private-layers":
            return dict(x=call.x) | states | dict(how=how) | weights
        one_step = {name: t if t.shape == ops.ABSENT else t[0] for name, t in states.items()}
        return dict(x=call.x[0]) | one_step | dict(how=how & ~cpu.BIDIRECTIONAL) | weights
    tensors = {name: t for name, t in tensors.items() if not name.startswith("w_hr")}
    last = dict(cell=NUMBERS[call.cell], direction=call.direction)
    y = torch.cat((y, y), -1)[..., -call.D * call.P :]  # rows with gaps between them
    if kind == "private-forward":
        hoisted = SCHEDULES.index("hoisted")
        return tensors | last | dict(schedule=hoisted, y=y, h_n=h_n, c_n=c_n, saved=saved, cells=cells)
    grads = {
        f"d{name}": torch.empty_like(t) if t.is_floating_point() else h_n.new_empty(0)
        for name, t in tensors.items()
        if name in ops.DIFFERENTIABLE
    }
    kept = dict(y=y, saved=saved, cells=cells)
    return cotangents | tensors | kept | last | dict(lean=call.save == "lean") | grads


def samples_of(kind: str, samples: list[Sample]) -> list[Sample]:
    if kind.startswith("torch"):
        return [s for s in samples if not REGISTRY["torch"].not_supported_reasons(Problem.of(s.call(torch.float32)))]
    if kind not in ("private-layers", "private-layer"):
        return samples
    return [s for s in samples if not (s.lengths or s.resets or s.reverse) and (s.D == 1 or kind == "private-layers")]


def dtypes_of(kind: str) -> tuple[torch.dtype, ...]:
    return (torch.float32,) if kind.startswith("torch") else (torch.float32, torch.float64)


def run(kind: str, sample: Sample, operands: dict, at_end: bool = True) -> None:
    op, library = CELLS[sample.cell].op, torch.ops.fusedrnn_cpu
    values = [guarded(value, at_end) if isinstance(value, Tensor) else value for value in operands.values()]
    if kind in ("private-layers", "private-layer"):
        x, h0, c0, how, *weights = values
        c0 = None if isinstance(c0, Tensor) and c0.shape == ops.ABSENT else c0
        if kind == "private-layers":
            library.layers(x, h0, c0, how, weights)
        else:
            library.layer(x, h0, c0, how, *weights, *(None,) * (4 - len(weights)))
        return
    others = library.forward.out, library.backward.out, ops.FORWARD[op], ops.BACKWARD[op]
    dict(zip((*KINDS[:2], *KINDS[4:]), (*others, *others[2:]), strict=True))[kind](*values)


def guarded(tensor: Tensor, at_end: bool = True) -> Tensor:
    """A copy, strides and all, that ends (or begins) where a page without access begins (or ends)."""
    if tensor.numel() == 0 or tensor.device.type != "cpu":
        return tensor
    page, extent = mmap.PAGESIZE, 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    size = extent * tensor.itemsize
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = pages * page - size if at_end else page
    if _libc.mprotect(ctypes.c_void_p(start + (pages * page if at_end else 0)), page, 0):
        raise OSError("mprotect failed")
    values = torch.frombuffer(memory, dtype=tensor.dtype, count=extent, offset=offset)
    values.copy_(tensor.as_strided((extent,), (1,)))
    return values.as_strided(tensor.shape, tensor.stride())


# One operand that does not fit.


def resized(tensor: Tensor, dim: int, by: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] += by
    return tensor.new_zeros(shape)


MISFITS: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda t: resized(t, -1, 1),
    "shorter": lambda t: resized(t, -1, -1),
    "taller": lambda t: resized(t, 0, 1),
    "lower": lambda t: resized(t, 0, -1),
    "flat": lambda t: t.flatten() if t.ndim > 1 else t[:, None],
    "deeper": lambda t: t[None],
    "scalar": lambda t: t.new_zeros(()),
    "single": lambda t: t.to(torch.float32 if t.dtype == torch.float64 else torch.int32),
    "half": lambda t: t.to(torch.float16),
    "gaps": lambda t: torch.stack((t, t), -1)[..., 0],
    "meta": lambda t: t.to("meta"),
    "absent": lambda t: t.new_empty(0),
    "no-rows": lambda t: t.new_empty(0, *t.shape[1:]),
    "no-columns": lambda t: t.new_empty(*t.shape[:-1], 0),
    "no-batch": lambda t: t.new_empty(t.shape[0], 0, *t.shape[2:]),
}
OF_INTEGERS = {
    "minus-1": lambda t: torch.full_like(t, -1),
    "size": lambda t: torch.full_like(t, SIZES["T"] + 1),  # past the steps and the vocabulary
    "huge": lambda t: torch.full_like(t, 2**62),
    "lowest": lambda t: torch.full_like(t, -(2**63)),
    "flipped": lambda t: t.flip(0),
}
OF_ABSENT = {"given": lambda t: t.new_zeros(1)}


class Case(NamedTuple):
    kind: str
    sample: Sample
    operand: str = ""
    misfit: str = ""  # none: the call fits
    instruction_set: str = ""
    at_end: bool = True

    def __str__(self) -> str:
        side = "end" if self.at_end else "begin"
        return " ".join((self.kind, str(self.sample), self.operand, self.misfit or self.instruction_set, side))

    def raised(self) -> str:
        """What the call raised, or ""."""
        if self.instruction_set:
            torch.ops.fusedrnn_cpu.set_isa(INSTRUCTION_SETS.index(self.instruction_set))
        operands = operands_of(self.kind, self.sample, dtypes_of(self.kind)[-1])
        if self.misfit:
            misfit = (MISFITS | OF_INTEGERS | OF_ABSENT)[self.misfit]
            operands = operands | {self.operand: misfit(operands[self.operand])}
        try:
            run(self.kind, self.sample, operands, self.at_end)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return ""


def cases() -> Iterator[Case]:
    """Calls that fit, on every instruction set; then every operand of every call with every misfit."""
    for kind, name, at_end in itertools.product(KINDS[:4], instruction_sets(), (True, False)):
        for sample in samples_of(kind, FITTING):
            yield Case(kind, sample, instruction_set=name, at_end=at_end)
    for kind, sample in itertools.product(KINDS, SAMPLES):
        if sample not in samples_of(kind, SAMPLES):
            continue
        for name, value in operands_of(kind, sample, dtypes_of(kind)[-1]).items():
            if not isinstance(value, Tensor):
                continue
            misfits = (MISFITS | (OF_INTEGERS if value.dtype == torch.int64 else {})) if value.numel() else OF_ABSENT
            yield from (Case(kind, sample, name, misfit) for misfit in misfits)


def table() -> None:
    """A forked child goes from case to case; where one kills it, the next child goes on behind it."""
    torch.set_num_threads(1)  # a process with a pool of threads cannot be forked
    every = list(cases())
    at = ctypes.c_int64.from_buffer(mmap.mmap(-1, 8))  # shared with the child
    while at.value < len(every):
        child = os.fork()
        if not child:
            while at.value < len(every):
                case = every[at.value]
                print(json.dumps((case.kind, str(case), case.raised())), flush=True)
                at.value += 1
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            case = every[at.value]
            print(json.dumps((case.kind, str(case), f"killed, status {status}")), flush=True)
            at.value += 1


# Calls with one or two operands changed at random.

DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.bfloat16, torch.complex64)
TEXTS = ("", "rnn_tanh", "lstm", "gru_reset_before", "none", "lean", "concat", "reference", "cuda")
INTEGERS = (-1, 0, 1, 5, 6, 2**31, 2**62, -(2**63))
sizes = st.integers(0, 8)


def _of_shape(draw, tensor: Tensor) -> Tensor:
    return tensor.new_ones(draw(st.lists(sizes, max_size=4)))


def _resized(draw, tensor: Tensor) -> Tensor:
    shape = list(tensor.shape)
    shape[draw(st.integers(0, len(shape) - 1))] = draw(sizes)
    return tensor.new_ones(shape)


def _strided(draw, tensor: Tensor) -> Tensor:
    strides = draw(st.lists(sizes, min_size=tensor.ndim, max_size=tensor.ndim))
    extent = 1 + sum(max(0, n - 1) * stride for n, stride in zip(tensor.shape, strides, strict=True))
    return tensor.new_ones(extent).as_strided(tensor.shape, strides)


def _permuted(draw, tensor: Tensor) -> Tensor:
    return tensor.permute(draw(st.permutations(range(tensor.ndim))))


def _with_a_value(draw, tensor: Tensor) -> Tensor:
    changed = tensor.clone(memory_format=torch.contiguous_format)
    value = draw(st.sampled_from(INTEGERS)) if tensor.dtype == torch.int64 else draw(st.floats(width=16))
    changed.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
    return changed


CHANGES = {
    "shape": _of_shape,
    "size": _resized,
    "strides": _strided,
    "order": _permuted,
    "value": _with_a_value,
    "dtype": lambda draw, t: t.to(draw(st.sampled_from(DTYPES))),
    "part": lambda draw, t: t[draw(st.integers(0, len(t) - 1))],
    "meta": lambda draw, t: t.to("meta"),
    "absent": lambda draw, t: t.new_empty(0),
}


def changed(draw, value, others: list[Tensor]):
    if isinstance(value, str):
        return draw(st.sampled_from(TEXTS))
    if not isinstance(value, Tensor):
        return draw(st.integers(-2, 5) | st.integers(0, 127))  # as `how` takes them
    if not value.numel() or not value.ndim or draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(others))
    return CHANGES[draw(st.sampled_from(sorted(CHANGES)))](draw, value)


def described(value) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    values = f" {value.tolist()}" if value.dtype == torch.int64 and value.device.type == "cpu" else ""
    return f"{value.dtype} {list(value.shape)} by {list(value.stride())} on {value.device}{values}"


def fuzz(count: int) -> None:
    @settings(max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate])
    @given(st.data())
    def one(data) -> None:
        draw = data.draw
        kind = draw(st.sampled_from(KINDS))
        dtype = draw(st.sampled_from(dtypes_of(kind)))
        sample = draw(st.sampled_from(samples_of(kind, SAMPLES)))
        instruction_set, at_end = draw(st.sampled_from(instruction_sets())), draw(st.booleans())
        operands = dict(operands_of(kind, sample, dtype))
        tensors = [t for t in operands.values() if isinstance(t, Tensor)]
        names = draw(st.lists(st.sampled_from(sorted(operands)), min_size=1, max_size=2, unique=True))
        for name in names:
            operands[name] = changed(draw, operands[name], tensors)
        now = ", ".join(f"{name} {described(operands[name])}" for name in names)
        print(f"{Case(kind, sample, '', '', instruction_set, at_end)} {dtype}: {now}", flush=True)
        torch.ops.fusedrnn_cpu.set_isa(INSTRUCTION_SETS.index(instruction_set))
        try:
            run(kind, sample, operands, at_end)
        except Exception as error:
            print(f"raised {type(error).__name__}", flush=True)
        else:
            print("returned", flush=True)

    one()


if __name__ == "__main__":
    table() if sys.argv[1] == "table" else fuzz(int(sys.argv[2]))
