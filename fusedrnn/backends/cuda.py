"""The CUDA kernels (csrc/cuda): a whole sequence in one launch, of layers whose recurrent weights one processor, a
cluster of them or a grid holds.

Those take 8 rows of the batch in one direction, one or two where float32 is not to lose bits. The
products that need no state are torch's: x W_ih before the loop unless the schedule is concat, the gradients of weights
and of x after it; those of the biases are summed in the loop.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn import _cuda_library
from fusedrnn.backends import beside, hoisted
from fusedrnn.backends.base import Backend, Outputs, Problem
from fusedrnn.call import Call

# The kernels built for the CPU take CPU tensors.
ON_HOST = not _cuda_library.reason() and bool(_cuda_library.function("on_host")())
CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")  # as enum Cell in csrc/shape.h
NUMBERS = ("bf16", "f16", "tf32", "ieee")  # as enum Numbers in csrc/cuda/kernels.cuh
NEEDS = ("processors", "turns", "packets")  # as enum Needs there
OF_DTYPE = {torch.bfloat16: "bf16", torch.float16: "f16"}  # of float32, its precision
WHOLE = 16  # bytes that are copied at once
HOPPER_SHARED = 227 << 10  # bytes of shared memory that a CTA may have
ON_HOST_PROCESSORS = 4
# Guesses: multiplications and additions a second of a large product, and seconds that a loop takes to begin.
PRODUCTS = {"bf16": 500e12, "f16": 500e12, "tf32": 250e12, "ieee": 40e12}
BEGINNING, MOST_PARTS = 8e-6, 8


class CudaBackend(Backend):
    name = "cuda"
    devices = frozenset(("cpu",) if ON_HOST else ("cuda",))
    dtypes = frozenset((*OF_DTYPE, torch.float32))
    cells = frozenset(CELLS)
    features = frozenset(("bidirectional", "tokens", "packed", "lengths", "resets"))
    schedules = frozenset(("concat", "hoisted"))

    def unavailable_reason(self) -> str | None:
        return _cuda_library.reason() or _missing(None if ON_HOST else _device()) or None

    def not_supported_reasons(self, problem: Problem) -> list[str]:
        reasons = super().not_supported_reasons(problem)
        if problem.dtype in self.dtypes and problem.H * problem.dtype.itemsize % WHOLE:
            reasons.append(f"H={problem.H} is not a multiple of {WHOLE // problem.dtype.itemsize}")
        if not reasons:
            reasons += filter(None, (_beyond_its_kernels(way, problem) for way in _passes(problem)))
        return reasons

    def waits_through_memory(self, problem: Problem) -> bool:
        """Where a grid holds the weights."""
        if self.not_supported_reasons(problem):
            return False
        return any(_needs(way, "packets", problem, _tile(problem)) > 0 for way in _passes(problem))

    def schedule(self, problem: Problem) -> str:
        """Hoisted unless the other is forced: no GPU has been asked yet."""
        return "concat" if problem.schedule == "concat" else "hoisted"

    def forward(self, call: Call) -> Outputs:
        self.refuse(call)
        y, h_n, c_n, saved, cells = outputs = self.new_outputs(call)
        absent: tuple[Tensor | None, int, int] = (None, 0, 0)
        with hoisted.on_its_device(call):
            w_ih, bias = hoisted.stacked([w.w_ih for w in call.weights]), hoisted.input_bias(call)
            gates, tokens, x_rows, I = absent, absent, absent, call.I
            tile = _tile(call)
            parts = _parts(call, tile)
            steps: Iterable[beside.Part] = [(0, call.T)]
            if _concat(call.schedule, call.tokens):
                I = _padded(call.I, call.dtype)
                x, w_ih = (_whole(F.pad(t, (0, I - call.I)) if I > call.I else t) for t in (call.x, w_ih))
                x_rows = _rows(call, x)
            elif parts > 1:
                source, steps = beside.input_gates(call, w_ih.flatten(0, 1), bias, parts)
                gates = _rows(call, source)
            else:
                source = hoisted.input_gates(call, w_ih.flatten(0, 1), bias)
                gates = (source, 0, source.stride(0)) if call.tokens else _rows(call, source)
                tokens = _rows(call, call.x) if call.tokens else absent
            operands = (
                *_shape(call, I),
                call.R,
                *(*gates, *tokens),
                _dense(hoisted.stacked([w.w_hh for w in call.weights])),
                hoisted.reset_bias(call),
                call.h0.contiguous(),
                None if call.c0 is None else call.c0.contiguous(),
                *_rows(call, y),
                *(h_n, c_n, saved, cells),
                *(*x_rows, w_ih, bias),
            )
            between = [call.h0.new_empty(call.h0.shape, dtype=torch.float32) if parts > 1 else None for _ in range(2)]
            packets = _packets("forward", call, tile)
            for first, last in steps:
                _launch("forward", call, tile, (*operands, first, last, *between, packets, 0))
        return outputs

    def backward(self, call, dy, dh_n, dc_n, y, saved, cells, wanted):
        self.refuse(call, dy, dh_n, dc_n, y, saved, cells)
        D, R, H, like = call.D, call.R, call.H, call.weights[0].w_ih
        width = H * max(1, len(call.spec.saved))
        dgates, before = like.new_empty(D, R, width), like.new_empty(D, R, H)
        dh0 = torch.empty_like(call.h0, memory_format=torch.contiguous_format)
        dc0 = torch.empty_like(dh0) if call.c0 is not None else None
        tile = _tile(call)
        tiles = -(-call.B // tile)
        sums = like.new_empty(D, tiles, width, dtype=torch.float32)
        with hoisted.on_its_device(call):
            operands = (
                *_shape(call, call.I),
                R,
                *((None, 0, 0) if dy is None else _rows(call, _whole(dy))),
                *(None if given is None else given.contiguous() for given in (dh_n, dc_n)),
                _dense(hoisted.stacked([w.w_hh for w in call.weights])),
                *_rows(call, _whole(y)),
                _dense(call.h0),
                None if call.c0 is None else _dense(call.c0.float()),
                None if call.resets is None else like.new_zeros(H, dtype=torch.float32),
                *(_dense(saved), _dense(cells)),
                *(dgates, before, dh0, dc0, sums),
                *(_packets("backward", call, tile), 0),
            )
            _launch("backward", call, tile, operands)
            inputs = dgates[..., : len(call.spec.gates) * H]

            def of_direction(d: int) -> tuple:
                return _by_gates(call, dgates[d], before[d], sums[d].sum(0))

            return hoisted.all_gradients(call, inputs, dh0, dc0, wanted, of_direction)


def _passes(problem: Problem) -> tuple[str, ...]:
    return ("forward", "backward") if problem.save == "full" else ("forward",)


def _by_gates(call: Call, dgates: Tensor, before: Tensor, sums: Tensor) -> tuple:
    """The two last arguments of gradients.of_weights. dgates [N, blocks*H] and their sums over all rows: of the GRU's
    four blocks W_hn sees the last one, W_in the one before."""
    H, sums = call.H, sums.to(call.dtype)
    if call.cell != "gru":
        return ((dgates, before),), (sums, sums.clone())
    recurrent = (dgates[:, : 2 * H], before), (dgates[:, 3 * H :], before)
    return recurrent, (sums[: 3 * H].clone(), torch.cat((sums[: 2 * H], sums[3 * H :])))


def _launch(way: str, call: Call, tile: int, operands: Sequence[Tensor | int | None]) -> None:
    """operands: the words of struct Forward or Backward (csrc/cuda), a tensor standing for its address."""
    words = array("q", [0 if w is None else w if isinstance(w, int) else w.data_ptr() for w in operands])
    stream = 0 if ON_HOST else torch.cuda.current_stream().cuda_stream
    run = _cuda_library.function(way)
    numbers = NUMBERS.index(_numbers(call))
    if error := run(numbers, *words.buffer_info(), call.D, tile, *_limits(), stream):
        raise RuntimeError(f"cuda: {error.decode()}")


def _numbers(of: Call | Problem) -> str:
    """What is multiplied."""
    return OF_DTYPE.get(of.dtype, of.precision)


def _tile(of: Call | Problem) -> int:
    """Rows of the batch that a CTA or a cluster takes: 8 by tensor cores, otherwise 1 while they all run at once."""
    if _numbers(of) != "ieee":
        return 8
    return 1 if _needs("forward", "turns", of, 1) <= 1 else 2


def _parts(call: Call, tile: int) -> int:
    """Parts in which the products of the input are made, beside the loop where it leaves half of the multiprocessors,
    and is no grid: those begin when all that they take are free at once.

    The loop waits for the first of n parts, and begins anew n - 1 times: least for n the root of what all products take
    over what a beginning does. Both are guesses until a GPU was asked.
    """
    if call.tokens or call.row_offsets is not None or call.schedule == "concat" or ON_HOST:
        return 1
    leaves_room = _needs("forward", "processors", call, tile) <= _limits().processors // 2
    if not leaves_room or _needs("forward", "packets", call, tile):
        return 1
    seconds = 2 * call.R * call.I * call.D * len(call.spec.gates) * call.H / PRODUCTS[_numbers(call)]
    return max(1, min(MOST_PARTS, call.T, round((seconds / BEGINNING) ** 0.5)))


def _needs(way: str, what: str, of: Call | Problem, tile: int) -> int:
    """The multiprocessors that a loop of such tiles takes, or would if there were as many; its turns; the bytes of its
    packets."""
    tiles = -(-of.B // tile) * of.D
    return _needed(way, what, _numbers(of), tile, of.cell, of.H, tiles, *_limits())


@functools.lru_cache(1024)
def _needed(way: str, what: str, numbers: str, tile: int, cell: str, H: int, tiles: int, *limits: int) -> int:
    found = _cuda_library.function(f"{way}_needs")
    return found(NUMBERS.index(numbers), tile, CELLS.index(cell), 0, H, tiles, *limits, NEEDS.index(what))


def _packets(way: str, call: Call, tile: int) -> Tensor | None:
    """Zeros, by way of which the CTAs of a grid exchange what they have computed."""
    size = _needs(way, "packets", call, tile)
    return torch.zeros(size, dtype=torch.uint8, device=call.h0.device) if size else None


def _concat(schedule: str, tokens: bool) -> bool:
    """Whether x is multiplied in the kernel. Of tokens, a row of the table is the product."""
    return schedule == "concat" and not tokens


def _padded(I: int, dtype: torch.dtype) -> int:
    """I, so that a row is whole 16 bytes."""
    of_whole = WHOLE // dtype.itemsize
    return -(-I // of_whole) * of_whole


def _beyond_its_kernels(way: str, problem: Problem) -> str:
    """Why no kernel is large enough, or nothing."""
    concat = way == "forward" and _concat(problem.schedule, problem.tokens)
    inputs = _padded(problem.I, problem.dtype) if concat else 0
    most = _most_hidden(way, problem.cell, _numbers(problem), _tile(problem), inputs, *_limits())
    if most >= problem.H:
        return ""
    kernels = f"{way} with I={problem.I} in the loop" if concat else way
    return f"H={problem.H}, {kernels} holds at most {most} units"


def _shape(call: Call, I: int) -> tuple:
    of_rows = (None if t is None else t.contiguous() for t in (call.row_offsets, call.lengths, call.resets))
    return (CELLS.index(call.cell), call.T, call.B, I, call.H, int(call.reverse[0]), *of_rows)


def _rows(call: Call, t: Tensor) -> tuple[Tensor, int, int]:
    return (t, *hoisted.strides(call, t))


def _whole(t: Tensor) -> Tensor:
    """Itself where its rows are dense and begin at whole 16 bytes, else a copy of which that holds."""
    if t.is_contiguous() and (t.data_ptr() | t.shape[-1] * t.element_size()) % WHOLE == 0:
        return t
    places = (t.data_ptr(), *(stride * t.element_size() for stride in t.stride()[:-1]))
    if t.stride(-1) == 1 and not any(at % WHOLE for at in places):
        return t
    return t.clone(memory_format=torch.contiguous_format)


def _dense(t: Tensor) -> Tensor:
    """The same, and its rows follow each other."""
    return _whole(t.contiguous())


def _device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_available() else -1


@functools.cache
def _missing(device: int | None) -> str:
    """Why the kernels do not run on this device, or nothing. None: the CPU."""
    if device is None:
        return ""
    if device < 0:
        return "torch sees no GPU"
    return (_cuda_library.function("missing")() or b"").decode()


class Limits(NamedTuple):
    """Bytes of shared memory that a CTA may have, CTAs that a cluster may, and multiprocessors."""

    shared: int
    ctas: int
    processors: int


def _limits() -> Limits:
    """Of the device in use."""
    return _limits_of(None if ON_HOST else torch.cuda.current_device())


@functools.cache
def _limits_of(device: int | None) -> Limits:
    ctas = _cuda_library.function("ctas")()
    if device is None:
        return Limits(HOPPER_SHARED, ctas, ON_HOST_PROCESSORS)
    properties: Any = torch.cuda.get_device_properties(device)
    return Limits(properties.shared_memory_per_block_optin, ctas, properties.multi_processor_count)


@functools.cache
def _most_hidden(way: str, cell: str, numbers: str, tile: int, inputs: int, *limits: int) -> int:
    """The largest H that a kernel serves; inputs: those of x that are multiplied in it."""
    return _cuda_library.function(f"{way}_hidden")(NUMBERS.index(numbers), tile, CELLS.index(cell), inputs, *limits)
