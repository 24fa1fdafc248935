"""Measure the GPU that is here, what torch.nn makes of it, and what fusedrnn does: `make gpu`.

Needs python3 with torch, and nvcc or the program of `micro/` and fusedrnn/_cuda.so brought along; installs nothing and
reads no corpus.
Stages run in the order of their importance, each in a process of its own, and keep what they measured as they go. Run
again, it goes on with what is missing. The tables come last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu import micro, plan, processes, soak, stages, steps, table
from benchmarks.record import RESULTS
from fusedrnn.lm.files import write_atomically

SPARE = 15  # seconds of the whole for starting, and for the tables
LIBRARY = "library"


@dataclass(frozen=True)
class Share:
    """A stage, its guessed seconds, and the part of the time that is left which it may take at most."""

    name: str
    what: str
    guess: float
    most: float


def shares() -> list[Share]:
    """The plan."""
    problems = plan.grid()
    one = sum(map(plan.seconds, problems))
    whole = steps.problems()
    return [
        Share(LIBRARY, "the CUDA kernels compiled, unless a library that runs here was brought along", 300, 0.6),
        Share("micro", "the chip: barriers, exchanges, matrix instructions, functions", 110, 0.25),
        Share("tests", "the tests marked gpu, those of the CUDA kernels first", 160, 0.3),
        Share("soak", f"{soak.WHOLE} random layers on the CUDA kernels, less those run before", 200, 0.25),
        Share("sanitizer", "the CUDA kernels under compute-sanitizer, unless they passed before", 90, 0.3),
        Share("fusedrnn", f"fusedrnn beside torch.nn on {len(problems)} problems", 2 * one, 0.85),
        Share(
            "steps",
            f"{len(whole)} rows of whole training steps, launched one by one and as one graph",
            len(whole) * steps.SECONDS,
            0.8,
        ),
        Share("cudnn", f"torch.nn on {len(problems)} problems, less those measured before", one, 1),
    ]


def allotted(share: Share, left: float) -> float:
    return min(share.guess, share.most * max(0.0, left))


def given(minutes: float, compiled: bool) -> list[float]:
    """Seconds of each stage that takes all it may; whether the library is compiled, or was brought along."""
    left, found = 60 * minutes - SPARE, []
    for share in shares():
        found.append(allotted(share, left) if compiled or share.name != LIBRARY else 0.0)
        left -= found[-1]
    return found


def show_plan(minutes: float) -> None:
    """What would run here, or where there is a GPU."""
    print(f"{'stage':10}{'guessed min':>12}{'given min':>11}{'or, compiled':>14}  what")
    for share, *seconds in zip(shares(), given(minutes, False), given(minutes, True), strict=True):
        brought, compiled = (s / 60 for s in seconds)
        print(f"{share.name:10}{share.guess / 60:12.1f}{brought:11.1f}{compiled:14.1f}  {share.what}")
    print(f"{minutes:g} minutes in all; what does not fit is left to the next run. The first problems:")
    for problem in plan.grid()[:6]:
        print(f"  {problem}: {plan.seconds(problem):.2f} s")


def run(place: stages.Place, minutes: float) -> int:
    """All stages; the tables; 1 if a stage failed."""
    end = time.monotonic() + 60 * minutes - SPARE
    worst = 0
    for share in shares():
        worst = max(worst, _stage(share, place, end))
        print(flush=True)
    show_tables(place)
    return worst


def _stage(share: Share, place: stages.Place, end: float) -> int:
    """Run it, and again where its process ended over a problem, as long as there is time."""
    deadline = time.monotonic() + allotted(share, end - time.monotonic())
    while (left := deadline - time.monotonic()) > 5:
        print(f"{share.name}: {share.what}; at most {left:.0f} s", flush=True)
        command = [sys.executable, "-m", "benchmarks.gpu.stages", share.name, str(place.folder), f"{deadline:.1f}"]
        try:
            status = processes.run(command, left + SPARE / 2, cwd=micro.ROOT).returncode
        except subprocess.TimeoutExpired:
            print(f"{share.name}: stopped, it outran its time")
            stages.bury(place, share.name)
            return 1
        fell = place.under_way(share.name).exists()
        stages.bury(place, share.name)
        if status != stages.FATAL and not fell:
            return 1 if status else 0
    return 1


def show_tables(place: stages.Place) -> None:
    physics, cudnn, fusedrnn = place.physics(), place.of_torch(), place.rows("fusedrnn")
    path = place.file("table").with_suffix(".md")
    place.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, table.full(physics, cudnn, fusedrnn).encode())
    print(table.short(physics, cudnn, fusedrnn, place.tests("tests")))
    if whole := steps.table(place.rows("steps").rows):
        print(f"\n{whole}")
    for checked in place.tests("sanitizer") + place.tests("soak"):
        print(f"{checked['name']}: {checked['outcome']} {checked['said']}".rstrip())
    print(f"\nkept in {place.folder}; every problem, with its floor, in {path}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for what is measured")
    parser.add_argument("--minutes", type=float, default=9, help="for everything (default 9)")
    parser.add_argument("--dry", action="store_true", help="show the plan and measure nothing")
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error(f"--minutes: expected more than 0, got {options.minutes:g}")
    if options.results.exists() and not options.results.is_dir():
        parser.error(f"--results: expected a folder, {options.results} is none")
    if options.dry:
        show_plan(options.minutes)
        return 0
    if not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA GPU here; make gpu DRY=1 shows the plan", file=sys.stderr)
        return 2
    processes.leave_on_sigterm()
    return run(stages.Place(options.results.resolve()), options.minutes)


if __name__ == "__main__":
    sys.exit(main())
