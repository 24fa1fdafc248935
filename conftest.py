"""`pytest --benchmark`, from the root: collect `benchmarks/` instead of `tests/`, and run nothing but benchmarks."""


def pytest_addoption(parser):
    group = parser.getgroup("fusedrnn")
    group.addoption("--benchmark", action="store_true", help="run the benchmarks, as `pytest benchmarks` does")


def pytest_load_initial_conftests(early_config, parser, args):
    if "--benchmark" in args:
        args[:] = [arg for arg in args if arg != "--benchmark"] + ["benchmarks", "--benchmark-only"]
