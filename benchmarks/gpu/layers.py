"""Time torch.nn, and fusedrnn's backends beside it, on problems of the grid, each behind its gate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu import plan
from benchmarks.gpu.floors import floor
from benchmarks.gpu.micro import Physics
from benchmarks.record import Failure, Record, Row
from fusedrnn.bench import gate, grid, pairs
from fusedrnn.bench.measure import checked, first_line
from fusedrnn.bench.pairs import Spread, milliseconds, ratios

LONGEST_GRAPH = 4096  # steps; a graph has a node for each kernel, some to a step
GRAPH = "capture"  # what the side of a failure ends with when its graph could not be captured

Run = Callable[[], tuple[torch.Tensor, ...]]
Call = Callable[[], object]


def measure(problem: grid.Problem, sides: list[str], physics: Physics) -> Record:
    """A row for each side and clock, or the failure of a side. Every other side is measured against torch.nn, which has
    to be one of them."""
    record, runs, errors, bound = Record(), {}, {}, floor(problem, physics)
    x, dy = grid.inputs(problem)
    with grid.float32_precision(problem.precision):
        for side in sides:
            try:
                runs[side], errors[side] = checked(problem, side, x, dy)
            except (gate.GateError, RuntimeError) as reason:
                record.failures.append(failure(problem, side, reason))
        for clock, calls in _clocks(problem, runs, record.failures):
            times = _rounds(calls)
            for side, seconds in times.items():
                rival = times.get(grid.TORCH) if side != grid.TORCH else None
                row = Row(
                    problem=str(problem),
                    side=side,
                    threads=0,
                    ms=milliseconds(seconds),
                    torch_ms=rival and milliseconds(rival),
                    ratio=rival and ratios(rival, seconds),
                    over_floor=bound and Spread.of([1e3 * s / bound.ms for s in seconds]),
                    clock=clock,
                    error=errors[side],
                )
                record.rows.append(row)
    return record


class DeviceLost(RuntimeError):
    """An error of the device after which the process can use it no more."""


LAST_ERRORS = (
    *("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address"),
    *("illegal instruction", "invalid program counter", "hardware stack", "launch timed out", "EXECUTION_FAILED"),
)


def lost() -> bool:
    """Whether this process can use no GPU, as after a kernel that trapped."""
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def failure(problem: object, side: str, reason: Exception) -> Failure:
    """For the record. DeviceLost where there is nothing to go on with."""
    said = first_line(reason)
    if any(sign in said for sign in LAST_ERRORS):
        raise DeviceLost(said) from reason
    return Failure(str(problem), side, said[:300])


def _clocks(problem: grid.Problem, runs: dict[str, Run], failures: list[Failure]) -> Iterator[tuple[str, dict]]:
    """Each clock with, for each side, the call that returns its seconds. Without a GPU the wall is the only one."""
    if not runs:
        return
    yield "wall", {side: functools.partial(pairs.seconds, run, problem.device) for side, run in runs.items()}
    if problem.device != "cuda":
        return
    yield "events", {side: between_events(run) for side, run in runs.items()}
    if problem.sizes.T > LONGEST_GRAPH or problem.layout == "packed":  # its sizes are read on the host
        return
    replays = {}
    for side, run in runs.items():
        try:
            replays[side] = between_events(captured(problem, run))
        except (gate.GateError, RuntimeError) as reason:
            failures.append(failure(problem, f"{side} {GRAPH}", reason))
            return
    yield "graph", replays


def between_events(run: Call) -> Callable[[], float]:
    """Seconds between events on the stream before and after the call's work."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> float:
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return timed


def captured(problem: grid.Problem, run: Run) -> Call:
    """The replay of the graph of one call, after its results have passed the gate."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):  # what a first call sets up may not be captured
        run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    for result in results:
        result.detach().fill_(torch.nan)
    graph.replay()
    gate.check_sound(problem, results)
    return graph.replay


def _rounds(calls: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each side, round by round, after a first call of each."""
    return pairs.interleaved(calls, plan.rounds(max(call() for call in calls.values())))


def free() -> None:
    """Forget the gate's results, and give memory back once a quarter is taken: graphs hold pools of their own."""
    gate.forget()
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > torch.cuda.mem_get_info()[1] / 4:
        torch.cuda.empty_cache()
