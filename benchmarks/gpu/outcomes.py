"""A plugin of pytest for the GPU's tests: each outcome is in a file as soon as it is known, whatever comes after it.

python -m pytest -p benchmarks.gpu.outcomes --outcomes=FILE

With xdist, a test that leaves the GPU unusable costs its process and no other test: a new one takes its place.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.gpu import layers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, required=True, help="a file to which a line of JSON is added for a test")


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    config.pluginmanager.register(Worker() if is_worker else Lines(config.getoption("outcomes")))


class Lines:
    def __init__(self, path: Path):
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            outcome = {"name": report.nodeid, "outcome": report.outcome, "seconds": report.duration,
                       "said": report.longreprtext[-500:]}  # fmt: skip
            with self.path.open("a") as file:
                file.write(json.dumps(outcome) + "\n")


class Worker:
    failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def pytest_runtest_logfinish(self) -> None:
        if self.failed and layers.lost():
            os._exit(1)
        self.failed = False


def read(path: Path) -> list[dict]:
    """The outcome of each test; of one that failed more than once, as when its process ended too, the first."""
    found: dict[str, dict] = {}
    for outcome in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        if found.setdefault(outcome["name"], outcome)["outcome"] != "failed":
            found[outcome["name"]] = outcome
    return list(found.values())
