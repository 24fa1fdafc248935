"""The stages of `make gpu`, each in a process of its own: what it measures, and the file it keeps that in."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.gpu import layers, library, micro, outcomes, plan, processes, sanitizer, soak, steps
from benchmarks.record import RESULTS, Failure, Record, file_name, save
from fusedrnn.bench import grid
from fusedrnn.bench.pairs import Spread, seconds
from fusedrnn.dispatch import REGISTRY

FATAL = 3  # the exit status after which a new process may go on where this one stopped
SECONDS_BETWEEN_SAVES = 10
VERDICTS = ("tests", "soak", "sanitizer")  # the stages that keep verdicts


@dataclasses.dataclass(frozen=True)
class Place:
    """Where results go; and where those of earlier runs are, which are not measured again but shown."""

    folder: Path

    def file(self, stage: str) -> Path:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no gpu"
        library = [] if stage == "micro" else [f"torch {torch.__version__}"]
        return self.folder / file_name(device, *library, stage)

    def under_way(self, stage: str) -> Path:
        """Names the problem that is being measured, for the process that comes after one that ended over it."""
        return self.file(stage).with_suffix(".now")

    def rows(self, stage: str) -> Record:
        """This run's and the earlier ones'."""
        return Record.load(self.file(stage)).over(Record.load(RESULTS / self.file(stage).name))

    def of_torch(self) -> Record:
        """torch.nn's rows: those measured alone, and otherwise those beside ours."""
        beside = [row for row in self.rows("fusedrnn").rows if row.side == grid.TORCH]
        return self.rows("cudnn").over(Record(beside))

    def tests(self, stage: str) -> list[dict]:
        """What a stage of verdicts kept, in this run or else in an earlier one. Their names begin with the stage's."""
        paths = (self.file("tests"), RESULTS / self.file("tests").name)
        kept = [json.loads(path.read_text())["tests"] if path.exists() else [] for path in paths]
        found = ([test for test in tests if test["name"].startswith(stage)] for tests in kept)
        return next(filter(None, found), [])

    def keep_tests(self, stage: str, tests: list[dict]) -> None:
        """All such stages have one file: what a run leaves should be few."""
        of_stages = {name: self.tests(name) for name in VERDICTS} | {stage: tests}
        save(self.file("tests"), {"tests": list(itertools.chain(*of_stages.values()))})

    def physics(self) -> micro.Physics:
        return micro.Physics.load([self.file("micro"), RESULTS / self.file("micro").name])


# Micro-measurements.


def measure_micro(place: Place, deadline: float) -> None:
    """The CUDA program, group by group, and the two rates that only a library's kernels reach.

    Nothing where an earlier run measured all of it without an error by the very same program.
    """
    name = micro.program_for(micro.architecture()).name
    if place.physics().find("program", name=name):
        print("all measured before")
        return
    properties = torch.cuda.get_device_properties(0)
    found = [_fact("multiprocessors", {}, properties.multi_processor_count, "")]

    def keep(more: Iterable[dict]) -> None:
        found.extend(more)
        save(place.file("micro"), {"measurements": found})

    try:
        keep(large_rates())
    except RuntimeError as error:
        keep([{"measure": "matrix product", "at": {}, "error": str(error).splitlines()[0]}])
    try:
        program = micro.build(micro.architecture(), deadline - time.monotonic())
        for group in micro.groups(program):
            left = min(micro.SECONDS_A_GROUP, deadline - time.monotonic())
            if left < 1:
                keep([{"measure": group, "at": {}, "error": "no time was left"}])
                continue
            keep(micro.measure(program, group, left))
    except micro.MicroError as error:
        keep([{"measure": "program", "at": {}, "error": str(error)}])
    errors = [m for m in found if "error" in m]
    if not errors:
        keep([_fact("program", {"name": name}, 1, "")])
    print(f"{len(found) - len(errors)} measurements, {len(errors)} errors")
    for m in errors:
        print(f"  {m['measure']} {m['at']}: {m['error']}")


def _fact(measure: str, at: dict, value: float, unit: str) -> dict:
    return {"measure": measure, "at": at, "value": value, "unit": unit}


