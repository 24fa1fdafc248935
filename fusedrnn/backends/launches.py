"""Launching the Triton kernels: the resident ones directly, the tiled ones with a table of what they work on, and their
steps from CUDA graphs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusedrnn.backends.base import BackendError
from fusedrnn.backends.configurations import Configuration
from fusedrnn.call import Call

GRAPH_STEPS = (64, 8)  # of each graph; those beyond the last step of a sequence return at once
MOST_GRAPHS = 64


def launch(
    kernel: str, call: Call, configuration: Configuration, operands: dict[str, Any], constants: dict[str, Any]
) -> None:
    """Runs kernel "forward" or "backward". `operands` are its tensors and numbers by name, `constants` what it is
    compiled for. Raises BackendError where a multiprocessor lacks the memory or the registers."""
    from triton.runtime.errors import OutOfResources

    try:
        if configuration.kind == "resident":
            _launch_resident(kernel, call, configuration, operands, constants)
        else:
            _launch_tiled(kernel, call, configuration, operands, constants)
    except OutOfResources as error:
        raise BackendError(f"triton: {configuration}: {error}") from error


def _launch_resident(kernel, call, configuration, operands, constants):
    from fusedrnn.kernels import resident

    function = getattr(resident, kernel)
    pointers = {name: operands["h0"] if operand is None else operand for name, operand in operands.items()}
    given = {**pointers, **constants, "BLOCK_B": configuration.rows, "BLOCK_H": configuration.units}
    grid = (_blocks(call.B, configuration.rows), call.D)
    function[grid](**_named(given, function.arg_names), **configuration.options)


def _launch_tiled(kernel, call, configuration, operands, constants):
    from fusedrnn.kernels import tiled

    function = getattr(tiled, kernel)
    operands = {**operands, **_scratch(kernel, call, operands)}
    entries, aligned = _entries(kernel, operands)
    streamed = configuration.kind == "streamed"
    given = {
        **operands,
        **constants,
        "TYPE": triton_type(call.dtype),
        "ALIGNED": aligned,
        "STREAMED": streamed,
        "BLOCK_B": configuration.rows,
        "BLOCK_N": configuration.units,
        "BLOCK_K": configuration.depth,
    }
    tiles = 1 if streamed else _blocks(call.H, configuration.units)
    grid = (_blocks(call.B, configuration.rows), call.D, tiles)
    names = [name for name in function.arg_names if name not in ("table", "step", "PHASE")]
    given = _named(given, names)

    def run(table: Tensor, step: int) -> None:
        for phase in range(1 if streamed else tiled.phases_of(call.cell)):
            function[grid](table, step, **given, PHASE=phase, **configuration.options)

    if streamed:
        run(_filled(new_table(call), entries), 0)
    else:
        key = (kernel, configuration, grid, tuple(given.items()))
        run_steps(call, key, entries, run, call.T + (kernel == "backward"))
    _finish(kernel, call, operands)


def run_steps(call: Call, key: tuple, entries: list[int], run: Callable[[Tensor, int], None], steps: int) -> None:
    """run(table, 0), run(table, 1), ... where `table` has the entries.

    On a GPU graphs of several steps are replayed, from the second time on that a `key` comes on one stream; not while
    the caller captures a graph of his own.
    """
    stream = _stream_of_graphs(call)
    if stream is None or steps < min(GRAPH_STEPS):
        _run_plainly(new_table(call), entries, run, steps)
        return
    key = (*key, call.x.device, stream)
    with _lock:
        graphs = _graphs.pop(key, None)
        if graphs is None:
            graphs = Graphs(new_table(call))
            _run_plainly(graphs.table, entries, run, steps)
        else:
            graphs.replay(entries, run, steps)
        _graphs[key] = graphs
        if len(_graphs) > MOST_GRAPHS:
            torch.cuda.synchronize()
            _graphs.popitem(last=False)


def _run_plainly(table: Tensor, entries: list[int], run: Callable[[Tensor, int], None], steps: int) -> None:
    _filled(table, entries)
    for step in range(steps):
        run(table, step)


def _stream_of_graphs(call: Call) -> int | None:
    """The stream whose graphs may be replayed, None where there can be none."""
    if not call.x.is_cuda or torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream().cuda_stream


class Graphs:
    """The captured launches of one configuration on one stream, and the table they read."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.captured: dict[int, torch.cuda.CUDAGraph] = {}

    def replay(self, entries: list[int], run: Callable[[Tensor, int], None], steps: int) -> None:
        left = steps
        sizes = []
        for size in GRAPH_STEPS:
            sizes += [size] * (left // size)
            left %= size
        sizes += [min(GRAPH_STEPS)] * (left > 0)
        for size in set(sizes) - set(self.captured):
            self.captured[size] = self._capture(run, size)
        _filled(self.table, entries)
        for size in sizes:
            self.captured[size].replay()

    def _capture(self, run: Callable[[Tensor, int], None], size: int) -> torch.cuda.CUDAGraph:
        from fusedrnn.kernels.tiled import advance

        graph = torch.cuda.CUDAGraph()
        advance[(1,)](self.table, 0)  # compiled and loaded before the capture, as the steps are
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for step in range(size):
                run(self.table, step)
            advance[(1,)](self.table, size)
        return graph


_graphs: OrderedDict[tuple, Graphs] = OrderedDict()
_lock = threading.Lock()  # a table serves one call at a time


def new_table(call: Call) -> Tensor:
    from fusedrnn.kernels.tiled import ENTRIES

    return torch.empty(ENTRIES, dtype=torch.int64, device=call.x.device)


def _filled(table: Tensor, entries: list[int]) -> Tensor:
    from fusedrnn.kernels.tiled import set_table

    set_table[(1,)](table, *entries)
    return table


def _entries(kernel: str, operands: dict[str, Any]) -> tuple[list[int], bool]:
    """What the table holds, and whether loads of 16 bytes at a time may be made of it."""
    from fusedrnn.kernels.tiled import ENTRIES, TABLES, UNALIGNED

    values: dict[str, int] = {}
    for name in TABLES[kernel]:
        operand = operands[name]
        values[name] = operand.data_ptr() if isinstance(operand, Tensor) else operand or 0
    aligned = all(value % 16 == 0 for name, value in values.items() if name not in UNALIGNED)
    return [*values.values(), *[0] * (ENTRIES - len(values))], aligned


def _scratch(kernel: str, call: Call, operands: dict[str, Any]) -> dict[str, Any]:
    """Where steps leave their state for the next [2, D, B, H], the first state in place, and r * h [D, B, H]."""
    shape, like = (2, *call.h0.shape), call.h0
    lstm, gru = call.cell == "lstm", call.spec.op == "gru"
    found: dict[str, Any]
    if kernel == "forward":
        h, one = like.new_empty(shape), like.new_empty(shape[1:])
        found = {"begin": 0, "h": h, "h_exact": torch.empty_like(h, dtype=torch.float32) if gru else h,
                 "c": torch.empty_like(h, dtype=torch.float32) if lstm else h, "reset_h": one}  # fmt: skip
        first = {"h": call.h0} | ({"h_exact": call.h0} if gru else {}) | ({"c": call.c0} if lstm else {})
    else:
        dh = like.new_empty(shape, dtype=torch.float32)
        found = {"begin": 0, "dh": dh, "dc": torch.empty_like(dh) if lstm else dh, "through": torch.empty_like(dh[0])}
        first = {"dh": operands["dh_n"]} | ({"dc": operands["dc_n"]} if lstm else {})
    for name, given in first.items():
        found[name][0] = 0 if given is None else given
    return found


def _finish(kernel: str, call: Call, operands: dict[str, Any]) -> None:
    """The last state, where the last step left it."""
    outputs = {"forward": {"h_n": "h", "c_n": "c"}, "backward": {"dc0": "dc"}}[kernel]
    for output, name in outputs.items():
        if output == "h_n" or call.cell == "lstm":
            operands[output].copy_(operands[name][call.T % 2])


def _named(given: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _blocks(size: int, block: int) -> int:
    return max(1, -(-size // block))


def triton_type(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return getattr(tl, str(dtype).removeprefix("torch."))
