"""The wheel and the sdist: what is in them, what the library links to, and that they install and run elsewhere.

They are built from a copy of the tree, the wheel from the unpacked sdist; or FUSEDRNN_DIST names the folder that has
both, as in `make wheel`. Nothing is downloaded: no build isolation, and torch is the one that runs the tests.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
OBJECTS = Path("build", "fusedrnn._cpu")  # compiled again only where a source, a header or the command differs
TORCH = Path(torch.__file__).parent
LARGEST = 1_000_000  # bytes; 427,000 when this was written, of which the library 356,000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(os.environ.get("CXX") or "g++") is None, reason="no C++ compiler to build with"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF libraries"),
]


def run(*command, cwd: Path, **environment: str) -> str:
    """Output of the command; an error says what it printed. Settings for this checkout do not reach it."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("FUSEDRNN_", "PYTHON"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=outside | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    [path] = folder.glob(pattern)
    return path


def build_wheel(tree: Path, to: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-w", to, tree, cwd=tree,
        FUSEDRNN_BUILD="cpu")  # fmt: skip
    return only(to, "*.whl")


def copy_objects(tree: Path) -> None:
    if (ROOT / OBJECTS).is_dir():
        shutil.copytree(ROOT / OBJECTS, tree / OBJECTS)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The files a checkout has: package, sources, and those that must not be packed."""
    tree = tmp_path_factory.mktemp("tree") / "fusedrnn"
    built = shutil.ignore_patterns("__pycache__", "*.so", ".*", "build", "dist", "runs", "*.egg-info", "results")
    shutil.copytree(ROOT, tree, ignore=built)
    return tree


@pytest.fixture(scope="module")
def sdist(tree) -> Path:
    if given := os.environ.get("FUSEDRNN_DIST"):
        return only(Path(given), "*.tar.gz")
    run(sys.executable, "setup.py", "-q", "sdist", cwd=tree)
    return only(tree / "dist", "*.tar.gz")


@pytest.fixture(scope="module")
def from_sdist(sdist, tmp_path_factory) -> Path:
    """The wheel that the sdist alone builds."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = only(folder, "fusedrnn-*")
    copy_objects(unpacked)
    return build_wheel(unpacked, folder / "dist")


@pytest.fixture(scope="module")
def wheel(from_sdist) -> Path:
    given = os.environ.get("FUSEDRNN_DIST")
    return only(Path(given), "*.whl") if given else from_sdist


@pytest.fixture(scope="module")
def library(wheel, tmp_path_factory) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("fusedrnn/_cpu.so", tmp_path_factory.mktemp("library")))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment that has the wheel, and torch from here, found through a .pth file.

    Python reads no .pth files in a folder that a .pth file names: an editable install of this checkout stays unseen.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", python, "install", "--no-index",
        "--no-deps", wheel, cwd=folder)  # fmt: skip
    site = only(folder, "lib/python*/site-packages")
    (site / "torch-of-the-tests.pth").write_text(f"{TORCH.parent}\n", encoding="utf-8")
    return python


def of_package(tree: Path) -> set[str]:
    """Its modules, the recipes of the trainer, and what says that it is typed."""
    package = tree / "fusedrnn"
    files = [*package.rglob("*.py"), *package.glob("lm/presets/*.toml"), package / "py.typed"]
    return {path.relative_to(tree).as_posix() for path in files}


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(only_name(archive, name)).decode()


def only_name(archive: zipfile.ZipFile, end: str) -> str:
    [name] = [name for name in archive.namelist() if name.endswith(f".dist-info/{end}")]
    return name


def test_the_wheel_holds_the_package_its_library_and_the_licence_and_nothing_else(wheel, tree):
    version = wheel.name.split("-")[1]
    expected = of_package(tree) | {"fusedrnn/_cpu.so"}
    about = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    assert names_in(wheel) == expected | {f"fusedrnn-{version}.dist-info/{name}" for name in about}
    assert read(wheel, "licenses/LICENSE") == (tree / "LICENSE").read_text(encoding="utf-8")
    assert read(wheel, "top_level.txt").split() == ["fusedrnn"]


