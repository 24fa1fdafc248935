"""Builds that take minutes begin when the tests have been collected, beside other tests: see cuda_builds.py."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cuda_builds import NEEDED_BY

NICE = ["nice", "-n", "19"] if shutil.which("nice") else []


class Builds:
    """Under way, and what they print."""

    def __init__(self, kinds: list[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fusedrnn-builds-"))
        with (self.folder / "log").open("w") as log:
            command = [*NICE, sys.executable, Path(__file__).with_name("cuda_builds.py"), self.folder, *kinds]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> Path:
        assert self.process.wait() == 0, (self.folder / "log").read_text()[-4000:]
        return self.folder

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


BUILDS = pytest.StashKey[Builds]()


def pytest_collection_finish(session):
    if session.config.option.collectonly:
        return
    files = {
        item.path.name
        for item in session.items
        if not any(mark.args == (True,) for mark in item.iter_markers("skipif"))
    }
    if kinds := [kind for name, kind in NEEDED_BY.items() if name in files]:
        session.config.stash[BUILDS] = Builds(kinds)


def pytest_unconfigure(config):
    if builds := config.stash.get(BUILDS, None):
        builds.end()


@pytest.fixture(scope="session")
def cuda_builds(request) -> Path:
    """The folder with those that the tests collected need."""
    return request.config.stash[BUILDS].wait()
