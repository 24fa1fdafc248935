"""What takes minutes begins when the tests have been collected, beside other tests: see beforehand.py. Of several
workers (pytest -n) the first begins it, for all.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from beforehand import NEEDED_BY, Outcome

NICE = ["nice", "-n", "5"] if shutil.which("nice") else []
FIRST = "gw0"
FOLDER = pytest.StashKey[Path]()  # their folder
PROCESS = pytest.StashKey[subprocess.Popen]()


def pytest_configure(config):
    of_worker = getattr(config, "workerinput", {}).get("beforehand")
    config.stash[FOLDER] = Path(of_worker or tempfile.mkdtemp(prefix="fusedrnn-tests-"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["beforehand"] = str(node.config.stash[FOLDER])


def pytest_collection_finish(session):
    worker = getattr(session.config, "workerinput", {}).get("workerid", FIRST)
    if session.config.option.collectonly or worker != FIRST:
        return
    files = {
        item.path.name
        for item in session.items
        if not any(mark.args == (True,) for mark in item.iter_markers("skipif"))
    }
    if kinds := [kind for name, kind in NEEDED_BY.items() if name in files]:
        folder = session.config.stash[FOLDER]
        command = [*NICE, sys.executable, Path(__file__).with_name("beforehand.py"), folder, *kinds]
        session.config.stash[PROCESS] = process = subprocess.Popen(command, start_new_session=True)
        (folder / "pid").write_text(str(process.pid))


def pytest_unconfigure(config):
    if hasattr(config, "workerinput"):
        return
    folder = config.stash[FOLDER]
    if any(not Outcome(kind).known() for kind in folder.iterdir() if kind.is_dir()):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def beforehand(request):
    """The folder of a kind, once it is done."""

    def done(kind: str) -> Path:
        folder = request.config.stash[FOLDER] / kind
        outcome = Outcome(folder)
        while not outcome.known():
            time.sleep(0.2)
        assert not outcome.error(), outcome.error()
        return folder

    return done
