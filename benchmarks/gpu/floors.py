"""What no kernel for a problem is likely to beat on a chip, from its micro-measurements: three bounds for every row.

  chain    T steps of the least latency a design of the tiers has: exchange of h, the step's product, the gates
  matrix   the operations of all products, at the rate of a large GEMM of this precision
  bytes    every input read once and every output written once, at the bandwidth of a large copy

The floor is the largest of the three. A design gives each tile of the batch to a number of CTAs, which hold W_hh in
registers and shared memory: one CTA (exchange: __syncthreads), a cluster of 2 to 16 (asynchronous stores), or a grid
(tagged packets); or else the whole chip does the whole batch and reads W_hh from L2 in every step. Backward's chain
exchanges partial sums of dh in float32; its products are as large as forward's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.gpu.micro import Missing, Physics
from fusedrnn.bench.grid import Problem

KB = 1024
WEIGHTS_A_CTA = 292 * KB  # 192 registers of 256 threads, and 100 KB of shared memory
CLUSTERS, GRIDS = (2, 4, 8, 16), (64, 128)
THREADS = 256
IN_SEQUENCE = {"rnn": 1, "gru": 2, "lstm": 2}  # nonlinear functions of a step that wait for each other
# As precise as the results are: kernels.md, "Matrix form".
FUNCTION = {"bf16": "tanh.approx.f32", "fp16": "tanh by ex2 and rcp", "tf32": "tanh by ex2 and rcp", "ieee": "tanhf"}
# Rows of the batch that one tile may have: matrix instructions take eights, plain multiply-adds any number.
TILES = {"bf16": (8, 16, 32), "fp16": (8, 16, 32), "tf32": (8, 16, 32), "ieee": (1, 2, 4, 8)}


@dataclass(frozen=True)
class Floor:
    """Milliseconds, and the design of the chain: CTAs a tile (0: the whole chip, streaming) and rows of the batch."""

    chain: float
    matrix: float
    bytes: float
    ctas: int
    rows: int

    @property
    def ms(self) -> float:
        return max(self.chain, self.matrix, self.bytes)

    @property
    def binds(self) -> str:
        """The bound that is the floor."""
        return max(("chain", "matrix", "bytes"), key=lambda name: getattr(self, name))

    @property
    def design(self) -> str:
        kind = f"{self.ctas} CTA{'s' * (self.ctas > 1)}" if self.ctas else "streamed"
        return f"{kind}, {self.rows} rows"


def floor(problem: Problem, physics: Physics) -> Floor | None:
    """None where a number that it needs was not measured."""
    try:
        chain, ctas, rows = min(_chains(problem, physics))
        return Floor(chain, _matrix(problem, physics), _bytes(problem, physics), ctas, rows)
    except Missing:
        return None


def _chains(problem: Problem, physics: Physics):
    """Milliseconds, CTAs and rows of every design that is possible. Layers run one step behind each other, directions
    and tiles of the batch side by side as far as the chip has room."""
    size, sms = problem.sizes, physics.sms
    steps, passes = size.T + problem.layers - 1, range(2 if problem.training else 1)
    weights = len(problem.spec.gates) * size.H**2 * problem.dtype.itemsize
    room = {1: sms, **{n: _clusters(physics, n) for n in CLUSTERS}, **{n: sms // n for n in GRIDS}}
    for ctas, tiles_at_once in room.items():
        if not tiles_at_once or weights > ctas * WEIGHTS_A_CTA:
            continue
        for rows in TILES[problem.precision]:
            tiles = math.ceil(size.B / rows) * problem.directions * problem.layers
            cycles = sum(_step(problem, physics, ctas, rows, backward) for backward in passes)
            yield steps * math.ceil(tiles / tiles_at_once) * cycles / physics.mhz / 1e3, ctas, rows
    cycles = sum(_streamed_step(problem, physics, backward) for backward in passes)
    yield steps * problem.directions * problem.layers * cycles / physics.mhz / 1e3, 0, size.B


def _clusters(physics: Physics, n: int) -> int:
    """How many clusters of n fit at once, each CTA with all of an SM's shared memory; 0 without clusters."""
    found = physics.find("clusters at once", ctas=n)
    return int(max(found, key=lambda m: m["at"]["shared KB"])["value"]) if found else 0


