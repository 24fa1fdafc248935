"""The GPU grid as a queue, the most telling problems first, and what each is expected to take."""

from __future__ import annotations

import itertools

from fusedrnn.bench.grid import CELLS, SIZES, Problem, Size

HIDDEN = (64, 128, 192, 256, 512, 768, 1024, 1500, 2048)
BATCHES = (1, 8, 16, 32, 64, 128, 256)
STEPS = (128, 35, 1024)
PRECISIONS = ("ieee", "tf32", "bf16", "fp16")
LAYOUTS = ("bidirectional", "2 layers", "packed")
LONGEST = Size(70_000, 8, 64, 64)


def grid() -> list[Problem]:
    """Every problem, forward+backward and then forward of each; by importance, without repetition."""
    ordered = itertools.chain(_home_ground(), _other_precisions(), _layouts(), _lengths(), _named(), _everything())
    once = dict.fromkeys(ordered)
    return [problem for training in once for problem in (training, _forward(training))]


def _home_ground():
    """Where cuDNN is hardest to beat: fp16, H from 256 to 1024, B from 8 to 128."""
    hidden, batches = (256, 512, 768, 1024), (16, 64, 8, 32, 128)
    for B, H, cell in itertools.product(batches, hidden, ("lstm", "gru", "rnn")):
        yield _of(cell, 128, B, H, "fp16")


def _other_precisions():
    hidden, batches = (256, 512, 64, 128, 768, 1024, 192), (16, 64, 1)
    for B, H, precision, cell in itertools.product(batches, hidden, ("bf16", "tf32", "ieee"), ("lstm", "gru", "rnn")):
        yield _of(cell, 128, B, H, precision)


def _layouts():
    for layout, H, precision, cell in itertools.product(LAYOUTS, (256, 512), ("fp16", "bf16"), CELLS):
        yield _of(cell, 128, 16, H, precision, layout)
    for layout, precision, cell in itertools.product(LAYOUTS, ("fp16", "tf32"), CELLS):
        yield Problem(cell, "d2l-256", True, "cuda", precision, layout)


def _lengths():
    """One length is far beyond 65535, at which 16 bits end."""
    yield Problem("lstm", str(LONGEST), True, "cuda", "tf32")
    for T, H, precision, cell in itertools.product((35, 1024), (256, 1024), ("fp16", "bf16"), CELLS):
        yield _of(cell, T, 16, H, precision)


def _named():
    for size, precision, cell in itertools.product(SIZES, ("fp16", "bf16", "tf32", "ieee"), CELLS):
        yield Problem(cell, size, True, "cuda", precision)


def _everything():
    for T, B, H, precision, cell in itertools.product(STEPS, BATCHES, HIDDEN, PRECISIONS, CELLS):
        yield _of(cell, T, B, H, precision)


def _of(cell: str, T: int, B: int, H: int, precision: str, layout: str = "") -> Problem:
    """As wide an input as the state is."""
    return Problem(cell, str(Size(T, B, H, H)), True, "cuda", precision, layout)


def _forward(problem: Problem) -> Problem:
    return Problem(problem.cell, problem.size, False, problem.device, problem.precision, problem.layout)


# Guesses, for the plan alone: what cuDNN launches a step, a GEMM's operations a second, and those in float64.
US_A_STEP, FLOPS = 8.0, {"ieee": 25e12, "tf32": 150e12, "bf16": 300e12, "fp16": 300e12}
US_A_STEP_FLOAT64, FLOPS_FLOAT64 = 30.0, 20e12
OVERHEAD, CALLS_ASIDE = 0.1, 6  # seconds; the gate's, first ones, those captured

SECONDS_A_SIDE, FEWEST_ROUNDS, MOST_ROUNDS = 0.1, 3, 20


def rounds(call: float) -> int:
    """How often a call of so many seconds is timed by each clock."""
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(SECONDS_A_SIDE / call)))


def seconds(problem: Problem) -> float:
    """A guess at what measuring torch.nn on this problem takes: the gate in float64, and all calls of three clocks."""
    passes = 3 if problem.training else 1
    steps = passes * problem.sizes.T * problem.layers * 1e-6
    operations = passes * sum(2 * rows * inputs * columns for rows, inputs, columns in problem.products())
    call = max(US_A_STEP * steps, operations / FLOPS[problem.precision])
    calls = CALLS_ASIDE + 3 * rounds(call)
    return OVERHEAD + max(US_A_STEP_FLOAT64 * steps, operations / FLOPS_FLOAT64) + calls * call
