"""What takes minutes and tests ask for: the CUDA kernels built by g++ for the CPU and by nvcc for Hopper, and the
Triton kernels run by Triton's interpreter.

conftest.py begins it when the tests have been collected, once for all workers, in a process of its own:
python tests/beforehand.py FOLDER KIND...
"""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


def missing() -> str:
    """Why nothing can be built for the CPU, or nothing."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "needs Linux and g++"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    return "" if int(version.split(".")[0]) >= 12 else "needs g++ 12: there is no _Float16 before"


ROOT = Path(__file__).parent.parent
PROGRAMS = ("exchange", "grid", "layer", "matrix")
MICRO = ROOT / "benchmarks/gpu/micro"
KERNELS = ROOT / "csrc/cuda"
FOLDERS = (KERNELS / "host", KERNELS, MICRO)
# Kernels read bits as another type, and compare signed with unsigned numbers, as CUDA's own headers do.
WARNINGS = ["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-sign-compare"]
FLAGS = ["-std=c++20", "-pthread", "-fno-strict-aliasing", "-DFUSEDRNN_SM=90", *WARNINGS]


@dataclass(frozen=True)
class Mistake:
    """One made in a kernel: in its header `before`, at its place number `place`, is replaced by `after`; or one that
    another has made already, shown by these cases too."""

    name: str
    cases: str  # those whose names contain it run this kernel
    header: str
    before: str
    after: str
    found: str  # what is said, a pattern
    place: int = 0

    def make(self, folder: Path) -> None:
        if not self.header:
            return
        header = next(folder.rglob(self.header))
        parts = header.read_text(encoding="utf-8").split(self.before)
        assert len(parts) > self.place + 1, f"{self.header} has no {self.before}"
        first, rest = self.before.join(parts[: self.place + 1]), self.before.join(parts[self.place + 1 :])
        header.write_text(first + self.after + rest, encoding="utf-8")


WRONG, STUCK, EARLY = r"\d+ wrong values", "nobody can go on", "still under way"
ENDED, UNFINISHED = "CTA (that has|had) ended", f"{WRONG}|before it waited"
OUTSIDE = f"{WRONG}|outside of shared memory"
EXCHANGE, GRID, MATRIX, MEMORY = "exchange.cuh", "grid.cuh", "matrix.cuh", "memory.cuh"
WAIT = "patience.wait([&] { return try_wait<scope>(barrier, step >> 1 & 1); });"
ARM_ALL, ARM_ONE = (f"if (threadIdx.x == 0) arch::arrive_expecting(barrier, {n}bytes);" for n in ("n * ", ""))
LAST_BARRIER = "watch.stop(report);\n  arch::cluster_barrier();"
EXPECT = "arch::arrive_expecting(barrier, bytes);\n      arch::copy_bulk"
LAST_SYNC = "    }\n    __syncthreads();\n  }\n  watch.stop(report);\n  if (wrong)"
NO_LAST_SYNC = LAST_SYNC.replace("__syncthreads();", "")
ROWS, SWAPPED_ROWS = (f"r = row + g + j {row} 2 * 8, c = k + 2 * t + j {column} 2 * 8" for row, column in ("%/", "/%"))
STRIDES = "2 * tile, 2 * tile * (kDepth / 8)"

LOOP_END = "arch::wait_for_copies_but<under_way>();\n      __syncthreads();"
START_END = "arch::wait_for_copies_but<under_way>();\n    __syncthreads();"
ZEROS = "= {0, 0, 0, 0};\n      __syncthreads();"
STAGED, BEFORE_COPY = "lstm in both", "__syncthreads();\n      copy"
COPIED = "arch::wait_for_copies();\n      __syncthreads();"
BIAS_BARRIER = "    __syncthreads();\n    for (int k = threadIdx.x; k < P::blocks"


def in_both(name: str, before: str, after: str, headers=("forward.cuh", "backward.cuh")) -> tuple[str, list[Mistake]]:
    """Made in the time loops forward and backward."""
    ways = zip(("forward", "backward"), headers, strict=True)
    return "lstm", [Mistake(f"{name} {way}", f"lstm {way}", header, before, after, WRONG) for way, header in ways]


# Those of one line are made in the same program, each in another kernel.
MADE_TOGETHER = [
    ("exchange", [
        Mistake("no wait", "exchange by 16", EXCHANGE, WAIT, "", "more arrivals than"),
        Mistake("ring not armed again", "ring by", EXCHANGE, ARM_ONE, "", STUCK),
        Mistake("stores not released", "posted stores", EXCHANGE, "arch::cluster_barrier();\n  for (int k",
                "arch::cluster_barrier_without_release();\n  for (int k", f"{WRONG}|{ENDED}"),
    ]),
    ("exchange", [
        Mistake("one parity", "exchange by 16", EXCHANGE, "step >> 1 & 1", "0", "more arrivals than"),
        Mistake("CTA ends early", "ring by the copy engine", EXCHANGE, LAST_BARRIER, "watch.stop(report);", ENDED, 1),
    ]),
    in_both("no barrier", LOOP_END, LOOP_END.replace("__syncthreads();", "")),
    in_both("no wait for inputs", LOOP_END, "__syncthreads();"),
    in_both("no barrier at the start", START_END, START_END.replace("__syncthreads();", "")),
    in_both("no wait for inputs at the start", START_END, "__syncthreads();"),
    in_both("one buffer between steps", "% 2 * P::operand_buffer", "* 0", ("loop.cuh", "")),
    in_both("one buffer of results", "% 2 * P::out_buffer", "* 0", ("loop.cuh", "")),
    in_both("a stage too few", "% P::stages * P::ring_stage", "% (P::stages - 1) * P::ring_stage", ("loop.cuh", "")),
    ("lstm", [Mistake("weights staged over others", STAGED, "staging.cuh", BEFORE_COPY, "copy", WRONG)]),
    ("lstm", [Mistake("staged weights not waited for", STAGED, "staging.cuh", COPIED, COPIED[26:], WRONG)]),
    ("lstm", [Mistake("no barrier after staging", STAGED, "staging.cuh", COPIED, COPIED[:24], WRONG)]),
    ("lstm", [Mistake("inputs over staged weights", STAGED, "staging.cuh", "__syncthreads();\n  }", "}", WRONG)]),
    ("lstm", [
        Mistake("biases summed early", "lstm backward", "backward.cuh", BIAS_BARRIER, BIAS_BARRIER[21:], WRONG),
        Mistake("x not waited for", "lstm with x", "forward.cuh", "(concat ? 3 : 2)", "2", WRONG),
    ]),
    ("lstm", [Mistake("zeros over x", "lstm with x", "forward.cuh", ZEROS, ZEROS[: ZEROS.index("__")], WRONG)]),
    ("exchange", [Mistake("two inboxes", "exchange by 8", EXCHANGE, "kInboxes = 3", "kInboxes = 2", WRONG)]),
    ("exchange", [
        Mistake("armed for fewer", "exchange by 4", EXCHANGE, ARM_ALL, ARM_ALL.replace("n *", "(n - 1) *"), EARLY),
    ]),
    ("grid", [
        Mistake("one CTA too many", "grid barrier", GRID, "(i + 1) * gridDim.x", "(i + 1) * gridDim.x + 1", STUCK),
        Mistake("packets without a barrier", "tagged packets", GRID, LAST_SYNC, NO_LAST_SYNC, f"{STUCK}|{WRONG}"),
        Mistake("copies not waited for", "fetch by cp.async", MEMORY, "arch::wait_for_copies();", "", WRONG),
        Mistake("half the bytes expected", "fetch by the copy engine", EXCHANGE, EXPECT,
                EXPECT.replace("bytes)", "bytes / 2)"), EARLY),
    ]),
    ("matrix", [
        Mistake("no wait for wgmma", "wgmma", MATRIX, "arch::warpgroup_wait(d);", "", UNFINISHED),
        Mistake("rows of tiles swapped", "B in shared memory", MATRIX, "lane % 8 * pitch + lane / 8 * 8",
                "lane / 4 * pitch + lane % 4 * 8", OUTSIDE),
        Mistake("a lane is missing", "mma tf32", MATRIX, "Type::mma(d[i][j], a[i], b[j]);",
                "if (threadIdx.x) Type::mma(d[i][j], a[i], b[j]);", "31 threads wait for mma"),
    ]),
    ("matrix", [Mistake("no commit of wgmma", "wgmma", MATRIX, "arch::warpgroup_commit();", "", UNFINISHED)]),
    ("matrix", [Mistake("no fence of wgmma", "wgmma", MATRIX, "arch::warpgroup_fence();", "", "without a fence")]),
    ("matrix", [Mistake("wrong stride", "wgmma, N 16", MATRIX, STRIDES, STRIDES.replace("8)", "4)"), OUTSIDE)]),
    ("matrix", [
        Mistake("offsets swapped", "wgmma, N 16", MATRIX, STRIDES, "2 * tile * (kDepth / 8), 2 * tile", OUTSIDE),
        Mistake("registers swapped", "mma bf16", MATRIX, ROWS, SWAPPED_ROWS, WRONG),
    ]),
]  # fmt: skip


def gxx(*arguments: object) -> None:
    built = subprocess.run(["g++", *FLAGS, *map(str, arguments)], capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(built.stderr)


def begin_host(base: Path, pool: Executor) -> list[Future]:
    """The programs as they are, for each mistake the program that shows it, and the library of the `cuda` backend."""
    sources, include = base / "sources", [part for folder in FOLDERS for part in ("-I", folder)]
    shutil.copytree(ROOT / "tests/cuda", sources)
    gxx(*include, "-w", "-x", "c++-header", sources / "cases.h")  # compiled once for all that include it

    def build(name: str) -> None:
        gxx(*include, sources / f"{name}.cpp", "-o", base / name)

    def build_with(number: int, name: str, mistakes: list[Mistake]) -> None:
        folder = base / str(number)
        # All come along, since they include each other from their own folder first; but measure.cuh is precompiled.
        of_micro, of_kernels = folder / "micro", folder / "kernels/cuda"
        shutil.copytree(MICRO, of_micro, ignore=shutil.ignore_patterns("measure.cuh"))
        shutil.copytree(KERNELS, of_kernels, ignore=shutil.ignore_patterns("host", "arch*", "descriptor.cuh"))
        for shared in ("shape.h", "cells.h"):
            shutil.copy(ROOT / "csrc" / shared, of_kernels.parent)
        for mistake in mistakes:
            mistake.make(folder)
        gxx("-I", of_micro, "-I", of_kernels, *include, sources / f"{name}.cpp", "-o", folder / "program")

    def build_library() -> None:
        kernels = (part for name in ("forward", "backward") for part in ("-x", "c++", KERNELS / f"{name}.cu"))
        gxx("-O1", "-shared", "-fPIC", *include, *kernels, "-o", base / "library.so")

    building = [pool.submit(build_library), *(pool.submit(build, name) for name in PROGRAMS)]
    return building + [pool.submit(build_with, number, *made) for number, made in enumerate(MADE_TOGETHER)]


def begin_hopper(base: Path, pool: Executor) -> list[Future]:
    """benchmarks.cubins.Kernel of every kernel, in {forward,backward}.pickle."""
    sys.path.insert(0, str(ROOT))
    from benchmarks import cubins

    def build(way: str) -> None:
        (base / f"{way}.pickle").write_bytes(pickle.dumps(cubins.compiled(KERNELS / f"{way}.cu", "90a", base)))

    return [pool.submit(build, way) for way in cubins.WAYS]


def begin_interpreter(base: Path, pool: Executor) -> list[Future]:
    """pytest over tests/interpreted.py: what it prints, in `printed`, and then its exit status, in `status`."""

    def run() -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted.py"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        with (base / "printed").open("w") as out:
            status = subprocess.run(command, env=environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode
        (base / "status").write_text(str(status))

    return [pool.submit(run)]


KINDS: dict[str, Callable[[Path, Executor], list[Future]]] = {
    "interpreter": begin_interpreter,
    "host": begin_host,
    "hopper": begin_hopper,
}
NEEDED_BY = {"test_triton.py": "interpreter", "test_cuda_host.py": "host", "test_cuda_build.py": "hopper"}


@dataclass(frozen=True)
class Outcome:
    """Of one kind, in its folder, once it has ended: what went wrong, or nothing."""

    folder: Path

    def known(self) -> bool:
        return (self.folder / "outcome").exists()

    def error(self) -> str:
        return (self.folder / "outcome").read_text()

    def tell(self, error: str) -> None:
        (self.folder / "untold").write_text(error)
        (self.folder / "untold").rename(self.folder / "outcome")


def end(folder: Path, kind: str, pool: Executor) -> None:
    error = "stopped"
    try:
        for done in KINDS[kind](folder, pool):
            done.result()
        error = ""
    except Exception as wrong:
        error = str(wrong)[-4000:] or repr(wrong)
    finally:
        Outcome(folder).tell(error)


def main(base: Path, kinds: list[str]) -> None:
    """All kinds at once; each has its outcome in its own folder."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, ThreadPoolExecutor() as kinds_pool:
        for kind in kinds:
            (base / kind).mkdir()
        for done in [kinds_pool.submit(end, base / kind, kind, pool) for kind in kinds]:
            done.result()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
