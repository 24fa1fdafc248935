"""What a step of a Triton kernel issues, counted in its machine code, and the time that this and its bytes predict.

python -m benchmarks.loops     a Markdown table for an H200, each kernel as it is cut first at B = 64

Expected is the longer of issuing and reading and a third of it more, for latency that so few warps do not hide, which
is a guess; and where a step is a launch, what one launch of a graph after another takes, which is another.

A loop is a branch backwards. In the resident kernels it is a step. In those with weights in memory the innermost loops
run over the inner dimension of a product, and those around them over tiles and steps.
"""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch

from benchmarks.aot import BATCH, Case, cases, compiled, tool
from fusedrnn.backends.base import Problem
from fusedrnn.backends.configurations import H100, bytes_a_step
from fusedrnn.cells import CELLS

CLOCK = 1.98e3  # cycles a microsecond, of an H200
SCHEDULERS = 4  # of a multiprocessor; each issues an instruction a cycle
BARRIER = 30  # cycles
BYTES_A_CLOCK = 64  # that reach a multiprocessor from L2
UNHIDDEN = 4 / 3
LAUNCH = 1.5  # microseconds
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
CLASSES = {"matrix": ("HMMA", "HGMMA"), "FFMA": ("FFMA",), "LDSM, LDS": ("LDSM", "LDS"), "BAR": ("BAR",)}


class Loop(NamedTuple):
    first: int  # address
    last: int


class Step(NamedTuple):
    issued: int  # instructions of a warp
    of_class: dict[str, int]


def instructions(sass: str) -> list[tuple[int, str, str]]:
    """Address, name and operands."""
    return [(int(address, 16), name, rest.strip()) for address, name, rest in _INSTRUCTION.findall(sass)]


def loops_of(code: list[tuple[int, str, str]]) -> list[Loop]:
    found: dict[int, int] = {}  # a loop with two ways back is one
    for address, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)$", rest)
        if name.startswith("BRA") and target and int(target[1], 16) < address:
            first = int(target[1], 16)
            found[first] = max(address, found.get(first, 0))
    return [Loop(*loop) for loop in sorted(found.items())]


def step_of(code: list[tuple[int, str, str]], case: Case) -> Step:
    """What a warp issues in one step."""
    loops = loops_of(code)
    within = {loop: [o for o in loops if o != loop and loop.first <= o.first and o.last <= loop.last] for loop in loops}
    innermost = [loop for loop in loops if not within[loop]]
    kind, configuration = case.configuration.kind, case.configuration
    tiles = case.H // configuration.units if kind == "streamed" else 1
    lengths = iter(_lengths(case))
    times = {loop: 1 for loop in loops}
    if kind != "resident":
        times = {loop: tiles for loop in loops if within[loop]}
        for loop in innermost:
            times[loop] = tiles * (next(lengths) // configuration.depth)
        if kind == "streamed":
            times[max(loops, key=lambda loop: loop.last - loop.first)] = 1
    issued, of_class = 0, dict.fromkeys(CLASSES, 0)
    for address, name, _ in code:
        around = [loop for loop in loops if loop.first <= address <= loop.last]
        if not around and kind != "stepped":
            continue
        count = times[min(around, key=lambda loop: loop.last - loop.first)] if around else 1
        issued += count
        for group, names in CLASSES.items():
            of_class[group] += count * (name.split(".")[0] in names)
    return Step(issued, of_class)


def _lengths(case: Case) -> list[int]:
    """Inner dimensions of its products, in their order."""
    forward = case.kernel == "forward"
    if case.cell != "gru_reset_before":
        return [case.H if forward else len(CELLS[case.cell].gates) * case.H]
    phases = [[case.H], [case.H] * 2] if forward else [[2 * case.H], [case.H]]
    if case.configuration.kind == "stepped":
        return phases[dict(case.options).get("PHASE", 1)]
    return phases[0] + phases[1]


def row(case: Case) -> str:
    launches = [case]
    if case.cell == "gru_reset_before" and case.configuration.kind == "stepped":
        launches.append(case._replace(options=(("PHASE", 0),)))
    issued, of_class = 0, dict.fromkeys(CLASSES, 0)
    for one in launches:
        step = step_of(instructions(tool("cuobjdump", "-sass", compiled(one, 90).binary)), one)
        issued += step.issued
        of_class = {name: count + step.of_class[name] for name, count in of_class.items()}
    c = case.configuration
    problem = Problem(case.cell, "cuda", case.dtype, T=1, B=BATCH, I=case.H, H=case.H, precision=case.precision)
    issue = issued * c.warps / SCHEDULERS + of_class["BAR"] * BARRIER
    issue /= CLOCK
    count = 0 if c.kind == "resident" else bytes_a_step(case.kernel, c, problem, H100.processors)
    read = count / BYTES_A_CLOCK / CLOCK
    expected = UNHIDDEN * max(issue, read) + LAUNCH * len(launches) * (c.kind == "stepped")
    counts = ", ".join(map(str, of_class.values()))
    dtype = case.precision.upper() if case.dtype == torch.float32 else str(case.dtype).removeprefix("torch.")
    sizes = c.kind if c.kind == "resident" else f"{c.kind} {c.rows} by {c.units}"
    return (f"| {case.cell} {dtype} {case.H} {case.kernel} | {sizes}, {c.warps} warps | {issued} | {counts} "
            f"| {issue:.1f} | {count / 1024:.0f}, {read:.1f} | {expected:.1f} | |")  # fmt: skip


def main() -> None:
    wanted: dict[tuple, Case] = {}
    for case in cases(90):
        if case.dtype != torch.float16 and case.cell != "rnn_relu" and not case.options:
            wanted.setdefault((*case[:5], case.configuration.kind), case)
    print("| cell, H | cut | instructions a warp | of them", ", ".join(CLASSES), end=" ")
    print("| issue, us | KB read, us | expected, us a step | measured |")
    print("| --- " * 8 + "|")
    with ProcessPoolExecutor() as pool:
        for text in pool.map(row, wanted.values()):
            print(text, flush=True)


if __name__ == "__main__":
    main()
