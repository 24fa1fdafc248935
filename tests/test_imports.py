"""Imports run downwards only, and importing the package is quiet, quick and asks for nothing but torch."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fusedrnn
from fusedrnn import _extension

PACKAGE = Path(fusedrnn.__file__).parent

# From the top down. A module may import what lies below its own layer; modules of one folder may import each other.
LAYERS = [
    {"cli"},
    {"lm"},
    {"bench"},
    {"info"},
    {"__init__"},
    {"convert"},
    {"modules"},
    {"shortcut"},
    {"functional"},
    {"library"},
    {"stack"},
    {"autograd"},
    {"batching"},
    {"ops"},
    {"dispatch"},
    {"fastest"},
    {"backends"},
    {"backends.base"},
    {"kernels", "_extension", "_cuda_library", "reference", "gradients", "checks"},
    {"call", "states"},
    {"cells", "_elf"},
]


def layer(module: str) -> int:
    """Index in LAYERS of the longest prefix of `module` that is listed there."""
    name = module.removeprefix("fusedrnn").removeprefix(".") or "__init__"
    while name:
        for index, names in enumerate(LAYERS):
            if name in names:
                return index
        name = name.rpartition(".")[0]
    raise AssertionError(f"{module} is in no layer")


def module_name(path: Path) -> str:
    return ".".join(("fusedrnn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if _is_module(name) else node.module for name in submodules}
    return {name for name in found if name.partition(".")[0] == "fusedrnn"}


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_imports_run_downwards(path):
    module = module_name(path)
    upward = {
        name
        for name in imported(path)
        if layer(name) < layer(module) or (layer(name) == layer(module) and _folder(name) != _folder(module))
    }
    assert not upward, f"{module} imports {sorted(upward)}, which lie above it or beside it"


def _folder(module: str) -> str:
    """fusedrnn.lm of fusedrnn.lm.text, and the module itself where it lies in no folder."""
    return ".".join(module.split(".")[:2])


def test_only_modules_know_nn_module():
    bases = {"Module", "RNNBase", "RNNCellBase"}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE)
        if name.parts[0] in ("bench", "lm", "modules", "convert.py"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & bases
        assert not used, f"{name} uses nn.{used.pop()}"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)


IMPORT = """
import subprocess, sys, time

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"triton", "matplotlib", "rich", "safetensors", "platformdirs"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def refuse(*arguments, **options):
    raise AssertionError(f"started {arguments}")

sys.meta_path.insert(0, Missing())
import torch
subprocess.Popen.__init__ = refuse
before = time.perf_counter()
import fusedrnn
print(f"{1000 * (time.perf_counter() - before):.1f}", end="")
"""


def test_import_is_quiet_quick_and_needs_only_torch():
    run = run_python(IMPORT)
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    milliseconds = float(run.stdout)
    print(f"import fusedrnn after torch: {milliseconds} ms")
    assert milliseconds < 300  # 60 on a quiet machine


# A layer runs on whatever is left; then what info says, and what the cpu backend is refused with.
WITHOUT_LIBRARY = """
import torch, fusedrnn
from fusedrnn import info
x = torch.randn(3, 2, 4)
fusedrnn.GRU(4, 5)(x)
info.main()
try:
    fusedrnn.GRU(4, 5, backend="cpu")(x)
except fusedrnn.BackendError as error:
    print(error)
"""


def assert_explained(library: Path, reason: str) -> None:
    """Info, and the error of a layer told to run on cpu, name the library, the reason and the remedy."""
    run = run_python(WITHOUT_LIBRARY, FUSEDRNN_LIBRARY=str(library))
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    said = run.stdout.splitlines()
    for start in ("CPU library", "backend 'cpu' cannot run"):
        line = next(line for line in said if line.startswith(start))
        assert str(library) in line
        assert reason in line
        assert "pip install -e ." in line


def test_missing_library_is_explained(tmp_path):
    assert_explained(tmp_path / "missing.so", "is not there")


def test_garbage_library_is_explained(tmp_path):
    library = tmp_path / "garbage.so"
    library.write_bytes(b"no shared object" * 64)
    assert_explained(library, "does not load")


@pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason())
@pytest.mark.parametrize("kept", [20, 5_000, -1])
def test_cut_off_library_is_explained(tmp_path, kept):
    """Mapped by the loader, it would end the process."""
    library = tmp_path / "cut.so"
    library.write_bytes(_extension.path().read_bytes()[:kept])
    assert_explained(library, "does not load (the file is cut off)")


VERSION_0 = """
#include <torch/csrc/stable/library.h>
static int64_t version() { return 0; }
STABLE_TORCH_LIBRARY(fusedrnn_cpu, m) { m.def("version() -> int"); }
STABLE_TORCH_LIBRARY_IMPL(fusedrnn_cpu, CompositeExplicitAutograd, m) { m.impl("version", TORCH_BOX(&version)); }
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_stale_library_is_explained(tmp_path):
    source, library = tmp_path / "stale.cpp", tmp_path / "stale.so"
    source.write_text(VERSION_0)
    include, lib = (Path(torch.__file__).with_name(name) for name in ("include", "lib"))
    flags = ["-std=c++20", "-fPIC", "-shared", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", include]
    libraries = ["-L", lib, "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", *flags, source, *libraries, "-o", library], check=True, timeout=120)
    assert_explained(library, "was built from other sources (its ops are version 0")