def large_rates(edge: int = 8192, copied: int = 1 << 32, device: str = "cuda") -> Iterator[dict]:
    """A large GEMM of each precision, in TFLOP/s, and a large copy, in GB/s read and written. Random data."""
    repeats = 10
    for precision in plan.PRECISIONS:
        dtype = grid.PRECISIONS[precision]
        with grid.float32_precision(precision):
            a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
            seconds = _median_seconds(lambda a=a, b=b: torch.mm(a, b), repeats, device)
        yield _fact("matrix product", {"precision": precision}, 2e-12 * edge**3 / seconds, "TFLOP/s")
    source = torch.randint(0, 1 << 30, (copied // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    seconds = _median_seconds(lambda: target.copy_(source), repeats, device)
    yield _fact("copy", {}, 2e-9 * copied / seconds, "GB/s")


def _median_seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    clock = layers.between_events(run) if device == "cuda" else functools.partial(seconds, run)
    clock()
    return Spread.of([clock() for _ in range(repeats)]).median


# Layers.


def bury(place: Place, stage: str) -> None:
    """Record as a failure the problem over which the last process of the stage ended."""
    path, reason = place.under_way(stage), "the process that measured it ended"
    if not path.exists():
        return
    if stage == "soak":
        number = int(path.read_text())
        place.keep_tests("soak", [_counted(_soaked(place), number, f"{number}: {reason}")])
    else:
        problem, side = path.read_text().splitlines()
        Record(failures=[Failure(problem, side, reason)]).save(place.file(stage))
    path.unlink()


def measure_cudnn(place: Place, deadline: float) -> int:
    """torch.nn alone, on what was not measured before."""
    done = place.of_torch().problems
    queue = [problem for problem in plan.grid() if str(problem) not in done]
    return _measure_layers(place, "cudnn", queue, lambda problem: [grid.TORCH], deadline)


def measure_fusedrnn(place: Place, deadline: float) -> int:
    """Our backends beside torch.nn: first what this stage has no row of, then what it lost, then all else."""
    done, known = Record.load(place.file("fusedrnn")).problems, place.rows("fusedrnn")
    rows = {row.problem: row for row in known.rows if row.side == "auto" and row.clock == "events"}
    lost = {name for name, row in rows.items() if row.ratio is not None and row.ratio.median < 1}
    queue = [problem for problem in plan.grid() if str(problem) not in done]
    queue.sort(key=lambda problem: (str(problem) in rows, str(problem) not in lost))
    return _measure_layers(place, "fusedrnn", queue, lambda p: [grid.TORCH, *grid.our_sides(p)], deadline)


def _measure_layers(place: Place, stage: str, queue, sides_of, deadline: float) -> int:
    physics = place.physics()
    tasks = []
    for problem in queue:
        sides = sides_of(problem)
        measure = functools.partial(layers.measure, problem, sides, physics)
        tasks.append(Task(problem, sides, len(sides) * plan.seconds(problem), measure))
    return _measure_rows(place, stage, tasks, deadline)


def measure_steps(place: Place, deadline: float) -> int:
    """Whole training steps, those first that were not measured before."""
    done, known = Record.load(place.file("steps")).problems, {row.problem for row in place.rows("steps").rows}
    queue = [problem for problem in steps.problems() if str(problem) not in done]
    queue.sort(key=lambda problem: str(problem) in known)
    tasks = [Task(p, p.sides, steps.SECONDS, functools.partial(steps.measure, p, steps.BUDGET)) for p in queue]
    return _measure_rows(place, "steps", tasks, deadline)


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem, the sides it is measured on, a guess at the seconds that takes, and what does it."""

    problem: grid.Problem | steps.Problem
    sides: Sequence[str]
    seconds: float
    measure: Callable[[], Record]


def _measure_rows(place: Place, stage: str, tasks: Sequence[Task], deadline: float) -> int:
    """Measure in this order until the deadline. Returns the exit status."""
    path, record = place.file(stage), Record()
    measured, saved, under_way = 0, time.monotonic(), place.under_way(stage)
    for task in tasks:
        now = time.monotonic()
        if now > deadline - 1:
            break
        if now + task.seconds > deadline:
            continue  # a smaller one may still fit
        under_way.write_text(f"{task.problem}\n{task.sides[-1]}")
        try:
            found = _measured(task)
        except layers.DeviceLost as error:
            found = Record(failures=[Failure(str(task.problem), side, str(error)) for side in task.sides])
            lost = True
        else:  # torch cannot go on after a capture that failed: its allocator counts it as under way
            lost = any(failure.side.endswith(layers.GRAPH) for failure in found.failures)
        record.rows += found.rows
        record.failures += found.failures
        measured += bool(found.rows)
        if lost or time.monotonic() > saved + SECONDS_BETWEEN_SAVES:
            record.save(path)
            saved = time.monotonic()
        if lost:
            under_way.unlink()
            return FATAL
        layers.free()
    record.save(path)
    under_way.unlink(missing_ok=True)
    print(f"{measured} of {len(tasks)} problems measured, {len(record.failures)} failures")
    for failure in record.failures:
        print(f"  {failure.problem}, {failure.side}: {failure.reason}")
    return 0


def _measured(task: Task) -> Record:
    """What it gives; where it ends in an error, as when memory is short, a failure of each side."""
    try:
        return task.measure()
    except Exception as error:
        return Record(failures=[layers.failure(task.problem, side, error) for side in task.sides])


# Tests.


def run_tests(place: Place, deadline: float) -> int:
    """The tests marked `gpu`: those of the CUDA kernels, then the others, most of which compile for long."""
    worst, tests = 0, []
    for chosen, part in (("cuda", 0.6), ("not cuda", 1)):
        status, found = _pytest(place, chosen, max(10, part * (deadline - time.monotonic())))
        worst, tests = max(worst, status), [*tests, *found]
        place.keep_tests("tests", tests)
    return worst


def _pytest(place: Place, chosen: str, seconds: float) -> tuple[int, list[dict]]:
    """Whether anything was wrong, and the outcomes. Their folder is collected alone: what the others import may not be
    installed."""
    lines = place.file("tests").with_suffix(".lines")
    lines.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-k", chosen, "-q", "-rN"]
    command += ["-p", "benchmarks.gpu.outcomes", f"--outcomes={lines}", f"--timeout={0.3 * seconds:.0f}"]
    if importlib.util.find_spec("xdist"):  # a timeout by a signal waits for the GPU, one by a thread ends the worker
        command += ["-n", "auto", "--timeout-method=thread"]
    try:
        alone = os.environ | {"OMP_NUM_THREADS": "1"}  # there is a worker for each core
        status = processes.run(command, seconds, cwd=micro.ROOT, env=alone).returncode
        ended = [] if status in (0, 1) else [("failed", f"pytest ended with status {status}")]
    except subprocess.TimeoutExpired:
        status, ended = 1, [("skipped", f"cut off after {seconds:.0f} s")]
    tests = outcomes.read(lines)
    lines.unlink(missing_ok=True)
    tests += [{"name": f"tests: {chosen}", "outcome": outcome, "seconds": seconds, "said": said}
              for outcome, said in ended]  # fmt: skip
    return int(status != 0), tests


# The CUDA kernels.


def build_library(place: Place, deadline: float) -> int:
    """0 where they run here, now or before."""
    left = max(10, deadline - time.monotonic())
    print(f"CUDA kernels: {(wrong := library.build(left)) or 'they run here'}")
    return 1 if wrong else 0


def run_sanitizer(place: Place, deadline: float) -> int:
    """Memory and races, on small layers, until they passed for this state of the kernels' sources; what is said is
    kept."""
    passed = {test["name"]: test for test in place.tests("sanitizer") if test["outcome"] == "passed"}
    runs = [passed.get(sanitizer.name_of(tool)) or sanitizer.run(tool, max(10, (deadline - time.monotonic()) / (2 - k)))
            for k, tool in enumerate(sanitizer.TOOLS)]  # fmt: skip
    place.keep_tests("sanitizer", runs)
    return 1 if any(run["outcome"] == "failed" for run in runs) else 0


def run_soak(place: Place, deadline: float) -> int:
    """Random layers, each once for each state of the kernels' sources: on from where an earlier call stopped.
    What was wrong is kept."""
    verdict, under_way, said = _soaked(place), place.under_way("soak"), ""
    if verdict["count"] == soak.WHOLE:
        print("all run before")
        return int(verdict["outcome"] == "failed")
    if missing := REGISTRY["cuda"].unavailable_reason():
        place.keep_tests("soak", [verdict | {"said": verdict["said"] or missing}])
        return 0

    def numbers() -> Iterator[int]:
        for number in range(verdict["count"], soak.WHOLE):
            if time.monotonic() > deadline - 1:
                return
            under_way.write_text(str(number))
            yield number

    before, start = verdict["seconds"], (saved := time.monotonic())
    for layer, said in soak.soak(numbers()):
        verdict = _counted(verdict, layer.number, f"{layer}: {said}" if said else "")
        verdict["seconds"] = before + time.monotonic() - start
        if said or time.monotonic() > saved + SECONDS_BETWEEN_SAVES:
            place.keep_tests("soak", [verdict])
            saved = time.monotonic()
    place.keep_tests("soak", [verdict])
    under_way.unlink(missing_ok=True)
    print(f"{verdict['count']} of {soak.WHOLE} layers so far: {verdict['said']}")
    return FATAL if said and layers.lost() else int(verdict["outcome"] == "failed")


def _soaked(place: Place) -> dict:
    """The verdict on the kernels of these sources so far."""
    name = f"soak of {soak.WHOLE} layers, kernels {library.sources()[:12]}"
    none = {"name": name, "outcome": "skipped", "seconds": 0.0, "said": "", "count": 0}
    return next((test for test in place.tests("soak") if test["name"] == name), none)


def _counted(verdict: dict, number: int, fault: str) -> dict:
    """With the layer of this number, all before it being counted or right."""
    failed, count = verdict["outcome"] == "failed", number + 1
    if fault:
        said = f"{verdict['said']}; {fault}" if failed else fault
        return verdict | {"count": count, "outcome": "failed", "said": said[:1000]}
    if failed:
        return verdict | {"count": count}
    outcome = "passed" if count == soak.WHOLE else "skipped"
    return verdict | {"count": count, "outcome": outcome, "said": f"{count} were right"}


STAGES = {
    "library": build_library,
    "micro": measure_micro,
    "tests": run_tests,
    "soak": run_soak,
    "sanitizer": run_sanitizer,
    "fusedrnn": measure_fusedrnn,
    "steps": measure_steps,
    "cudnn": measure_cudnn,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="One stage, in this process.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("results", type=Path)
    parser.add_argument("deadline", type=float, help="of the monotonic clock, which all processes share")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    processes.leave_on_sigterm()
    return STAGES[given.stage](Place(given.results), given.deadline) or 0


if __name__ == "__main__":
    sys.exit(main())
