"""The options of the benchmarks. `pytest --benchmark` collects `benchmarks/` in place of `tests/`, and nothing else.

Tests marked `gpu` are skipped where there is no CUDA device.
"""

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).with_name("benchmarks")


def pytest_addoption(parser):
    group = parser.getgroup("fusedrnn")
    group.addoption("--benchmark", action="store_true", help="run the benchmarks, as `pytest benchmarks` does")
    group.addoption("--threads", default="1,all", help="numbers of threads to measure with (default 1,all)")
    group.addoption(
        "--budget", type=float, default=0.4, help="seconds for each side of a problem, beyond its fewest rounds"
    )
    group.addoption(
        "--results", type=Path, default=BENCHMARKS / "results", metavar="FOLDER",
        help="where rows are kept, replacing those of the same name, as --results=FOLDER (default benchmarks/results)",
    )  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if config.getoption("--benchmark"):
        config.args = [str(BENCHMARKS)]
        config.option.benchmark_only = True


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip("torch sees no CUDA device"))
