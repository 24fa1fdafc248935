"""Corpora for the tests of the language model; none of them touches the network or the user's own files."""

import functools
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fusedrnn.lm import CORPORA, Corpus, TrainConfig, Trainer, load_corpus
from fusedrnn.lm.run_folder import RunFolder

SMALL = TrainConfig(hidden=16, epochs=2, batch_size=8, steps=10, max_tokens=1000)  # 12 batches an epoch


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a cache of the test's own, no FUSEDRNN_DATA, and no address but 127.0.0.1."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("FUSEDRNN_DATA", raising=False)
    monkeypatch.delenv("FUSEDRNN_BACKEND", raising=False)
    urlopen = urllib.request.urlopen

    def only_here(url: str, timeout: float):
        if urlsplit(url).hostname != "127.0.0.1":
            raise urllib.error.URLError("no network in tests")
        return urlopen(url, timeout=timeout)

    monkeypatch.setattr(urllib.request, "urlopen", only_here)


@functools.cache
def timemachine_file() -> Path | None:
    folder = os.environ.get("FUSEDRNN_DATA")
    path = Path(folder or "", CORPORA["timemachine"].file)
    return path if folder and path.exists() else None


timemachine_file()  # before `isolated` hides the variable


@pytest.fixture
def timemachine() -> Corpus:
    """The Time Machine, where the machine has it."""
    path = timemachine_file()
    if path is None:
        pytest.skip("FUSEDRNN_DATA names no folder that holds timemachine.txt")
    return load_corpus("timemachine", path)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    trainer = Trainer(SMALL, load_corpus("pydoc"))
    for _ in trainer.run(lambda: folder.begin(trainer) if trainer.step == 1 else folder.save(trainer)):
        pass
    folder.finish(trainer)
    return folder.path


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run folder of the test's own, tmp_path / 'run', left by SMALL on pydoc."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def small() -> Corpus:
    """English text that is always there."""
    return load_corpus("pydoc")
