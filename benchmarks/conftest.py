"""Options of the benchmarks, and the record of what they measured: a table at the end and one JSON file a machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.report import Record, table

RESULTS = Path(__file__).with_name("results")


def pytest_addoption(parser):
    group = parser.getgroup("fusedrnn")
    group.addoption("--threads", default="1,all", help="numbers of threads to measure with (default 1,all)")
    group.addoption("--budget", type=float, default=0.6, help="seconds a row may take, beyond its fewest rounds")
    group.addoption(
        "--results", type=Path, default=RESULTS, metavar="FOLDER",
        help="where the rows are kept, replacing those of the same name (default benchmarks/results)",
    )  # fmt: skip


def pytest_configure(config):
    config.stash[Record.KEY] = Record()


def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        given = [part.strip() for part in metafunc.config.getoption("--threads").split(",")]
        counts = sorted({torch.get_num_threads() if part == "all" else int(part) for part in given})
        metafunc.parametrize("threads", counts, ids=[f"threads{n}" for n in counts], indirect=True)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def budget(request) -> float:
    return request.config.getoption("--budget")


@pytest.fixture
def record(request) -> Record:
    return request.config.stash[Record.KEY]


def pytest_terminal_summary(terminalreporter, config):
    record = config.stash[Record.KEY]
    if not record.rows:
        return
    terminalreporter.section("fusedrnn against torch.nn")
    terminalreporter.write_line(table(record.rows))
    terminalreporter.write_line(f"kept in {record.save(config.getoption('--results'))}")
