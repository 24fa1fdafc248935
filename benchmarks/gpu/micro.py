"""The micro-measurements: build the program of `micro/` for the GPU that is here, run it, and look its numbers up."""

from __future__ import annotations

import bisect
import hashlib
import json
import shutil
import statistics
import subprocess
from pathlib import Path

import torch

from benchmarks.gpu import processes

ROOT = Path(__file__).parent.parent.parent
SOURCES, INSTRUCTIONS = Path(__file__).with_name("micro"), ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "gpu"
SECONDS_A_GROUP, SECONDS_TO_BUILD = 40, 300


class MicroError(RuntimeError):
    """The program could not be built, or does not run here."""


def architecture() -> str:
    """What nvcc calls the GPU that is here: 90a for Hopper, whose own instructions need the a."""
    major, minor = torch.cuda.get_device_capability()
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def program_for(sm: str) -> Path:
    """Where the program for this architecture, made of these very sources, is or is to be."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.iterdir(), *INSTRUCTIONS.glob("*.cuh")]):
        digest.update(path.read_bytes())
    return BUILD / f"micro-sm_{sm}-{digest.hexdigest()[:12]}"


def build(sm: str, seconds: float = SECONDS_TO_BUILD) -> Path:
    """The program, built unless it was brought along and runs here."""
    program = program_for(sm)
    if program.exists() and _groups_or_none(program):
        return program
    if not shutil.which("nvcc"):
        raise MicroError(f"nvcc is not on the path, and no program that runs here was brought along as {program}")
    BUILD.mkdir(parents=True, exist_ok=True)
    part = program.with_suffix(".part")
    command = ["nvcc", "-O3", "-std=c++20", f"-I{INSTRUCTIONS}", f"-DFUSEDRNN_SM={sm.rstrip('a')}"]
    command += ["-gencode", f"arch=compute_{sm},code=sm_{sm}", str(SOURCES / "main.cu"), "-o", str(part)]
    try:
        done = processes.captured(command, seconds)
    except subprocess.TimeoutExpired:
        raise MicroError(f"nvcc took more than {seconds:.0f} s") from None
    if done.returncode:
        raise MicroError(f"nvcc failed: {done.stderr.strip()[-2000:]}")
    return part.rename(program)


def groups(program: Path) -> list[str]:
    """The groups of measurements, in the order of their importance."""
    found = _groups_or_none(program)
    if not found:
        raise MicroError(f"{program} does not run here")
    return found


def _groups_or_none(program: Path) -> list[str]:
    try:
        done = processes.captured([program, "--list"], 20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def measure(program: Path, group: str, seconds: float = SECONDS_A_GROUP) -> list[dict]:
    """The group's measurements; if the program fails or takes too long, those it had made and what went wrong."""
    try:
        done = processes.captured([program, group], seconds)
        text, wrong = done.stdout, done.stderr.strip() if done.returncode else ""
    except subprocess.TimeoutExpired as stopped:
        text, wrong = stopped.stdout, f"stopped after {seconds:.0f} s"
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return [*found, *([{"measure": group, "at": {}, "error": wrong}] if wrong else [])]


class Missing(LookupError):
    """A number that a floor needs was not measured."""


class Physics:
    """What the measurements of a machine say, by name: medians of cycles, or of a value."""

    def __init__(self, measurements: list[dict], machine: dict):
        self.measurements = measurements
        self.machine = machine
        self._by_name: dict[str, list[dict]] = {}
        for measurement in measurements:
            if "error" not in measurement:
                self._by_name.setdefault(measurement["measure"], []).append(measurement)

    @classmethod
    def load(cls, paths: list[Path]) -> Physics:
        """Of the first of these files that is there; without any, nothing was measured."""
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            return cls([], {})
        kept = json.loads(path.read_text())
        return cls(kept["measurements"], kept["machine"])

    def find(self, measure: str, **at) -> list[dict]:
        """All that were made without error and agree with `at`."""
        return [m for m in self._by_name.get(measure, ()) if at.items() <= m["at"].items()]

    def one(self, measure: str, **at) -> dict:
        if not (found := self.find(measure, **at)):
            raise Missing(f"{measure} {at}")
        return found[0]

    def cycles(self, measure: str, **at) -> float:
        return self.one(measure, **at)["cycles"]["median"]

    def value(self, measure: str, **at) -> float:
        return self.one(measure, **at)["value"]

    def rate(self, measure: str, **at) -> float:
        """Bytes, operations or values a cycle, of one SM."""
        found = self.one(measure, **at)
        return found["work"] / found["cycles"]["median"]

    def cycles_at(self, measure: str, along: str, place: float, **at) -> float:
        """Cycles where `along` is `place`: on the line through the two nearest measured places, but no less than the
        least of them."""
        points = sorted((m["at"][along], m["cycles"]["median"]) for m in self.find(measure, **at))
        if len(points) < 2:
            raise Missing(f"{measure} {at}")
        right = min(max(bisect.bisect([x for x, _ in points], place), 1), len(points) - 1)
        (x0, y0), (x1, y1) = points[right - 1 : right + 1]
        return max(y0 + (place - x0) * (y1 - y0) / (x1 - x0), min(y for _, y in points))

    def fetches(self, **at) -> list[dict]:
        """The ways from L2 to shared memory, each SM fetching a region of its own. Missing where none was measured."""
        names, everywhere = ("fetch by cp.async", "fetch by the copy engine"), {"ctas": self.sms, "regions": self.sms}
        if not (found := [m for name in names for m in self.find(name, **everywhere, **at)]):
            raise Missing("fetch")
        return found

    @property
    def sms(self) -> int:
        """Multiprocessors of the chip."""
        return int(self.value("multiprocessors"))

    @property
    def mhz(self) -> float:
        """The clock of the SMs while they were measured."""
        clocks = [m["mhz"] for m in self.measurements if "mhz" in m]
        if not clocks:
            raise Missing("clock")
        return statistics.median(clocks)
