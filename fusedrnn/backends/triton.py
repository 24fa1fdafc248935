"""The Triton kernels (fusedrnn/kernels): the time loop of a layer in one launch, forward and backward.

The products that need no state are torch's: the gradients of the weights after the loop and, unless the schedule is
concat, x W_ih before it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedrnn import gradients
from fusedrnn.backends.base import Backend, BackendError, Outputs, Problem
from fusedrnn.call import Call

# Triton's interpreter, which Triton chooses when it is imported, runs the kernels on CPU tensors. It multiplies float32
# alone: its bf16 products are wrong, and it knows no TF32.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Largest H whose recurrent weights stay on chip, in 16 bits, TF32 and IEEE float32, without spilling a register
# (benchmarks/aot.py): half of it where a multiprocessor has less shared memory than an H100's.
MOST_UNITS = {
    "rnn_tanh": (256, 128, 64),
    "rnn_relu": (256, 128, 64),
    "gru": (128, 64, 64),
    "gru_reset_before": (128, 64, 64),
    "lstm": (128, 64, 64),
}
SHARED_OF_H100 = 227 << 10
OLDEST_GPU = (8, 0)
MOST_INPUTS = 32  # whose weights stay on chip beside the recurrent ones (schedule concat)
BLOCK_B = 16  # batch rows a program; the least a product of Triton takes
# With 4 warps the largest kernels spill; left alone, ptxas spills to fit a second program on a multiprocessor.
LAUNCH = {"num_warps": 8, "maxnreg": 255}


def limit_of(cell: str, dtype: torch.dtype, precision: str, shared: int) -> int:
    """The largest H on a processor with so many bytes of shared memory a program."""
    column = 0 if dtype != torch.float32 else 1 if precision == "tf32" else 2
    return MOST_UNITS[cell][column] // (1 if shared >= SHARED_OF_H100 else 2)


def block_of(H: int) -> int:
    """Units a tile is wide: a power of two, as Triton wants it."""
    return max(16, 1 << (H - 1).bit_length())


class TritonBackend(Backend):
    name = "triton"
    devices = frozenset(("cpu",) if INTERPRETED else ("cuda",))
    dtypes = frozenset((torch.float32,) if INTERPRETED else (torch.float32, torch.bfloat16, torch.float16))
    features = frozenset(("bidirectional", "tokens", "packed", "lengths", "resets"))
    schedules = frozenset(("concat", "hoisted"))

    def unavailable_reason(self) -> str | None:
        return None if _is_installed() else "Triton is not installed: pip install triton"

    def not_supported_reasons(self, problem: Problem) -> list[str]:
        reasons = super().not_supported_reasons(problem)
        if problem.cell in MOST_UNITS:
            most = limit_of(problem.cell, problem.dtype, problem.precision, _shared_memory(problem.device))
            if most < problem.H:
                reasons.append(f"H={problem.H}, at most {most} for {problem.cell} in this dtype on this device")
        if problem.schedule == "concat" and problem.I > MOST_INPUTS and not problem.tokens:
            reasons.append(f"schedule concat of I={problem.I}, at most {MOST_INPUTS}")
        if problem.device == "cuda" and torch.cuda.is_available():
            capability = torch.cuda.get_device_capability()
            if capability < OLDEST_GPU:
                reasons.append("compute capability {}.{}, needs {}.{}".format(*capability, *OLDEST_GPU))
        return reasons

    def schedule(self, problem: Problem) -> str:
        """Hoisted unless the other is forced: no GPU has been asked yet."""
        return "concat" if problem.schedule == "concat" else "hoisted"

    def forward(self, call: Call) -> Outputs:
        from fusedrnn.kernels.forward import forward

        self._refuse_what_the_kernels_lack(call)
        y, h_n, c_n, saved, cells = outputs = self.new_outputs(call)
        with _launch(call):
            concat = call.schedule == "concat" and not call.tokens  # a token's row of the table is its product
            bias = _input_bias(call)
            w_ih = _stacked([w.w_ih for w in call.weights])
            if concat:
                source = call.x if call.x.stride(-1) == 1 else call.x.contiguous()
            else:
                source = _input_gates(call, w_ih.flatten(0, 1), bias)
            w_hh = _stacked([w.w_hh for w in call.weights])
            biases = [w.b_hh[2 * call.H :] for w in call.weights if call.cell == "gru" and w.b_hh is not None]
            strides = (0, source.stride(0)) if call.tokens else _strides(call, source)
            h0 = call.h0.contiguous()
            forward[_grid(call)](
                source, call.x, w_ih, _or(bias, w_ih), w_hh, _stacked(biases) if biases else w_hh, h0,
                _or(call.c0, h0).contiguous(),
                y, h_n, c_n, saved, cells, *_places(call),
                call.T, call.B, call.R, call.I, call.H, *strides, *_strides(call, call.x), *_strides(call, y),
                *_reset_strides(call),
                **_constants(call), CONCAT=concat, TOKENS=call.tokens, SAVE=call.save == "full", BIAS=bias is not None,
                BLOCK_I=block_of(call.I) if concat else 16,
            )  # fmt: skip
        return outputs

    def backward(self, call, dy, dh_n, dc_n, y, saved, cells, wanted):
        from fusedrnn.kernels.backward import backward

        self._refuse_what_the_kernels_lack(call)
        G, D, R, H, like = len(call.spec.gates), call.D, call.R, call.H, call.weights[0].w_ih
        dgates, before = like.new_empty(D, R, G * H), like.new_empty(D, R, H)
        dgates_h = torch.empty_like(dgates) if call.cell == "gru" else dgates
        reset_h = torch.empty_like(before) if call.cell == "gru_reset_before" else before
        y = y if y.stride(-1) == 1 else y.contiguous()
        w_hh, h0 = _stacked([w.w_hh for w in call.weights]), call.h0.contiguous()
        dh0 = torch.empty_like(h0)
        dc0 = torch.empty_like(h0) if call.c0 is not None else None
        with _launch(call):
            backward[_grid(call)](
                _or(dy, y), _or(dh_n, h0).contiguous(), _or(dc_n, h0).contiguous(), w_hh, h0,
                _or(call.c0, h0).contiguous(), y, saved.contiguous(), cells.contiguous(), *_places(call),
                dgates, dgates_h, before, reset_h, dh0, _or(dc0, h0),
                call.T, call.B, R, H, *_strides(call, y), *_strides(call, _or(dy, y)), _or(dy, y).stride(-1),
                *_reset_strides(call),
                **_constants(call), DY=dy is not None, DH_N=dh_n is not None, DC_N=dc_n is not None,
            )  # fmt: skip
            grads: list[Tensor | None] = [_input_gradient(call, dgates) if wanted & 1 else None, dh0, dc0]
            x = _rows(call)
            for d in range(D):
                if not wanted >> 3 + 5 * d & 31:
                    grads += [None] * 5
                    continue
                of_reset = reset_h[d] if call.cell == "gru_reset_before" else None
                grads += (*gradients.of_weights(call, x, dgates[d], dgates_h[d], before[d], of_reset), None)
        return tuple(g if wanted >> k & 1 else None for k, g in enumerate(grads))

    def _refuse_what_the_kernels_lack(self, call: Call) -> None:
        """`select` never sends these here, a call of the raw op may."""
        if reasons := self.not_supported_reasons(Problem.of(call)):
            raise BackendError(f"triton: {'; '.join(reasons)}")


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _shared_memory(device: str) -> int:
    """Bytes a program may have; of the interpreter, and of a GPU that is not here, as many as an H100."""
    if device != "cuda" or not torch.cuda.is_available():
        return SHARED_OF_H100
    properties: Any = torch.cuda.get_device_properties()
    return properties.shared_memory_per_block_optin


def _grid(call: Call) -> tuple[int, int]:
    return max(1, -(-call.B // BLOCK_B)), call.D


def _constants(call: Call) -> dict:
    """What kernels are compiled for."""
    return dict(
        CELL=call.cell,
        DIRECTION=call.direction,
        PACKED=call.row_offsets is not None,
        LENGTHS=call.lengths is not None,
        RESETS=call.resets is not None,
        PRECISION=call.precision,
        BLOCK_B=BLOCK_B,
        BLOCK_H=block_of(call.H),
        **LAUNCH,
    )


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """What is absent is a pointer nobody follows."""
    return other if tensor is None else tensor


def _places(call: Call) -> tuple[Tensor, ...]:
    given = (call.row_offsets, call.lengths)
    return (*(call.x if t is None else t.contiguous() for t in given), _or(call.resets, call.x))


def _strides(call: Call, rows: Tensor) -> tuple[int, int]:
    """Elements from step to step and from row to row."""
    return (0, rows.stride(0)) if call.row_offsets is not None else (rows.stride(0), rows.stride(1))


def _reset_strides(call: Call) -> tuple[int, int]:
    return (0, 0) if call.resets is None else (call.resets.stride(0), call.resets.stride(1))


def _stacked(of_directions: list[Tensor]) -> Tensor:
    """[D, ...]; without a copy of one direction alone."""
    return of_directions[0].contiguous().unsqueeze(0) if len(of_directions) == 1 else torch.stack(of_directions)


def _input_gates(call: Call, w_ih: Tensor, bias: Tensor | None) -> Tensor:
    """x W_ih + b, in the order of x's memory [T, B, D*G*H] (packed [R, D*G*H]), or for tokens the table [I, D*G*H].
    w_ih [D*G*H, I], bias [D*G*H]."""
    if call.tokens:
        x = _rows(call)
        torch._assert_async(((x >= 0) & (x < call.I)).all(), "token outside the vocabulary")  # on a GPU without waiting
        table = w_ih.t().contiguous()
        return table if bias is None else table.add_(bias)
    if call.row_offsets is None and call.x.stride(0) < call.x.stride(1):
        return F.linear(call.x.transpose(0, 1), w_ih, bias).transpose(0, 1)
    return F.linear(call.x, w_ih, bias)


def _input_bias(call: Call) -> Tensor | None:
    """Of all directions [D*G*H], both biases where they simply add; of the GRU r multiplies b_hn, which stays apart."""
    added = 2 * call.H if call.cell == "gru" else None
    sums = []
    for w in call.weights:
        if w.b_ih is None or w.b_hh is None:
            return None
        both = w.b_ih.clone()
        both[:added] += w.b_hh[:added]
        sums.append(both)
    return torch.cat(sums)


def _rows(call: Call) -> Tensor:
    """x as flat rows [R, I], tokens [R], zero where they are not active."""
    if call.row_offsets is not None:
        return call.x
    x = call.x
    if call.lengths is not None:
        active = torch.arange(call.T, device=x.device)[:, None] < call.lengths
        x = torch.where(active if call.tokens else active[..., None], x, torch.zeros_like(x))
    return x.flatten(0, 1)


def _input_gradient(call: Call, dgates: Tensor) -> Tensor:
    """dgates W_ih, both directions in one product."""
    both = dgates[0] if call.D == 1 else torch.cat(tuple(dgates), -1)
    dx = (both @ torch.cat([w.w_ih for w in call.weights])).view(call.x.shape)
    return call.new_rows(call.I).copy_(dx) if call.batch_first else dx


@contextlib.contextmanager
def _launch(call: Call) -> Iterator[None]:
    """On the device of the operands, with torch's own products in the precision of the call."""
    from triton.runtime.errors import OutOfResources

    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    with torch.cuda.device(call.x.device) if call.x.is_cuda else contextlib.nullcontext():
        settings.fp32_precision = call.precision
        try:
            yield
        except OutOfResources as error:
            raise BackendError(f"triton: {error}") from error
        finally:
            settings.fp32_precision = before
