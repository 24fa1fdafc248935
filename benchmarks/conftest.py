"""The record of what the benchmarks measured: a table at the end and one JSON file a machine."""

from __future__ import annotations

import pytest
import torch

from benchmarks.record import Record, describe_machine, file_name
from benchmarks.tables import table

RECORD = pytest.StashKey[Record]()


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
    return request.config.stash.setdefault(RECORD, Record())


def pytest_terminal_summary(terminalreporter, config):
    record = config.stash.get(RECORD, None)
    if record is None or not record.rows:
        return
    terminalreporter.section("fusedrnn against torch.nn")
    terminalreporter.write_line(table(record.rows))
    machine = describe_machine()
    name = file_name(machine["processor"], machine["instructions"], machine["gpu"] or "", *machine["versions"])
    path = config.getoption("--results") / name
    record.save(path)
    terminalreporter.write_line(f"kept in {path}")
