"""What takes minutes and tests ask for: the CUDA kernels built by g++ for the CPU, and those that nvcc compiled written
down again for it; the Triton kernels run by its interpreter.

conftest.py begins it when the tests have been collected, once for all workers, in a process of its own:
python tests/beforehand.py FOLDER KIND...
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ptx


def missing() -> str:
    """Why nothing can be built for the CPU, or nothing."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        return "needs Linux and g++"
    version = subprocess.run(["g++", "-dumpversion"], capture_output=True, text=True, check=True).stdout
    return "" if int(version.split(".")[0]) >= 12 else "needs g++ 12: there is no _Float16 before"


ROOT = Path(__file__).parent.parent
PROGRAMS = ("cluster", "exchange", "grid", "layer", "matrix")
PTX = {"layer": ("80", "90a"), "cluster": ("90a",)}  # the GPUs whose kernels a program is run with
MICRO = ROOT / "benchmarks/gpu/micro"
KERNELS, WAYS = ROOT / "csrc/cuda", ("forward", "backward")
RACES = ROOT / "tests/cuda/races.cpp"
INCLUDE = [part for folder in (KERNELS / "host", KERNELS, MICRO, ROOT / "tests/cuda") for part in ("-I", folder)]
# Kernels read bits as another type, and compare signed with unsigned numbers, as CUDA's own headers do.
WARNINGS = ["-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-sign-compare"]
FLAGS = ["-std=c++20", "-pthread", "-fno-strict-aliasing", "-DFUSEDRNN_SM=90", *WARNINGS]


@dataclass(frozen=True)
class Mistake:
    """One made in a kernel when its program is told so: in its header the statements or the expression `before`, at its
    place number `place`, or at all of them, are replaced by `after`; or one that the one before it has made already,
    shown by these cases too."""

    name: str
    cases: str  # those whose names contain it run this kernel
    header: str
    before: str
    after: str
    found: str  # what is said, a pattern
    place: int | None = 0


WRONG, STUCK, EARLY = r"\d+ wrong values", "nobody can go on", "still under way"
ENDED, UNFINISHED = "CTA (that has|had) ended", f"{WRONG}|before it waited"
OUTSIDE = f"{WRONG}|outside of shared memory"
EXCHANGE, GRID, MATRIX, MEMORY = "exchange.cuh", "grid.cuh", "matrix.cuh", "memory.cuh"
WAIT = "patience.wait([&] { return try_wait<scope>(barrier, step >> 1 & 1); });"
ARM_ALL, ARM_ONE = (f"if (threadIdx.x == 0) arch::arrive_expecting(barrier, {n}bytes);" for n in ("n * ", ""))
BARRIER, EXPECT = "__syncthreads();", "arch::arrive_expecting(barrier, bytes);"
ENDING, UNRELEASED = (f"watch.stop(report);\n  arch::cluster_barrier{how}();" for how in ("", "_without_release"))
FRAGMENT = "f[j] = two_bf16(a_of(r, c), a_of(r, c + 1));"
TILES = "arch::describe_tiles(start + 2 * 2 * tile * k, 2 * tile, 2 * tile * (kDepth / 8))"
SWAPPED_TILES = "arch::describe_tiles(start + 2 * 2 * tile * k, 2 * tile * (kDepth / 8), 2 * tile)"

INPUTS = "arch::wait_for_copies_but<under_way>();"
LOOP_END, START_END = (f"{INPUTS}\n{indent}{BARRIER}" for indent in (" " * 6, " " * 4))
BUFFER, RESULTS, STAGE = "step % 2 * operand_buffer", "step % 2 * out_buffer", "step % stages * ring_stage"
CLUSTER, FORWARD_BY_CLUSTERS, BACKWARD_BY_CLUSTERS = "cluster.cuh", "cluster_forward.cuh", "cluster_backward.cuh"
PACKETS, BACKWARD_OF_GRIDS = "packets.cuh", "grid_backward.cuh"
OWN_NUMBER = "static_cast<uint32_t>(found[k][half].high) == number_of(step)"
WAIT_FOR_PACKETS = "wait_for(barrier(step), step >> 1 & 1);"
EXPECT_WAVE = "if (threadIdx.x == 0) expect(step, wave);"
EXPECT_SLOTS = "if (threadIdx.x == 0) arch::arrive_expecting(barrier(step), buffer);"
WAIT_FOR_SLOTS = "wait_for(barrier(step), (step - 1) >> 1 & 1);"
ANNOUNCED = "if (threadIdx.x % 32 == 0) arch::arrive(barrier(step, 0));"
ASTRAY = f"{WRONG}|more arrivals than"
STAGED, COPIED = "lstm in both", f"arch::wait_for_copies();\n      {BARRIER}"


