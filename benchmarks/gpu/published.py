"""What was known of the chip before it was measured, beside what the micro-measurements say: the first table.

Figures published for the H100, which has the H200's processor; derived ones are marked so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.micro import Missing, Physics


@dataclass(frozen=True)
class Figure:
    """A figure's name, what was published of it, and how the measurements give it."""

    name: str
    published: str
    measured: Callable[[Physics], str]


def _cycles(measure: str, **at) -> Callable[[Physics], str]:
    def told(physics: Physics) -> str:
        found = physics.one(measure, **at)
        return f"{found['cycles']['median']:.4g} cycles, {found['ns']['median']:.4g} ns"

    return told


def _rate(measure: str, unit: str, each: float = 1.0, **at) -> Callable[[Physics], str]:
    return lambda physics: f"{physics.rate(measure, **at) / each:.4g} {unit} a cycle"


def _value(measure: str, unit: str, **at) -> Callable[[Physics], str]:
    return lambda physics: f"{physics.value(measure, **at):.4g} {unit}".strip()


def _fetched(bytes: int) -> Callable[[Physics], str]:
    """By the quicker of the two ways, all SMs at once."""

    def told(physics: Physics) -> str:
        best = min(physics.fetches(bytes=bytes), key=lambda m: m["ns"]["median"])
        return f"{best['ns']['median']:.4g} ns, {best['measure'].removeprefix('fetch ')}"

    return told


FLOPS_OF_MMA = 2 * 16 * 8 * 16
A_FRAGMENT = 512  # bytes of A in an m16n8k16

FIGURES = (
    Figure("__syncthreads, 256 threads", "30 cycles", _cycles("syncthreads", threads=256)),
    Figure("shared-memory load", "30 cycles", _cycles("shared load")),
    Figure("remote shared-memory load", "about 200 cycles", _cycles("remote load")),
    Figure("L2 load", "260 cycles", _cycles("L2 load")),
    Figure("device-memory load", "", _cycles("memory load")),
    Figure("grid barrier, 132 CTAs", "1.3 us", _cycles("grid barrier", ctas=132)),
    Figure("tagged packets, 128 CTAs, 96 bytes each", "", _cycles("tagged packets", group=128, bytes=96)),
    Figure("tagged packets, groups of 64", "", _cycles("tagged packets", ctas=128, group=64, bytes=96)),
    Figure("cluster barrier, 8 CTAs", "", _cycles("cluster barrier", ctas=8, order="release, acquire")),
    Figure("the same without a release", "", _cycles("cluster barrier", ctas=8, order="acquire")),
    Figure("posted store, 16 bytes a lane, 8 warps", "35 cycles (B300)", _cycles("posted stores", ctas=2, warps=8)),
    Figure("answer through a remote store, there and back", "", _cycles("answer", order="relaxed")),
    *(
        Figure(f"exchange of 256 bytes, {n} CTAs", "", _cycles("exchange", ctas=n, bytes=256, packet="16"))
        for n in (2, 4, 8, 16)
    ),
    *(
        Figure(f"the same by {packet}", "", _cycles("exchange", ctas=8, bytes=256, packet=packet))
        for packet in ("copy engine", "8", "4", "16, ordered in the CTA alone")
    ),
    *(
        Figure(
            f"clusters of {n} at once, 227 KB each", "", _value("clusters at once", "", ctas=n, **{"shared KB": 227})
        )
        for n in (8, 16)
    ),
    Figure("16 KB from L2, all SMs", "500 ns (16 to 24 KB)", _fetched(16 << 10)),
    Figure("64 KB from L2, all SMs", "", _fetched(64 << 10)),
    Figure("mma m16n8k16, dependent", "24 cycles", _cycles("mma from registers", type="bf16", chains=1, N=8, warps=4)),
    Figure(
        "mma m16n8k16, 4 chains a warp, of an SM",
        "4 in 26 cycles a warp",
        _rate("mma from registers", "mma", FLOPS_OF_MMA, type="bf16", chains=4, N=8, warps=8),
    ),
    Figure(
        "weights from register fragments",
        "315 bytes a cycle (derived)",
        _rate("mma from registers", "bytes", FLOPS_OF_MMA / A_FRAGMENT, type="bf16", chains=4, N=8, warps=8),
    ),
    Figure("shared memory read", "128 bytes a cycle (derived)", _rate("shared read", "bytes", warps=8)),
    *(Figure(f"128 by 256 by {n}, mma", "", _cycles("mma, B in shared memory", N=n, warps=8)) for n in (8, 16, 32)),
    *(Figure(f"128 by 256 by {n}, wgmma", "", _cycles("wgmma, A in registers", N=n, warps=8)) for n in (8, 16, 32)),
    Figure("tanh.approx.f32", "", _cycles("function latency", function="tanh.approx.f32")),
    Figure("its rate", "16 a cycle", _rate("function rate", "values", function="tanh.approx.f32", threads=256)),
    Figure("its error", "", _value("largest absolute error", "", function="tanh.approx.f32")),
    Figure("tanh by ex2 and rcp", "", _cycles("function latency", function="tanh by ex2 and rcp")),
    Figure("its error", "", _value("largest absolute error", "", function="tanh by ex2 and rcp")),
    *(
        Figure(f"large GEMM, {precision}", published, _value("matrix product", "TFLOP/s", precision=precision))
        for precision, published in (("bf16", "790 TFLOP/s"), ("fp16", ""), ("tf32", ""), ("ieee", "67 TFLOP/s peak"))
    ),
    Figure("large copy", "4300 GB/s", _value("copy", "GB/s")),
)


def rows(physics: Physics) -> list[tuple[str, str, str]]:
    """Name, published, measured; "" where it was not."""
    found = []
    for figure in FIGURES:
        try:
            told = figure.measured(physics)
        except Missing:
            told = ""
        found.append((figure.name, figure.published, told))
    return found
