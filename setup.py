"""Builds the compiled kernels into one shared library, fusedrnn/_cpu.so. All else is in pyproject.toml.

The library is no Python module: it registers its ops through torch's stable ABI, so it links to no Python, and one
build serves every Python and every torch from 2.10 on.

FUSEDRNN_BUILD  auto (default): build, or go without where there is no compiler; cpu: build or fail; none: Python only
CXX, CXXFLAGS, MAX_JOBS  as everywhere: the compiler (g++), flags added at the end, jobs at a time
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = ["csrc/bindings.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
HEADERS = sorted(map(str, Path("csrc").rglob("*.h")))

CXX = os.environ.get("CXX") or "g++"
HAS_COMPILER = shutil.which(shlex.split(CXX)[0]) is not None
# No -march: an instruction set is a source file of its own, compiled with its flags and chosen at run time. On a
# processor that does not know the flags these files compile to stubs.
CXXFLAGS = (
    "-O3 -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-psabi "
    "-DTORCH_TARGET_VERSION=0x020a000000000000"
)
ISA_FLAGS = {
    "_avx2": "-mavx2 -mfma -mf16c",
    "_avx512": "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mavx2 -mf16c -Wno-maybe-uninitialized",
}
ISA_FLAGS["_amx"] = ISA_FLAGS["_avx512"] + " -mavx512bf16 -mamx-tile -mamx-bf16"
# torch is loaded before the library is, so no path to it is written down. libstdc++ comes before it: parts of it are
# in libc10 too, without a version, and would be taken from there.
LDFLAGS = "-shared -Wl,--as-needed -Wl,--no-undefined -lstdc++ -ltorch -ltorch_cpu -lc10"


def isa_flags(source: str) -> str:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ""
    return next((flags for suffix, flags in ISA_FLAGS.items() if Path(source).stem.endswith(suffix)), "")


def ninja_file(folder: Path) -> str:
    torch = importlib.util.find_spec("torch")
    if torch is None:
        raise CompileError("torch is not installed here: install it first, then build with --no-build-isolation")
    include, lib = (
        shlex.quote(str(Path(torch.origin).with_name(name))).replace("$", "$$") for name in ("include", "lib")
    )
    lines = [
        f"builddir = {folder}",
        "rule compile",
        f"  command = {CXX} -MD -MF $out.d {CXXFLAGS} $isa -isystem {include} {os.environ.get('CXXFLAGS', '')} "
        "-c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        "rule link",
        f"  command = {CXX} $in -L{lib} {LDFLAGS} -o $out",
        "  description = link $out",
    ]
    objects = [str(folder / Path(source).with_suffix(".o").name) for source in SOURCES]
    for source, obj in zip(SOURCES, objects, strict=True):
        lines += [f"build {obj}: compile {source}", f"  isa = {isa_flags(source)}"]
    return "\n".join([*lines, f"build {folder / 'library.so'}: link {' '.join(objects)}", ""])


class NinjaBuild(build_ext):
    """Builds under build/, which outlives pip's own temporary folders: the next build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        if not HAS_COMPILER:
            raise CompileError(f"{CXX} is not there: install a C++20 compiler, or name one with CXX")
        folder = Path("build", ext.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(folder))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([sys.executable, "-m", "ninja", "-f", folder / "build.ninja", *jobs]).returncode:
            raise CompileError("the C++ build failed, see above")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(folder / "library.so"), str(target))

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"


class StableWheel(bdist_wheel):
    """Tagged for the platform, and for any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def extensions() -> list[Extension]:
    mode = os.environ.get("FUSEDRNN_BUILD") or "auto"
    if mode == "cuda":
        raise SystemExit("FUSEDRNN_BUILD=cuda: the CUDA library is not there yet")
    if mode not in ("auto", "cpu", "none"):
        raise SystemExit(f"FUSEDRNN_BUILD: expected one of auto, cpu, cuda, none, got {mode!r}")
    if mode == "auto" and not HAS_COMPILER:
        print(f"fusedrnn: {CXX} is not there, going on without the compiled kernels (FUSEDRNN_BUILD=cpu insists)")
    elif mode != "none":
        return [Extension("fusedrnn._cpu", SOURCES, depends=HEADERS)]
    return []


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild, "bdist_wheel": StableWheel})