def _step(problem: Problem, physics: Physics, ctas: int, rows: int, backward: int) -> float:
    """Cycles of one step of one tile whose weights stay on the chip."""
    H, filled = problem.sizes.H, min(rows, problem.sizes.B)
    units = math.ceil(H / ctas)
    exchange = _exchange(physics, ctas, units * filled * (4 if backward else problem.dtype.itemsize))
    product = _product(problem, physics, len(problem.spec.gates) * units, rows)
    return exchange + product + _gates(problem, physics, units * filled)


def _streamed_step(problem: Problem, physics: Physics, backward: int) -> float:
    """Cycles of one step of the whole batch on the whole chip, the weights read from L2."""
    H, B, sms = problem.sizes.H, problem.sizes.B, physics.sms
    values = math.ceil(H * B / sms)
    share = len(problem.spec.gates) * H**2 / sms
    streamed = share * problem.dtype.itemsize / max(m["work"] / m["cycles"]["median"] for m in physics.fetches())
    product = 2 * share * B / _matrix_rate(problem, physics)
    exchange = _exchange(physics, GRIDS[-1], values * (4 if backward else problem.dtype.itemsize))
    return exchange + max(product, streamed) + _gates(problem, physics, values)


def _gates(problem: Problem, physics: Physics, values: int) -> float:
    """The functions of a step, one for each gate and for c, of `values` pairs of a unit and a row on one SM."""
    function, spec = FUNCTION[problem.precision], problem.spec
    all_of_them = (
        (len(spec.gates) + spec.states - 1) * values / physics.rate("function rate", function=function, threads=THREADS)
    )
    return max(all_of_them, IN_SEQUENCE[problem.cell] * physics.cycles("function latency", function=function))


def _exchange(physics: Physics, ctas: int, message: float) -> float:
    """Until all CTAs of a tile have every CTA's `message` of bytes."""
    if ctas == 1:
        return physics.cycles("syncthreads", threads=THREADS) + physics.cycles("shared load")
    if ctas <= CLUSTERS[-1]:
        return physics.cycles_at("exchange", "bytes", message, ctas=ctas, packet="16")
    return physics.cycles_at("tagged packets", "bytes", message, ctas=GRIDS[-1], group=ctas)


def _product(problem: Problem, physics: Physics, gate_rows: int, rows: int) -> float:
    """gate_rows by H by rows of the batch, on one SM whose registers hold the weights."""
    operations = 2 * gate_rows * problem.sizes.H * rows
    if problem.precision == "ieee":
        return operations / _matrix_rate(problem, physics)
    cycles = operations / physics.rate("mma, B in shared memory", N=rows, warps=THREADS // 32)
    least = physics.cycles("mma from registers", type="bf16", chains=1, N=8, warps=4)
    if problem.precision == "tf32":
        bf16, tf32 = (physics.rate("mma from registers", type=t, chains=4, N=8, warps=8) for t in ("bf16", "tf32"))
        cycles, least = cycles * bf16 / tf32, least * bf16 / tf32
    return max(cycles, least)


def _matrix_rate(problem: Problem, physics: Physics) -> float:
    """Operations a cycle of one SM in a large GEMM."""
    a_second = physics.value("matrix product", precision=problem.precision) * 1e12
    return a_second / (physics.mhz * 1e6) / physics.sms


def _matrix(problem: Problem, physics: Physics) -> float:
    operations = sum(2 * rows * inputs * columns for rows, inputs, columns in problem.products())
    rate = physics.value("matrix product", precision=problem.precision) * 1e12
    return 1e3 * (3 if problem.training else 1) * operations / rate


def _bytes(problem: Problem, physics: Physics) -> float:
    """x, y and the weights; in training also x and y once more, dy and dx, the weights once more and their gradients,
    and what is kept of the gates, written and read."""
    products = problem.products()
    rows, H = products[0][0], problem.sizes.H
    states = rows * (sum(inputs for _, inputs, _ in products) - (problem.directions - 1) * problem.sizes.I)
    weights = sum(inputs * columns for _, inputs, columns in products)
    elements = states + weights
    if problem.training:
        kept = len(problem.spec.saved) + problem.spec.states - 1
        elements = 3 * elements + 2 * rows * kept * H * len(products)
    return 1e3 * elements * problem.dtype.itemsize / (physics.value("copy") * 1e9)
