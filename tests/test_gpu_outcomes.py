"""The stage of the GPU's tests, on made tests: outcomes are kept whatever ends, and no test costs another one."""

import shutil
import time

import pytest

from benchmarks.gpu import stages

FILE = "tests/gpu/test_made.py"
MADE = """
import os, signal, time, pytest
pytestmark = pytest.mark.gpu

def test_cuda_passes(): pass
def test_cuda_fails(): assert False, "too far"
def test_cuda_after_it(): pass
def test_cuda_is_skipped(): pytest.skip("not built")
def test_other(): pass
"""
CONFIG = '[tool.pytest.ini_options]\naddopts = ["-p", "no:cacheprovider"]\nmarkers = ["gpu"]\n'


@pytest.fixture
def outcomes(tmp_path, monkeypatch):
    """What the stage keeps of the tests in a made file."""

    def run(made: str, seconds: float) -> tuple[int, dict[str, tuple[str, str]]]:
        project = tmp_path / "project"
        (project / FILE).parent.mkdir(parents=True)
        (project / FILE).write_text(made)
        (project / "pyproject.toml").write_text(CONFIG)
        for package in ("benchmarks", "fusedrnn"):
            (project / package).symlink_to(stages.micro.ROOT / package)
        monkeypatch.setattr(stages, "RESULTS", tmp_path / "earlier")
        monkeypatch.setattr(stages.micro, "ROOT", project)
        place = stages.Place(tmp_path)
        status = stages.run_tests(place, time.monotonic() + seconds)
        shutil.rmtree(project)
        assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
        return status, {t["name"].removeprefix(f"{FILE}::"): (t["outcome"], t["said"]) for t in place.tests("tests")}

    return run


@pytest.mark.parametrize("xdist", [True, False], ids=["workers", "one process"])
def test_one_that_fails_costs_no_other(outcomes, monkeypatch, xdist):
    """Without a GPU the process of a failed test counts as lost."""
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "1")
    if not xdist:
        monkeypatch.setattr(stages.importlib.util, "find_spec", lambda name: None)
    status, found = outcomes(MADE, 120)
    assert status == 1
    assert {name: outcome for name, (outcome, _) in found.items()} == {
        "test_cuda_passes": "passed",
        "test_cuda_fails": "failed",
        "test_cuda_after_it": "passed",
        "test_cuda_is_skipped": "skipped",
        "test_other": "passed",
    }
    assert "too far" in found["test_cuda_fails"][1] and "not built" in found["test_cuda_is_skipped"][1]


def test_a_run_that_ends_early_or_is_cut_off_keeps_what_it_had(outcomes, monkeypatch):
    monkeypatch.setattr(stages.importlib.util, "find_spec", lambda name: None)
    waits = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}); time.sleep(60)"  # as for a GPU
    status, found = outcomes(f"{MADE}def test_cuda_ends(): os._exit(7)\ndef test_waits(): {waits}\n", 25)
    assert status == 1
    assert {"test_cuda_passes", "test_cuda_fails", "test_cuda_after_it", "test_other"} < found.keys()
    assert found["tests: cuda"] == ("failed", "pytest ended with status 7")
    outcome, said = found["tests: not cuda"]
    assert outcome == "skipped" and said.startswith("cut off after ")
