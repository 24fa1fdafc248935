"""The CUDA kernels (csrc/cuda) compiled ahead of time: what they use, what a step issues, how long that should take.

python -m benchmarks.cubins [SM ...]   every kernel for 80, 86 and 89, or the GPUs named; status 1 for a fault
python -m benchmarks.cubins --record   the same for 90a and 100, and what was found into benchmarks/results/cubins.json
python -m benchmarks.cubins --steps    a Markdown table of a step of inference, and of backward, on an H200

The record is of these sources and of this compiler: tests take what it says, and compile some kernels again.

Expected is the longest of three. Issuing: the instructions of a step in the machine code, on four schedulers, and the
barrier. Memory: what warps read from shared memory, of the weights and of the state. The chain: reading the state,
products that wait for each other, gates, writing the state, the barrier.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.aot import tool
from benchmarks.gpu.library import KERNELS, NVCC, sources
from benchmarks.loops import BARRIER, CLOCK, SCHEDULERS, instructions, loops_of
from benchmarks.record import RESULTS
from fusedrnn.lm.files import write_atomically

WAYS = ("forward", "backward")
REGISTERS = 65536  # of a multiprocessor
COUNTED = ("BAR", "FFMA", "HMMA", "LDGSTS", "LDS", "LDSM", "MUFU", "STAS", "SYNCS")  # instructions; others together
RECORD = RESULTS / "cubins.json"
OF_GATES = 100  # multiplications and additions of the gates of a thread, at most
RECORDED = ("90a", "100")  # what kernels are cut for: elsewhere a spill is told and no fault
CELLS = ("rnn_tanh", "rnn_relu", "gru", "lstm")  # as enum Cell in csrc/shape.h
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
_NAME = re.compile(
    r"(?P<way>Forward|Backward)PlanI\w*?CellE(?P<cell>\d)E"
    r"(?P<kind>13__nv_bfloat16|6__half|NS0_4Tf32E|NS0_4IeeeILi(?P<rows>\d)EEE)"
    r"Li(?P<hidden>\d+)ELi(?P<warps>\d+)ELi(?P<in_registers>\d+)E(?:Li(?P<inputs>\d+)E(?=Li\d+ELi\d+ELi))?"
    r"Li(?P<ctas>\d+)ELi(?P<cluster>\d+)ELi\d+E+"
    r"(?:Lb(?P<plain>[01]))?"
)
_USED = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers", re.DOTALL
)

# Cycles of the H100, published but for the last two, which are guesses; bytes a cycle from shared memory, and into that
# of one CTA from all others of its cluster (3.27 TB/s of 132 multiprocessors, arXiv 2402.13499).
MATRIX, SHARED, REMOTE, L2, SPECIAL, ARITHMETIC = 24, 30, 200, 260, 20, 5
SHARED_BYTES, REMOTE_BYTES = 128, 14
CHAINS = {  # of the gates of a cell: operations of the arithmetic and of the special units that wait for each other
    ("forward", "rnn_tanh"): (2, 1),
    ("forward", "gru"): (8, 2),
    ("forward", "lstm"): (8, 2),
    ("backward", "rnn_tanh"): (4, 0),
    ("backward", "gru"): (8, 0),
    ("backward", "lstm"): (9, 0),
}


class Kernel(NamedTuple):
    way: str
    cell: str
    element: str  # bf16, f16, tf32, ieee
    rows: int  # of the batch, that a CTA takes
    hidden: int  # of a CTA
    warps: int
    in_registers: int  # of a thread, that hold weights, at most
    inputs: int  # of x, multiplied in the loop
    ctas: int  # that hold the weights
    cluster: int  # CTAs of a cluster: all of them, or of a grid so many
    plain: bool
    registers: int
    stack: int
    spilled: int  # bytes
    step: Counter[str]  # instructions of the loop over time

    def __str__(self) -> str:
        kind = "plain" if self.plain else "any"
        inputs = f", {self.inputs} inputs" if self.inputs else ""
        rows = f", {self.rows} row{'s' * (self.rows > 1)}" if self.element == "ieee" else ""
        units = f"{self.units} by {self.ctas} CTAs" if self.ctas > 1 else f"{self.units}"
        return f"{self.cell} {self.element} {units} {self.way}{inputs} {kind}{rows}, {self.warps} warps"

    @property
    def units(self) -> int:
        return self.hidden * self.ctas

    @property
    def of_grid(self) -> bool:
        return self.ctas > self.cluster

    @property
    def own_rows(self) -> bool:
        """Whether rows of weights are of the CTA's own units alone."""
        return self.way == "forward" or self.of_grid

    @property
    def parts(self) -> int:
        """Warps that share rows of weights."""
        if self.element == "ieee" or not self.own_rows:
            return 1
        return max(1, self.warps * (8 if (self.way, self.cell) == ("forward", "lstm") else 16) // self.hidden)

    @property
    def issued(self) -> int:
        """Instructions of a warp in a step."""
        return sum(self.step.values())

    def weights(self, columns: int) -> int:
        """Bytes of a matrix of so many columns."""
        return GATES[self.cell] * self.hidden * columns * (2 if self.element in ("bf16", "f16") else 4)

    def products(self, columns: int) -> int:
        """Of a warp in a step, with such a matrix: of 16 rows by 32 bytes of it each, or of a number for each lane."""
        if self.element == "ieee":
            return self.weights(columns) * self.rows // (self.warps * 4 * 32)
        if self.own_rows:
            return self.weights(columns) // (self.warps * 16 * 32)
        return columns // (self.warps * 16) * -(-self.weights(1) // 32)

    @property
    def rows_of_weights(self) -> int:
        """Those of a thread, of a warp for tensor cores: it has all gates of some units, backward only units, in a
        cluster those of all its CTAs."""
        gates = GATES[self.cell] if self.way == "forward" else 1
        if self.element == "ieee" and self.way == "backward" and self.ctas > 1:
            threads = 32 * self.warps
            return self.units * min(4, 8 * threads // self.units) // threads
        if self.element == "ieee":
            return gates * (1 if gates > 1 else 4)
        return gates * (self.hidden if self.own_rows else self.units) * self.parts // (self.warps * 16)

    @property
    def depth(self) -> int:
        """Products along a row of weights: of 4 numbers of each of the lanes that share it, or of 32 bytes."""
        of_one = 32 * 4 * 4 if self.element == "ieee" else 16 * 32
        return self.weights(self.units) // (self.warps * self.rows_of_weights * of_one)

    @property
    def remote(self) -> int:
        """Bytes that come into its shared memory from other CTAs in a step: of a cluster the operand but its own slice,
        or backward what they have summed, and of a grid what they have fetched of the operand."""
        if self.ctas == 1:
            return 0
        if self.of_grid:
            return self.rows * self.depth * self.parts * 32 * (self.cluster - 1) // self.cluster
        size = 2 if self.way == "forward" and self.element in ("bf16", "f16") else 4
        return self.rows * (self.units - self.hidden) * size


class Record(NamedTuple):
    """What kernels were found to be, of which sources and by which compiler."""

    sources: str
    compiler: str
    kernels: dict[str, list[Kernel]]  # of a GPU

    def write(self) -> None:
        parts = [f'"sources": "{self.sources}"', f'"compiler": "{self.compiler}"']
        for sm, kernels in self.kernels.items():
            rows = (json.dumps([*kernel[:-1], dict(sorted(kernel.step.items()))]) for kernel in kernels)
            parts.append(f'"{sm}": [\n' + ",\n".join(rows) + "\n]")
        write_atomically(RECORD, ("{\n" + ",\n".join(parts) + "\n}\n").encode())

    @classmethod
    def read(cls) -> Record:
        found = json.loads(RECORD.read_bytes())
        kernels = {sm: [Kernel(*row[:-1], Counter(row[-1])) for row in found[sm]] for sm in RECORDED}
        return cls(found["sources"], found["compiler"], kernels)


def compiler() -> str:
    """nvcc's version."""
    told = subprocess.run([NVCC[0], "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"V([\d.]+)", told)[0]


def faults(kernel: Kernel) -> list[str]:
    """What is not as it was planned."""
    found, step = [], kernel.step
    planned = kernel.products(kernel.units + kernel.inputs)
    if kernel.stack or kernel.spilled:
        found.append(f"spills {kernel.spilled} bytes, a stack of {kernel.stack}")
    if kernel.registers * 32 * kernel.warps > REGISTERS:
        found.append(f"{kernel.registers} registers a thread")
    if kernel.element == "ieee":
        if step["HMMA"] or not planned <= step["FFMA"] <= planned + OF_GATES:
            found.append(f"{step['FFMA']} multiplications and additions a step, not {planned} and up to {OF_GATES}")
    elif step["HMMA"] != planned:
        found.append(f"{step['HMMA']} matrix products a step, not {planned}")
    if step["BAR"] != 1 or not step["LDGSTS"]:
        found.append(f"{step['BAR']} barriers and {step['LDGSTS']} asynchronous copies a step")
    return found


def compiled(source: Path, sm: str, folder: Path) -> list[Kernel]:
    """The kernels of a file for sm_{sm}. RuntimeError with nvcc's words."""
    cubin = folder / f"{source.stem}_{sm}.cubin"
    target = f"arch=compute_{sm},code=sm_{sm}"
    command = [*NVCC, "-Xptxas", "-v", "-cubin", source, "-o", cubin, "-gencode", target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed: {done.stderr.strip()[-2000:]}")
    used = {name: tuple(map(int, numbers)) for name, *numbers in _USED.findall(done.stderr)}
    parts = tool("cuobjdump", "-sass", cubin.read_bytes()).split("Function : ")[1:]
    return [_kernel(name, *used[name], text) for name, text in (part.split(None, 1) for part in parts)]


def _kernel(name: str, stack: int, spilled: int, registers: int, text: str) -> Kernel:
    is_of = _NAME.search(name)
    assert is_of, name
    code = instructions(text)
    loops = ([of.split(".")[0] for at, of, _ in code if loop.first <= at <= loop.last] for loop in loops_of(code))
    every = max(map(Counter, loops), key=lambda loop: loop["HMMA"] + loop["FFMA"])
    step = Counter({name: count for name, count in every.items() if name in COUNTED})
    step["others"] = every.total() - step.total()
    element = {"13__nv_bfloat16": "bf16", "6__half": "f16", "NS0_4Tf32E": "tf32"}.get(is_of["kind"], "ieee")
    rows = int(is_of["rows"] or 8)
    sizes = (int(is_of[size] or 0) for size in ("hidden", "warps", "in_registers", "inputs", "ctas", "cluster"))
    cell = CELLS[int(is_of["cell"])]
    return Kernel(
        is_of["way"].lower(), cell, element, rows, *sizes, is_of["plain"] != "0", registers, stack, spilled, step
    )


PLANS = """
#include "layer.cuh"

namespace fusedrnn::cuda {

#define KERNEL(plain, ...) \\
  template __global__ void layer_kernel<__VA_ARGS__, plain>(const ArgumentsOf<__VA_ARGS__>)
"""


def _plan(k: Kernel) -> str:
    """Its type."""
    kind = {"bf16": "__nv_bfloat16", "f16": "__half", "tf32": "Tf32", "ieee": f"Ieee<{k.rows}>"}[k.element]
    inputs = [k.inputs] if k.way == "forward" else []
    arguments = (f"Cell::{k.cell}", kind, k.hidden, k.warps, k.in_registers, *inputs, k.ctas, k.cluster)
    return f"{k.way.capitalize()}Plan<{', '.join(map(str, arguments))}>"


def some(kernels: Iterable[Kernel], sm: str, folder: Path) -> list[Kernel]:
    """These kernels, compiled as in the library: each after, or before, the other one of its size."""
    source, lines, wanted = folder / "some.cu", [], set()
    for k in kernels:
        lines += [f"KERNEL({plain}, {_plan(k)});\n" for plain in ("true", "false")]
        wanted.add(str(k))
    source.write_text(PLANS + "".join(dict.fromkeys(lines)) + "}  // namespace fusedrnn::cuda\n")
    return [kernel for kernel in compiled(source, sm, folder) if str(kernel) in wanted]


INFERENCE = """
#include "layer.cuh"

namespace fusedrnn::cuda {

template <class P>
__global__ void __launch_bounds__(P::threads, 1) inference_kernel(const Forward<typename P::Element> given) {
  FUSEDRNN_DYNAMIC_SHARED(unsigned char, shared);
  auto f = given;
  f.saved = nullptr, f.cells = nullptr;
  LoopOf<P, true>(f, shared, rank_of<P>()).run();
}

#define KERNEL(...) template __global__ void inference_kernel<__VA_ARGS__>(const ArgumentsOf<__VA_ARGS__>)
"""


def inference(kernels: Iterable[Kernel], sm: str, folder: Path) -> list[Kernel]:
    """The forward kernels of plain layers, as they are where nothing is saved."""
    source = folder / "inference.cu"
    plans = (f"KERNEL({_plan(k)});\n" for k in kernels)
    source.write_text(INFERENCE + "".join(plans) + "}  // namespace fusedrnn::cuda\n")
    return compiled(source, sm, folder)


def cycles(kernel: Kernel) -> tuple[float, float, float]:
    """Of issuing a step, of its reads from shared memory or what comes into it from the cluster, and of its chain."""
    depth, ieee = kernel.depth, kernel.element == "ieee"
    issue = kernel.issued * kernel.warps / SCHEDULERS + BARRIER
    from_shared = max(0, kernel.weights(kernel.units) - kernel.in_registers * 4 * 32 * kernel.warps)
    from_shared += kernel.weights(kernel.inputs)
    of_state = kernel.warps * depth * (kernel.rows if ieee else 2)  # a read is one cycle; by ldmatrix of two, four
    memory = from_shared / SHARED_BYTES + of_state
    memory = max(memory, kernel.remote / REMOTE_BYTES)
    if ieee:
        forward = kernel.way == "forward"
        units = kernel.rows_of_weights // (GATES[kernel.cell] if forward else 1)
        lanes = 32 * kernel.warps * units // (kernel.hidden if forward else kernel.units)
        products = 4 * depth * ARITHMETIC + SHARED * (lanes.bit_length() - 1)
    else:
        products = MATRIX * (depth // max(1, 4 // kernel.rows_of_weights))
    arithmetic, special = CHAINS[kernel.way, kernel.cell]
    exact = 1 if kernel.element == "bf16" else 2  # exp2 and a reciprocal for each
    gates = arithmetic * ARITHMETIC + exact * special * SPECIAL
    chain = SHARED + products + gates + SHARED + BARRIER
    if kernel.of_grid:
        chain += 2 * L2  # there, and from there once it has come
    if kernel.ctas > 1:
        chain += REMOTE + (2 * SHARED if kernel.parts > 1 or kernel.way == "backward" else 0)
    return issue, memory, chain


def row(kernel: Kernel) -> str:
    found = cycles(kernel)
    named = ("HMMA", "FFMA", "LDS", "MUFU")
    counts = ", ".join(str(kernel.step[name]) for name in named)
    what = str(kernel).replace(" plain", "")
    parts = " | ".join(f"{part:.0f}" for part in found)
    return f"| {what} | {kernel.issued} | {counts} | {parts} | {max(found) / CLOCK:.2f} | |"


def print_steps() -> None:
    record = Record.read()
    if record.sources != sources():
        raise SystemExit("the sources are not those of the record: python -m benchmarks.cubins --record")
    plain = [k for k in record.kernels["90a"] if k.plain and k.element != "f16"]
    print(
        "| kernel | instructions a warp | HMMA, FFMA, LDS, MUFU | issue, cycles | memory | chain | expected, us a step",
        end=" ",
    )
    print("| measured |\n" + "| --- " * 8 + "|")
    with tempfile.TemporaryDirectory() as name:
        forward = inference((k for k in plain if k.way == "forward"), "90a", Path(name))
        shown = [*forward, *(k for k in plain if k.way == "backward")]
    for kernel in sorted(
        shown, key=lambda k: (CELLS.index(k.cell), k.element, k.way == "backward", k.inputs, k.units, -k.ctas, k.rows)
    ):
        print(row(kernel))


def _both_ways(sm: str, folder: Path) -> Iterable[list[Kernel]]:
    with ThreadPoolExecutor(len(WAYS)) as pool:
        yield from pool.map(lambda way: compiled(KERNELS / f"{way}.cu", sm, folder), WAYS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cubins", description=__doc__.partition("\n")[0])
    parser.add_argument("gpus", nargs="*", metavar="SM", default=["80", "86", "89"], help="80, 90a, ...")
    parser.add_argument("--record", action="store_true", help="of 90a and 100: what was found, for the tests")
    parser.add_argument("--steps", action="store_true", help="print what a step issues and should take")
    given = parser.parse_args(arguments)
    if given.record:
        given.gpus = RECORDED
    if given.steps:
        print_steps()
        return 0
    every, at_fault = defaultdict(list), 0
    with tempfile.TemporaryDirectory() as folder:
        for sm in given.gpus:
            for kernels in _both_ways(sm, Path(folder)):
                every[sm] += kernels
                for kernel in kernels:
                    found = faults(kernel)
                    spills = [what for what in found if what.startswith("spills")]
                    at_fault += bool(found) if sm in RECORDED else len(found) > len(spills)
                    if found:
                        print(f"sm_{sm} {kernel}: {'; '.join(found)}", flush=True)
    if given.record:
        Record(sources(), compiler(), every).write()
    print(
        f"{sum(map(len, every.values()))} CUDA kernels for sm_{', sm_'.join(given.gpus)}, {at_fault} of them at fault"
    )
    return 1 if at_fault else 0


if __name__ == "__main__":
    sys.exit(main())
