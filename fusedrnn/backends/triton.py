"""The Triton kernels (fusedrnn/kernels): the time loop of a layer, forward and backward, in one launch or one a step.

The products that need no state are torch's: the gradients of the weights after the loop and, unless the schedule is
concat, x W_ih before it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from fusedrnn import gradients
from fusedrnn.backends import hoisted
from fusedrnn.backends.base import Backend, BackendError, Outputs, Problem
from fusedrnn.backends.configurations import (
    H100,
    Configuration,
    Gpu,
    block_of,
    fastest_first,
    preferred,
    tuning_is_on,
    tuning_key,
)
from fusedrnn.backends.launches import launch
from fusedrnn.call import Call

# Triton's interpreter, which Triton chooses when it is imported, runs the kernels on CPU tensors. It multiplies float32
# alone: its bf16 products are wrong, and it knows no TF32.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

OLDEST_GPU = (8, 0)


class TritonBackend(Backend):
    name = "triton"
    devices = frozenset(("cpu",) if INTERPRETED else ("cuda",))
    dtypes = frozenset((torch.float32,) if INTERPRETED else (torch.float32, torch.bfloat16, torch.float16))
    features = frozenset(("bidirectional", "tokens", "packed", "lengths", "resets"))
    schedules = frozenset(("concat", "hoisted"))

    def __init__(self) -> None:
        self._too_large: dict[tuple, str] = {}  # configurations that did not fit, and why

    def unavailable_reason(self) -> str | None:
        return None if _is_installed() else "Triton is not installed: pip install triton"

    def not_supported_reasons(self, problem: Problem) -> list[str]:
        reasons = super().not_supported_reasons(problem)
        capability = _gpu(problem.device).capability
        if capability < OLDEST_GPU:
            reasons.append("compute capability {}.{}, needs {}.{}".format(*capability, *OLDEST_GPU))
        return reasons

    def schedule(self, problem: Problem) -> str:
        """Hoisted unless the other is forced: no GPU has been asked yet."""
        return "concat" if problem.schedule == "concat" else "hoisted"

    def detail(self, problem: Problem) -> str:
        passes = ("forward", "backward") if problem.save == "full" else ("forward",)
        return ", ".join(f"{kernel} {self._configurations(kernel, problem)[0]}" for kernel in passes)

    def forward(self, call: Call) -> Outputs:
        problem = self._problem_of(call)
        y, h_n, c_n, saved, cells = outputs = self.new_outputs(call)
        with hoisted.on_its_device(call):
            concat = call.schedule == "concat" and not call.tokens  # a token's row of the table is its product
            bias = hoisted.input_bias(call)
            w_ih = hoisted.stacked([w.w_ih for w in call.weights])
            if concat:
                source = call.x if call.x.stride(-1) == 1 else call.x.contiguous()
            else:
                source = hoisted.input_gates(call, w_ih.flatten(0, 1), bias)
            source_step, source_batch = (0, source.stride(0)) if call.tokens else hoisted.strides(call, source)
            token_step, token_batch = hoisted.strides(call, call.x)
            operands = _operands(call, y) | dict(
                source=source, tokens=call.x, w_ih=w_ih, bias=bias,
                b_hn=hoisted.reset_bias(call), h_n=h_n, c_n=c_n, saved=saved, cells=cells, I=call.I,
                source_step=source_step, source_batch=source_batch, token_step=token_step, token_batch=token_batch,
            )  # fmt: skip
            constants = _constants(call) | dict(
                CONCAT=concat, TOKENS=call.tokens, SAVE=call.save == "full", BIAS=bias is not None,
                BLOCK_I=block_of(call.I) if concat else 16,
            )  # fmt: skip
            self._launch("forward", problem, call, operands, constants)
        return outputs

    def backward(self, call, dy, dh_n, dc_n, y, saved, cells, wanted):
        problem = self._problem_of(call)
        G, D, R, H, like = len(call.spec.gates), call.D, call.R, call.H, call.weights[0].w_ih
        dgates, before = like.new_empty(D, R, G * H), like.new_empty(D, R, H)
        dgates_h = torch.empty_like(dgates) if call.cell == "gru" else dgates
        reset_h = torch.empty_like(before) if call.cell == "gru_reset_before" else before
        y = y if y.stride(-1) == 1 else y.contiguous()
        dh0 = torch.empty_like(call.h0, memory_format=torch.contiguous_format)
        dc0 = torch.empty_like(dh0) if call.c0 is not None else None
        dh_n, dc_n = (None if given is None else given.contiguous() for given in (dh_n, dc_n))
        dy = dy if dy is None or dy.stride(-1) == 1 else dy.contiguous()
        dy_step, dy_batch = (0, 0) if dy is None else hoisted.strides(call, dy)
        with hoisted.on_its_device(call):
            operands = _operands(call, y) | dict(
                dy=dy, dh_n=dh_n, dc_n=dc_n, saved=saved.contiguous(), cells=cells.contiguous(), dgates=dgates,
                dgates_h=dgates_h, before=before, reset_h=reset_h, dh0=dh0, dc0=dc0, dy_step=dy_step, dy_batch=dy_batch,
            )  # fmt: skip
            constants = _constants(call) | dict(DY=dy is not None, DH_N=dh_n is not None, DC_N=dc_n is not None)
            self._launch("backward", problem, call, operands, constants)

            def of_direction(d: int) -> tuple:
                of_reset = reset_h[d] if call.cell == "gru_reset_before" else None
                return gradients.recurrent(call, dgates_h[d], before[d], of_reset), None

            return hoisted.all_gradients(call, dgates, dh0, dc0, wanted, of_direction)

    def _launch(
        self, kernel: str, problem: Problem, call: Call, operands: dict[str, Any], constants: dict[str, Any]
    ) -> None:
        """With the first configuration that fits the device."""

        def milliseconds(configuration: Configuration) -> float:
            from triton.testing import do_bench

            return do_bench(lambda: launch(kernel, call, configuration, operands, constants), return_mode="median")

        may_time = tuning_is_on() and call.x.is_cuda and not torch.cuda.is_current_stream_capturing()
        reasons = []
        for configuration in self._configurations(kernel, problem, milliseconds if may_time else None):
            if (key := (kernel, configuration, problem.cell, *constants.items())) in self._too_large:
                reasons.append(self._too_large[key])
                continue
            try:
                return launch(kernel, call, configuration, operands, constants)
            except BackendError as error:
                self._too_large[key] = str(error)
                reasons.append(str(error))
        raise BackendError(f"triton: {'; '.join(reasons)}")

    def _configurations(self, kernel: str, problem: Problem, time: Any = None) -> tuple[Configuration, ...]:
        """In the order in which they are tried."""
        gpu = _gpu(problem.device)
        found = preferred(kernel, problem, gpu)
        if tuning_is_on() and gpu is not H100:
            found = fastest_first(f"{tuning_key(kernel, problem)} on {gpu.name}, {_kernels()}", found, time)
        return found

    def _problem_of(self, call: Call) -> Problem:
        """BackendError for one that the kernels lack: `select` never sends these here, a call of the raw op may."""
        problem = Problem.of(call)
        if reasons := self.not_supported_reasons(problem):
            raise BackendError(f"triton: {'; '.join(reasons)}")
        return problem


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _gpu(device: str) -> Gpu:
    """That of this process; of the interpreter, and where there is none, an H100."""
    if device != "cuda" or not torch.cuda.is_available():
        return H100
    properties: Any = torch.cuda.get_device_properties()
    capability = (properties.major, properties.minor)
    shared, processors = properties.shared_memory_per_block_optin, properties.multi_processor_count
    return Gpu(properties.name, capability, shared, processors)


@functools.cache
def _kernels() -> str:
    """What changes with every change of a kernel."""
    import triton

    from fusedrnn.kernels import resident, tiled

    keys = [kernel.cache_key for file in (resident, tiled) for kernel in (file.forward, file.backward)]
    return " ".join(("Triton", triton.__version__, *keys))


def _operands(call: Call, y: Tensor) -> dict[str, Any]:
    """What both kernels take. None: absent, not followed."""
    y_step, y_batch = hoisted.strides(call, y)
    reset_step, reset_batch = (0, 0) if call.resets is None else (call.resets.stride(0), call.resets.stride(1))
    return dict(
        w_hh=hoisted.stacked([w.w_hh for w in call.weights]), h0=call.h0.contiguous(),
        c0=None if call.c0 is None else call.c0.contiguous(), y=y,
        row_offsets=None if call.row_offsets is None else call.row_offsets.contiguous(),
        lengths=None if call.lengths is None else call.lengths.contiguous(), resets=call.resets,
        T=call.T, B=call.B, R=call.R, H=call.H, y_step=y_step, y_batch=y_batch, reset_step=reset_step,
        reset_batch=reset_batch,
    )  # fmt: skip


def _constants(call: Call) -> dict[str, Any]:
    """What kernels are compiled for."""
    return dict(
        CELL=call.cell,
        DIRECTION=call.direction,
        PACKED=call.row_offsets is not None,
        LENGTHS=call.lengths is not None,
        RESETS=call.resets is not None,
        PRECISION=call.precision,
    )
