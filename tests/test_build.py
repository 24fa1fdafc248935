"""The build's one switch, and the rules that no linter knows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".md")


def setup_py(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FUSEDRNN_BUILD": "gpu"}, "FUSEDRNN_BUILD: expected one of auto, cpu, cuda, none, got 'gpu'"),
        ({"FUSEDRNN_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": "hopper"}, "error: TORCH_CUDA_ARCH_LIST: expected numbers"),
        ({"FUSEDRNN_BUILD": "cuda", "NVCC": "no-such-nvcc"}, "error: no-such-nvcc is not there"),
        ({"FUSEDRNN_BUILD": "cpu", "CXX": "no-such-compiler"}, "error: no-such-compiler is not there"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_build_refuses_in_one_line(environment, said, tmp_path):
    run = setup_py("build_ext", "--build-lib", str(tmp_path), **environment)
    assert run.returncode == 1
    assert run.stderr.startswith(said)
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(("mode", "lines"), [("auto", 1), ("none", 0)])
def test_build_goes_on_without_a_compiler(mode, lines, tmp_path):
    run = setup_py("build_ext", "--build-lib", str(tmp_path), FUSEDRNN_BUILD=mode, CXX="no-such-compiler")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == lines
    assert not list(tmp_path.iterdir())


def test_files_are_small_and_named_for_what_they_hold():
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.splitlines() if name.endswith(SOURCES) and (ROOT / name).is_file()]
    assert files
    assert not [path for path in files if path.name == "utils.py"]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    lengths.pop("benchmarks/README.md", None)  # a report, written by a program
    assert not {name: length for name, length in lengths.items() if length > 420}
