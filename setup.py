"""Builds the compiled kernels into shared libraries, fusedrnn/_cpu.so and fusedrnn/_cuda.so. All else is in
pyproject.toml.

They are no Python modules. That of the CPU registers its ops through torch's stable ABI, so it links to no Python, and
one build serves every Python and every torch from 2.10 on; that of the GPU is plain C functions and links to neither.

FUSEDRNN_BUILD  auto (default): what the compilers that are there can build, CUDA only for a torch that has it;
                cpu: that or fail; cuda: both or fail; none: Python only
CXX, CXXFLAGS, MAX_JOBS  as everywhere: the compiler (g++), flags added at the end, jobs at a time
NVCC                     nvcc, where it is not on the PATH
TORCH_CUDA_ARCH_LIST     as torch's own extensions read it, e.g. "9.0a;10.0+PTX": the GPUs to compile for
"""

import importlib.util
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CUDA = "fusedrnn._cuda"
SOURCES = ["csrc/bindings.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
CUDA_SOURCES = sorted(map(str, Path("csrc/cuda").glob("*.cu")))
HEADERS = sorted(str(path) for kind in ("*.h", "*.cuh") for path in Path("csrc").rglob(kind))

CXX = os.environ.get("CXX") or "g++"
HAS_COMPILER = shutil.which(shlex.split(CXX)[0]) is not None
NVCC = os.environ.get("NVCC") or "nvcc"
HAS_NVCC = shutil.which(NVCC) is not None
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
ISA_FLAGS["_avx512_bf16"] = ISA_FLAGS["_avx512"] + " -mavx512bf16"
ISA_FLAGS["_amx"] = ISA_FLAGS["_avx512_bf16"] + " -mamx-tile -mamx-bf16"
# torch is loaded before the library is, so no path to it is written down. libstdc++ comes before it: parts of it are
# in libc10 too, without a version, and would be taken from there.
LDFLAGS = "-shared -Wl,--as-needed -Wl,--no-undefined -lstdc++ -ltorch -ltorch_cpu -lc10"

NVCCFLAGS = "-I csrc/cuda -Xfatbin -compress-all -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas"
GPUS = "8.0;8.6;8.9;9.0a;10.0+PTX"


def isa_flags(source: str) -> str:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ""
    return next((flags for suffix, flags in ISA_FLAGS.items() if Path(source).stem.endswith(suffix)), "")


def torch_folder(name: str) -> str:
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise CompileError("torch is not installed here: install it first, then build with --no-build-isolation")
    return shlex.quote(str(Path(torch.origin).with_name(name))).replace("$", "$$")


def gpu_flags(gpus: str) -> str:
    """nvcc's, for a list as TORCH_CUDA_ARCH_LIST has it: machine code for each, and PTX where it says so."""
    flags = []
    for gpu in gpus.replace(";", " ").split():
        version, _, ptx = gpu.partition("+")
        number = version.replace(".", "")
        if not re.fullmatch(r"\d+\.\d[af]?", version) or ptx not in ("", "PTX"):
            raise CompileError(f"TORCH_CUDA_ARCH_LIST: expected numbers such as 9.0a or 10.0+PTX, got {gpu!r}")
        flags.append(f"-gencode arch=compute_{number},code=sm_{number}")
        if ptx:
            flags.append(f"-gencode arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


def cpu_rules() -> list[str]:
    return [
        "rule compile",
        f"  command = {CXX} -MD -MF $out.d {CXXFLAGS} $isa -isystem {torch_folder('include')} "
        f"{os.environ.get('CXXFLAGS', '')} -c $in -o $out",
        "rule link",
        f"  command = {CXX} $in -L{torch_folder('lib')} {LDFLAGS} -o $out",
    ]


def cuda_rules() -> list[str]:
    kernels = runpy.run_path("csrc/cuda/sources.py")
    sources, of_kernels = kernels["sum_of_sources"](), " ".join(kernels["NVCCFLAGS"])
    gpus = gpu_flags(os.environ.get("TORCH_CUDA_ARCH_LIST") or GPUS)
    flags = f"{of_kernels} {NVCCFLAGS} -DFUSEDRNN_SOURCES='\"{sources}\"' {gpus}"
    return [
        "rule compile",
        f"  command = {NVCC} -MD -MF $out.d {flags} -c $in -o $out",
        "rule link",
        f"  command = {NVCC} -shared $in -o $out",
    ]


def ninja_file(folder: Path, sources: list[str], rules: list[str]) -> str:
    """Two rules of three lines each, of which the last are the same for all."""
    compiling, linking = rules[:2], rules[2:]
    lines = [
        f"builddir = {folder}",
        *(*compiling, "  depfile = $out.d", "  deps = gcc", "  description = compile $in"),
        *(*linking, "  description = link $out"),
    ]
    objects = [str(folder / Path(source).with_suffix(".o").name) for source in sources]
    for source, obj in zip(sources, objects, strict=True):
        lines += [f"build {obj}: compile {source}", f"  isa = {isa_flags(source)}"]
    return "\n".join([*lines, f"build {folder / 'library.so'}: link {' '.join(objects)}", ""])


class NinjaBuild(build_ext):
    """Builds under build/, which outlives pip's own temporary folders: the next build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        if not HAS_COMPILER:
            raise CompileError(f"{CXX} is not there: install a C++20 compiler, or name one with CXX")
        of_gpu = ext.name == CUDA
        if of_gpu and not HAS_NVCC:
            raise CompileError(f"{NVCC} is not there: install the CUDA toolkit, or put its bin folder on the PATH")
        folder = Path("build", ext.name)
        folder.mkdir(parents=True, exist_ok=True)
        rules = cuda_rules() if of_gpu else cpu_rules()
        (folder / "build.ninja").write_text(ninja_file(folder, ext.sources, rules))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([sys.executable, "-m", "ninja", "-f", folder / "build.ninja", *jobs]).returncode:
            raise CompileError(f"the build of {ext.name} failed, see above")
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
    if mode not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"FUSEDRNN_BUILD: expected one of auto, cpu, cuda, none, got {mode!r}")
    if mode == "auto" and not HAS_COMPILER:
        print(f"fusedrnn: {CXX} is not there, going on without the compiled kernels (FUSEDRNN_BUILD=cpu insists)")
    elif mode != "none":
        wanted = [Extension("fusedrnn._cpu", SOURCES, depends=HEADERS)]
        if mode == "cuda" or (mode == "auto" and HAS_NVCC and torch_has_cuda()):
            wanted.append(Extension(CUDA, CUDA_SOURCES, depends=HEADERS))
        return wanted
    return []


def torch_has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.version.cuda is not None


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild, "bdist_wheel": StableWheel})
