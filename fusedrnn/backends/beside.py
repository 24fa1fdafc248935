"""The products of the input, made in parts on a stream of their own, beside the loop that takes one after another."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from fusedrnn.call import Call

Part = tuple[int, int]  # the first step, and the one after the last


def input_gates(call: Call, w_ih: Tensor, bias: Tensor | None, parts: int) -> tuple[Tensor, Iterator[Part]]:
    """x W_ih + b [T, B, D*G*H] of a dense batch, not made yet, and the parts of the loop's steps: by the time one is
    given, what it takes is there for what follows on the current stream. w_ih [D*G*H, I], bias [D*G*H]."""
    gates = call.x.new_empty(call.T, call.B, w_ih.shape[0])
    edges = [call.T * part // parts for part in range(parts + 1)]
    return gates, _parts(call, w_ih, bias, gates, list(itertools.pairwise(edges)))


def _parts(call: Call, w_ih: Tensor, bias: Tensor | None, gates: Tensor, parts: list[Part]) -> Iterator[Part]:
    made = []
    stream = _stream(call.x.device.index) if call.x.is_cuda else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
            missing = list(parts)  # of time
            for steps in parts:
                for times in [times for times in missing if _takes(call, steps, times)]:
                    _make(call, w_ih, bias, gates, times)
                    missing.remove(times)
                made.append(None if stream is None else stream.record_event())
        for steps, event in zip(parts, made, strict=True):
            if event is not None:
                torch.cuda.current_stream().wait_event(event)
            yield steps
    finally:
        if stream is not None:  # before memory of what it works on can be given to others
            torch.cuda.current_stream().wait_stream(stream)


def _takes(call: Call, steps: Part, times: Part) -> bool:
    """Whether these steps of a direction's loop are at some of these times."""
    of_directions = [(call.T - steps[1], call.T - steps[0]) if reverse else steps for reverse in call.reverse]
    return any(first < times[1] and times[0] < last for first, last in of_directions)


def _make(call: Call, w_ih: Tensor, bias: Tensor | None, gates: Tensor, times: Part) -> None:
    x, out = (t[slice(*times)].flatten(0, 1) for t in (call.x, gates))
    if bias is None:
        torch.mm(x, w_ih.t(), out=out)
    else:
        torch.addmm(bias, x, w_ih.t(), out=out)


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
