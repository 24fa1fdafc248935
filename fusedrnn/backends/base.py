"""What a backend is: declared facts, one question, and the two launches. The dispatcher reasons over the facts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedrnn import checks
from fusedrnn.call import Call
from fusedrnn.cells import CELLS, cells_shape, saved_shape, state_dtype

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # y, h_n, c_n, saved, cells


class BackendError(RuntimeError):
    """No backend, or not the one that was named, can run a problem. The message lists every reason."""


@dataclass(frozen=True)
class Problem:
    """All that decides which backend can run a layer, hashable: sizes, types and options, no data."""

    cell: str
    device: str
    dtype: torch.dtype
    T: int
    B: int
    I: int
    H: int
    D: int = 1
    P: int = 0  # projection size, 0: none
    tokens: bool = False
    packed: bool = False
    lengths: bool = False
    resets: bool = False
    bias: bool = True
    batch_first: bool = False
    schedule: str = "auto"
    save: str = "none"
    precision: str = "ieee"

    @classmethod
    def of(cls, call: Call) -> Problem:
        weights = call.weights[0]
        return cls(
            cell=call.cell,
            device=call.x.device.type,
            dtype=call.dtype,
            T=call.T,
            B=call.B,
            I=call.I,
            H=call.H,
            D=call.D,
            P=0 if weights.w_hr is None else call.P,
            tokens=call.tokens,
            packed=call.row_offsets is not None,
            lengths=call.lengths is not None,
            resets=call.resets is not None,
            bias=weights.b_ih is not None,
            batch_first=call.batch_first,
            schedule=call.schedule,
            save=call.save,
            precision=call.precision,
        )

    @property
    def features(self) -> set[str]:
        """What this problem asks for beyond dense, one-direction, unprojected float input."""
        asked = {
            "bidirectional": self.D == 2,
            "projection": self.P > 0,
            "tokens": self.tokens,
            "packed": self.packed,
            "lengths": self.lengths and not self.packed,
            "resets": self.resets,
            "lean": self.save == "lean",
        }
        return {name for name, wanted in asked.items() if wanted}

    @property
    def precision_of_products(self) -> str:
        """Of float32 ieee or tf32, of another dtype its name."""
        return self.precision if self.dtype == torch.float32 else _short(self.dtype)

    def __str__(self) -> str:
        extras = "".join(f" {name}" for name in sorted(self.features))
        size = f"T={self.T} B={self.B} I={self.I} H={self.H}" + (f" P={self.P}" if self.P else "")
        return f"{self.cell} {_short(self.dtype)} {size}{extras} on {self.device}"


class Fastest(NamedTuple):
    """Sizes, from the first to the last of each, at which a backend was measured to be faster than torch's library, and
    than the other backends."""

    backend: str
    op: str
    precision: str
    training: bool
    T: tuple[int, int]
    B: tuple[int, int]
    H: tuple[int, int]

    def covers(self, problem: Problem) -> bool:
        precision, training = problem.precision_of_products, problem.save != "none"
        if (CELLS[problem.cell].op, precision, training) != (self.op, self.precision, self.training):
            return False
        given = ((self.T, problem.T), (self.B, problem.B), (self.H, problem.H))
        return all(first <= size <= last for (first, last), size in given)


FEATURES = ("bidirectional", "projection", "tokens", "packed", "lengths", "resets", "lean")


_FITTING: set[tuple] = set()  # what Backend.refuse took, told in a quarter of the time when it comes again


class Backend:
    """One way to run a layer. Subclasses declare the facts below and implement what raises NotImplementedError."""

    name: str
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    cells: frozenset[str] = frozenset(CELLS)
    features: frozenset[str] = frozenset(FEATURES)
    schedules: frozenset[str] = frozenset(("concat", "hoisted"))
    deterministic: bool = True
    shared_layout: bool = True  # what it saves for backward is laid out as the contract says, for any backend
    checks_data: bool = False  # raises RuntimeError itself for a token or a length out of range

    def unavailable_reason(self) -> str | None:
        """Why this backend cannot run anything here, or None."""
        return None

    def not_supported_reasons(self, problem: Problem) -> list[str]:
        """Every reason why this backend cannot run `problem`; empty when it can."""
        reasons = []
        if unavailable := self.unavailable_reason():
            reasons.append(unavailable)
        if problem.device not in self.devices:
            reasons.append(f"device {problem.device}, needs {' or '.join(sorted(self.devices))}")
        if problem.dtype not in self.dtypes:
            reasons.append(f"dtype {_short(problem.dtype)} not in {{{', '.join(sorted(map(_short, self.dtypes)))}}}")
        if problem.cell not in self.cells:
            reasons.append(f"cell {problem.cell} not in {{{', '.join(sorted(self.cells))}}}")
        reasons += [f"{feature} is not supported" for feature in sorted(problem.features - self.features)]
        if problem.schedule != "auto" and problem.schedule not in self.schedules:
            reasons.append(f"schedule {problem.schedule} cannot be forced")
        return reasons

    def schedule(self, problem: Problem) -> str:
        """The schedule this backend takes for `problem`: the one forced, or its own measured rule."""
        raise NotImplementedError

    def waits_through_memory(self, problem: Problem) -> bool:
        """Whether processors wait for what others of the same launch write to memory."""
        return False

    def detail(self, problem: Problem) -> str:
        """What else it would choose, for `explain`."""
        return ""

    def forward(self, call: Call) -> Outputs:
        """Run the layer. Returns y, h_n, c_n, saved, cells with the shapes of `new_outputs`."""
        raise NotImplementedError

    def backward(
        self,
        call: Call,
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        y: Tensor,
        saved: Tensor,
        cells: Tensor,
        wanted: int,
    ) -> tuple[Tensor | None, ...]:
        """Gradients of x, h0, c0 and of each direction's five weights, in that order; None where bit k of
        `wanted` is not set.

        The cotangents may be None (zero) and have any strides. No input is written.
        """
        raise NotImplementedError

    def refuse(self, call: Call, *of_backward: Any) -> None:
        """Raise where an operand, or a cotangent, y, `saved` or `cells`, does not fit, or the call is not served:
        `select` never sends it here, a call of the raw op may."""
        options = (call.cell, len(call.weights), call.batch_first, call.schedule, call.save, call.precision)
        places = (call.row_offsets, call.lengths, call.resets)
        given = (call.x, call.h0, call.c0, *itertools.chain(*call.weights), *places, *of_backward)
        facts = (self.name, options, *[None if t is None else (t.shape, t.dtype, t.device) for t in given])
        if facts in _FITTING:
            return
        if reasons := self.not_supported_reasons(Problem.of(call)):
            raise BackendError(f"{self.name}: {'; '.join(reasons)}")
        if misfit := checks.operands(call, of_backward[:4]) or (of_backward and self.kept(call, *of_backward[4:])):
            raise ValueError(f"{self.name}: {misfit}")
        if len(_FITTING) == 4096:
            _FITTING.clear()
        _FITTING.add(facts)

    def kept(self, call: Call, saved: Tensor, cells: Tensor) -> str:
        """What in them does not fit, or nothing."""
        return checks.kept(call, saved, cells)

    def new_outputs(self, call: Call) -> Outputs:
        """Uninitialised outputs of `forward`: y [T, B, D*P], h_n [D, B, P], c_n [D, B, H] or empty, saved, cells."""
        w, spec, D, B, R, save = call.weights[0], call.spec, call.D, call.B, call.R, call.save
        like, P = w.w_ih, w.w_hh.shape[1]
        H = like.shape[0] // len(spec.gates)
        h_n = like.new_empty(D, B, P)
        c_n = like.new_empty((D, B, H) if spec.states == 2 else 0)
        saved = like.new_empty(saved_shape(spec, save, D, R, H))
        cells = like.new_empty(cells_shape(spec, save, D, call.T, R, B, H), dtype=state_dtype(like.dtype))
        return call.new_rows(D * P), h_n, c_n, saved, cells


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