def test_the_wheel_serves_any_python_on_one_platform_and_says_what_it_needs(wheel):
    assert re.fullmatch(r"fusedrnn-[\w.]+-py3-none-(?!any)\w+\.whl", wheel.name)
    about = Parser().parsestr(read(wheel, "WHEEL"))
    assert about.get_all("Tag") == [wheel.stem.split("-", 2)[2]]
    assert about["Root-Is-Purelib"] == "false"
    needs = Parser().parsestr(read(wheel, "METADATA"))
    assert [need for need in needs.get_all("Requires-Dist") if "extra" not in need] == ["torch>=2.10"]
    assert (needs["Requires-Python"], needs["License-Expression"]) == (">=3.11", "BSD-3-Clause")


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < LARGEST


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm, which comes with the compiler's linker")
def test_the_library_takes_from_torch_only_its_stable_c_functions(library):
    """Of torch: functions of its C headers, whose names carry no types. Of C++: what libstdc++ has under a version.

    A name without a version could be found in any library; libc10 has parts of libstdc++, by accident of its build.
    """
    stable = [TORCH / "include/torch/csrc/stable/c", TORCH / "include/torch/csrc/inductor/aoti_torch"]
    files = [path for folder in stable for path in folder.rglob("*.h") if path.name != "shim_deprecated.h"]
    declared = set(re.findall(r"\b(?:aoti_)?torch_\w+", "\n".join(path.read_text(encoding="utf-8") for path in files)))
    lines = run("nm", "-D", "--undefined-only", library, cwd=library.parent).splitlines()
    undefined = [(kind, symbol) for kind, symbol in (line.split()[-2:] for line in lines) if kind != "w"]
    of_torch = {symbol for _, symbol in undefined if re.match(r"(aoti_)?torch_", symbol)}
    assert "torch_parallel_for" in of_torch
    assert of_torch <= declared
    others = {symbol for _, symbol in undefined} - of_torch
    assert not {symbol for symbol in others if not re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC|GOMP)_[\d.]+$", symbol)}


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf, which comes with the compiler's linker")
def test_the_library_links_to_torch_and_the_runtime_alone_and_names_no_folder(library):
    dynamic = run("readelf", "-d", "-W", library, cwd=library.parent)
    needed = {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)}
    assert "libtorch_cpu" in needed
    runtime = {"libstdc++", "libgcc_s", "libgomp", "libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}
    assert needed <= runtime | {"libtorch_cpu"}
    assert not re.search("RPATH|RUNPATH", dynamic)


def test_the_sdist_holds_every_source_and_no_tests_and_builds_the_same_wheel(sdist, tree, wheel, from_sdist):
    with tarfile.open(sdist) as archive:
        inside = {Path(*Path(member.name).parts[1:]).as_posix() for member in archive if member.isfile()}
    sources = {p.relative_to(tree).as_posix() for p in (tree / "csrc").rglob("*") if p.is_file()}
    sources |= of_package(tree) | {
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    }
    assert {name for name in inside if "egg-info" not in name} == sources | {"PKG-INFO", "setup.cfg"}
    assert names_in(from_sdist) == names_in(wheel)
    assert from_sdist.name == wheel.name


TRAINING_STEP = """
import torch, fusedrnn
print(fusedrnn.__file__)
for name in ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"):
    found = []
    for library, options in ((torch.nn, {}), (fusedrnn, {"backend": "cpu"})):
        torch.manual_seed(0)
        net = getattr(library, name)(4, 40, dtype=torch.float64, **options)
        optimizer = torch.optim.Adam(net.parameters())
        x = torch.randn(*(() if "Cell" in name else (7,)), 3, 4, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            out = net(x)
            y = out if isinstance(out, torch.Tensor) else out[0]
            y.sin().sum().backward()
            optimizer.step()
        found.append([y, x.grad, *net.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
"""


def test_the_installed_wheel_trains_as_torch_does_on_the_compiled_backend(python, tmp_path):
    where = Path(run(python, "-I", "-c", TRAINING_STEP, cwd=tmp_path).strip())
    assert where.is_relative_to(python.parents[1])


def test_the_installed_wheel_tells_what_it_is_and_has_its_command(python, tmp_path):
    told = run(python, "-I", "-m", "fusedrnn.info", cwd=tmp_path)
    library = only(python.parents[1], "lib/python*/site-packages/fusedrnn/_cpu.so")
    assert f"{library}, loaded" in told
    assert "backend cpu: available" in told
    assert told == run(python.with_name("fusedrnn"), "info", cwd=tmp_path)