def in_both(name: str, before: str, after: str, headers=("forward.cuh", "backward.cuh")) -> list[Mistake]:
    """Made in the time loops forward and backward."""
    ways = zip(("forward", "backward"), headers, strict=True)
    return [Mistake(f"{name} {way}", f"lstm {way}", header, before, after, WRONG) for way, header in ways]


MISTAKES = {  # of a program
    "exchange": [
        Mistake("no wait", "exchange by 16", EXCHANGE, WAIT, "", "more arrivals than"),
        Mistake("one parity", "exchange by 16", EXCHANGE, WAIT, WAIT.replace("step >> 1 & 1", "0"),
                "more arrivals than"),
        Mistake("ring not armed again", "ring by", EXCHANGE, ARM_ONE, "", STUCK),
        Mistake("stores not released", "posted stores", EXCHANGE, ENDING, UNRELEASED, f"{WRONG}|{ENDED}", 2),
        Mistake("CTA ends early", "ring by the copy engine", EXCHANGE, ENDING, "watch.stop(report);", ENDED, 1),
        Mistake("two inboxes", "exchange by 8", EXCHANGE, "turn + 1 < kInboxes", "turn + 1 < kInboxes - 1", WRONG),
        Mistake("armed for fewer", "exchange by 4", EXCHANGE, ARM_ALL, ARM_ALL.replace("n *", "(n - 1) *"), EARLY),
    ],
    "lstm": [
        *in_both("no barrier", LOOP_END, INPUTS),
        *in_both("no wait for inputs", LOOP_END, BARRIER),
        *in_both("no barrier at the start", START_END, INPUTS),
        *in_both("no wait for inputs at the start", START_END, BARRIER),
        *in_both("one buffer between steps", BUFFER, "0", ("plan.cuh", "")),
        *in_both("one buffer of results", RESULTS, "0", ("plan.cuh", "")),
        *in_both("a stage too few", STAGE, STAGE.replace("stages", "(stages - 1)"), ("plan.cuh", "")),
        Mistake("weights staged over others", STAGED, "staging.cuh", BARRIER, "", WRONG),
        Mistake("staged weights not waited for", STAGED, "staging.cuh", COPIED, BARRIER, WRONG),
        Mistake("no barrier after staging", STAGED, "staging.cuh", COPIED, "arch::wait_for_copies();", WRONG),
        Mistake("inputs over staged weights", STAGED, "staging.cuh", BARRIER, "", WRONG, 2),
        Mistake("biases summed early", "lstm backward", "backward.cuh", BARRIER, "", WRONG, 2),
        Mistake("x not waited for", "lstm with x", "forward.cuh", LOOP_END,
                LOOP_END.replace("under_way", "under_way + 1"), WRONG),
        Mistake("zeros over x", "lstm with x", "forward.cuh", BARRIER, "", WRONG, 1),
    ],
    "cluster": [
        Mistake("no wait for a wave", "forward", FORWARD_BY_CLUSTERS, "exchange_.wait(step, wave);", "", ASTRAY),
        Mistake("a wave not armed again", "forward", CLUSTER, EXPECT_WAVE, "", STUCK),
        Mistake("a wave armed for fewer", "forward", CLUSTER, "peers * P::columns * slice",
                "peers * P::columns * slice / 2", f"{EARLY}|{ASTRAY}"),
        Mistake("pushed before it is written", "forward", CLUSTER, "__syncwarp();", "", WRONG),
        Mistake("own slice not announced", "forward", CLUSTER, ANNOUNCED, "", STUCK),
        Mistake("one buffer for all steps", "forward", "plan.cuh", BUFFER, "0", WRONG),
        Mistake("sums not waited for", "parts", FORWARD_BY_CLUSTERS, BARRIER, "", WRONG, 1),
        Mistake("slots not waited for", "backward", CLUSTER, WAIT_FOR_SLOTS, "", ASTRAY),
        Mistake("slots not armed again", "backward", CLUSTER, EXPECT_SLOTS, "", STUCK),
        Mistake("one buffer of slots", "backward", CLUSTER, "step % 2 * buffer", "0", WRONG, None),
        Mistake("gates not waited for", "backward", BACKWARD_BY_CLUSTERS, BARRIER, "", WRONG),
        Mistake("packets not waited for", "of a grid", PACKETS, OWN_NUMBER, "true", WRONG),
        Mistake("packets of any earlier step", "of a grid", PACKETS, OWN_NUMBER, "found[k][half].high != 0", WRONG),
        Mistake("one buffer of packets", "grid of CTAs", PACKETS, "step % 2 * buffer", "0", f"{STUCK}|{WRONG}"),
        Mistake("packets before they are written", "of a grid", PACKETS, "__syncwarp();", "", WRONG),
        Mistake("not passed on to all", "of a grid", PACKETS, "other < P::cluster", "other < 1", STUCK),
        Mistake("operand not waited for", "of a grid", PACKETS, WAIT_FOR_PACKETS, "", ASTRAY),
        Mistake("operand not armed again", "of a grid", PACKETS, "if (threadIdx.x == 0) expect(step);", "", STUCK),
        Mistake("sums of a grid not waited for", "of a grid backward", BACKWARD_OF_GRIDS, BARRIER, "", WRONG),
    ],
    "grid": [
        Mistake("one CTA too many", "grid barrier", GRID, "(i + 1) * gridDim.x", "(i + 1) * gridDim.x + 1", STUCK),
        Mistake("packets without a barrier", "tagged packets", GRID, BARRIER, "", f"{STUCK}|{WRONG}", 3),
        Mistake("copies not waited for", "fetch by cp.async", MEMORY, "arch::wait_for_copies();", "", WRONG),
        Mistake("half the bytes expected", "fetch by the copy engine", EXCHANGE, EXPECT,
                EXPECT.replace("bytes)", "bytes / 2)"), EARLY, 2),
    ],
    "matrix": [
        Mistake("no wait for wgmma", "wgmma", MATRIX, "arch::warpgroup_wait(d);", "", UNFINISHED),
        Mistake("no commit of wgmma", "wgmma", MATRIX, "arch::warpgroup_commit();", "", UNFINISHED),
        Mistake("no fence of wgmma", "wgmma", MATRIX, "arch::warpgroup_fence();", "", "without a fence"),
        Mistake("rows of tiles swapped", "B in shared memory", MATRIX, "lane % 8 * pitch + lane / 8 * 8",
                "lane / 4 * pitch + lane % 4 * 8", OUTSIDE),
        Mistake("a lane is missing", "mma tf32", MATRIX, "Type::mma(d[i][j], a[i], b[j]);",
                "if (threadIdx.x) Type::mma(d[i][j], a[i], b[j]);", "31 threads wait for mma"),
        Mistake("registers swapped", "mma bf16", MATRIX, FRAGMENT,
                FRAGMENT.replace("[j]", "[j / 2 + j % 2 * 2]"), WRONG),
        Mistake("wrong stride", "wgmma, N 16", MATRIX, TILES, TILES.replace("/ 8", "/ 4"), OUTSIDE),
        Mistake("offsets swapped", "wgmma, N 16", MATRIX, TILES, SWAPPED_TILES, OUTSIDE),
    ],
}  # fmt: skip


