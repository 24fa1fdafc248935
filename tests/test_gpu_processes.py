"""What `make gpu` starts ends with all that it started, at a timeout and otherwise."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import micro, processes


def assert_ends(child: Path) -> None:
    """The process whose number the file holds."""
    process = Path("/proc", child.read_text().strip())
    until = time.monotonic() + 5
    while process.exists() and process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def child(tmp_path) -> Path:
    return tmp_path / "child"


def test_at_a_timeout_nothing_lives_on_and_what_was_said_is_there(child):
    script = f"echo begun; echo late >&2; sleep 60 & echo $! > {child}; wait"
    with pytest.raises(subprocess.TimeoutExpired) as late:
        processes.captured(["sh", "-c", script], 0.5)
    assert (late.value.stdout, late.value.stderr) == ("begun\n", "late\n")
    assert_ends(child)


def test_what_does_not_listen_is_killed(child, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run(["sh", "-c", f"trap '' TERM; echo $$ > {child}; while :; do sleep 0.05; done"], 0.5)
    assert_ends(child)


def test_what_a_process_leaves_behind_is_ended(child):
    done = processes.run(["sh", "-c", f"sleep 60 & echo $! > {child}; exit 3"])
    assert done.returncode == 3
    assert_ends(child)


def test_a_stage_that_is_ended_ends_what_it_runs(child):
    stage = "from benchmarks.gpu import processes; processes.leave_on_sigterm(); processes.run(['sh', '-c', {!r}])"
    code = stage.format(f"echo $$ > {child}; exec sleep 60")
    with subprocess.Popen([sys.executable, "-c", code], cwd=micro.ROOT) as process:
        while not (child.exists() and child.read_text()):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert_ends(child)


def test_a_stage_that_is_ended_while_it_begins_something_ends_it(child):
    code = f"""
import subprocess, time
from benchmarks.gpu import processes

class Slow(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        time.sleep(1)  # SIGTERM comes here

subprocess.Popen = Slow
processes.leave_on_sigterm()
processes.run(["sh", "-c", "echo $$ > {child}; kill -TERM $PPID; exec sleep 60"])
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=micro.ROOT).returncode == 128 + signal.SIGTERM
    assert_ends(child)