def with_mistakes(text: str, of_header: dict[int, Mistake]) -> str:
    """A header in which a mistake is made where cases::mistake is its number."""
    made: dict[int, dict[int, Mistake]] = {}  # where
    for number, mistake in of_header.items():
        places = [found.start() for found in re.finditer(re.escape(mistake.before), text)]
        assert len(places) > (mistake.place or 0), f"{mistake.header} has no {mistake.before}"
        for place in places if mistake.place is None else [places[mistake.place]]:
            made.setdefault(place, {})[number] = mistake
    end = len(text)
    for start, mistakes in sorted(made.items(), reverse=True):
        (before,) = {mistake.before for mistake in mistakes.values()}
        assert start + len(before) <= end, f"{before} is changed twice"
        end, written = start, before
        for number, mistake in mistakes.items():
            if before.endswith(";"):
                written = f"{{ if (cases::mistake == {number}) {{ {mistake.after} }} else {{ {written} }} }}"
            else:
                written = f"(cases::mistake == {number} ? {mistake.after} : {written})"
        text = text[:start] + written + text[start + len(before) :]
    return text


def gxx(*arguments: object) -> None:
    built = subprocess.run(["g++", *FLAGS, *map(str, arguments)], capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(built.stderr)


def begin_library(base: Path, pool: Executor) -> list[Future[Path]]:
    """Its two halves."""

    def build(way: str) -> Path:
        half = base / f"{way}.o"
        gxx("-O1", "-c", "-fPIC", *INCLUDE, "-x", "c++", KERNELS / f"{way}.cu", "-o", half)
        return half

    return [pool.submit(build, way) for way in WAYS]


def begin_host(base: Path, pool: Executor) -> list[Future]:
    """The programs as they are and, in mistaken/, with the mistakes that can be made in them, and the library of the
    `cuda` backend."""
    sources = base / "sources"
    shutil.copytree(ROOT / "tests/cuda", sources)
    gxx(*INCLUDE, "-w", "-x", "c++-header", sources / "cases.h")  # compiled once for all that include it first

    def build(name: str) -> None:
        gxx(*INCLUDE, sources / f"{name}.cpp", "-o", base / name)

    def build_with_mistakes(name: str) -> None:
        folder = base / "mistaken" / f"{name}-sources"
        # All come along, since they include each other from their own folder first; but measure.cuh is precompiled.
        of_micro, of_kernels = folder / "micro", folder / "kernels/cuda"
        shutil.copytree(MICRO, of_micro, ignore=shutil.ignore_patterns("measure.cuh"))
        shutil.copytree(KERNELS, of_kernels, ignore=shutil.ignore_patterns("host", "arch*", "descriptor.cuh"))
        for shared in ("shape.h", "cells.h"):
            shutil.copy(ROOT / "csrc" / shared, of_kernels.parent)
        for header in {mistake.header for mistake in MISTAKES[name] if mistake.header}:
            of_header = {k: mistake for k, mistake in enumerate(MISTAKES[name], 1) if mistake.header == header}
            file = next(folder.rglob(header))
            file.write_text(with_mistakes(file.read_text(encoding="utf-8"), of_header), encoding="utf-8")
        gxx("-I", of_micro, "-I", of_kernels, *INCLUDE, sources / f"{name}.cpp", "-o", base / "mistaken" / name)

    halves = begin_library(base, pool)
    building = [pool.submit(build_with_mistakes, name) for name in MISTAKES]
    building += [pool.submit(build, name) for name in PROGRAMS]
    gxx("-shared", *(half.result() for half in halves), "-o", base / "library.so")
    return building


def begin_ptx(base: Path, pool: Executor) -> list[Future]:
    """Programs with the kernels as nvcc compiles them, PROGRAM-GPU/program, the module of these beside it."""

    def build(name: str) -> None:
        compiled, races = (base / f"{part}.o" for part in (name, f"races-{name}"))
        gxx("-c", *INCLUDE, ROOT / f"tests/cuda/{name}.cpp", "-o", compiled)
        gxx("-c", "-O2", *INCLUDE, RACES, "-o", races)
        kernels = ptx.kernels_of(compiled)
        for sm in PTX[name]:
            folder = base / f"{name}-{sm}"
            folder.mkdir()
            source = ptx.instances(kernels, folder / "kernels.cu")
            module = ptx.module(source, nvcc(), sm, folder / "kernels.ptx")
            ptx.program([compiled, races], module, partial(gxx, *INCLUDE), folder / "program")

    return [pool.submit(build, name) for name in PTX]


def begin_shipped(base: Path, pool: Executor) -> list[Future]:
    """The library of the `cuda` backend with all kernels as nvcc compiles them for sm_90a. No test asks for it."""

    def build(way: str) -> list[Path]:
        objects = []
        module = ptx.module(KERNELS / f"{way}.cu", nvcc(), "90a", base / f"{way}.ptx")
        for number, part in enumerate(ptx.parts(module, 12)):
            objects.append(base / f"{way}-{number}.o")
            ptx.program([], part, partial(gxx, *INCLUDE), objects[-1], "-c", "-fPIC")
        return objects

    halves, parts, races = begin_library(base, pool), [pool.submit(build, way) for way in WAYS], base / "races.o"
    gxx("-c", "-O2", "-fPIC", *INCLUDE, RACES, "-o", races)
    objects = [*(half.result() for half in halves), *(path for part in parts for path in part.result()), races]
    gxx("-shared", *objects, "-o", base / "library.so")
    return []


def nvcc() -> tuple[str, ...]:
    return ("nvcc", *runpy.run_path(str(KERNELS / "sources.py"))["NVCCFLAGS"], f"-I{KERNELS}")


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
    "ptx": begin_ptx,
    "shipped": begin_shipped,
}
NEEDED_BY = {"test_triton.py": "interpreter", "test_cuda_host.py": "host", "test_ptx.py": "ptx"}


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
