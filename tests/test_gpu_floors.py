"""The GPU grid and the floors of its rows, on the numbers of a made chip."""

from __future__ import annotations

import math

import made_chip
import pytest

from benchmarks.gpu import floors, micro, plan
from fusedrnn.bench import grid

PHYSICS = made_chip.physics()


def test_the_grid_has_every_problem_once_and_the_hardest_first():
    problems = plan.grid()
    names = list(map(str, problems))
    assert len(set(names)) == len(names)
    for H in (64, 128, 192, 256, 512, 768, 1024, 1500, 2048):
        for B in (1, 8, 16, 32, 64, 128, 256):
            for T in (35, 128, 1024):
                for precision in ("fp16", "bf16", "tf32", ""):
                    for cell in ("rnn", "gru", "lstm"):
                        assert f"{cell} T{T}-B{B}-I{H}-H{H} forward+backward cuda {precision}".strip() in names
    assert any("T70000" in name for name in names)
    for layout in ("bidirectional", "2 layers", "packed"):
        assert any(name.startswith("lstm d2l-256") and name.endswith(layout) for name in names)
    assert {f"gru {size} forward cuda bf16" for size in grid.SIZES} <= set(names)
    assert names[0] == "lstm T128-B16-I256-H256 forward+backward cuda fp16"
    assert all(problem.precision == "fp16" for problem in problems[: 2 * 5 * 4 * 3])
    assert all(0 < plan.seconds(problem) < 120 for problem in problems)


def test_the_size_in_a_name_is_the_size():
    assert grid.Size.of("T128-B16-I20-H256") == grid.Size(128, 16, 20, 256)
    assert grid.Size.of("ptb-650") == grid.Size(35, 20, 650, 650)
    with pytest.raises(ValueError, match=r"size: expected one of seed-64, .*, got 'T1-B2'"):
        grid.Size.of("T1-B2")


def test_the_floor_of_one_cta_by_hand():
    """LSTM, H=64, bf16: 32 KB of weights fit one CTA. A step: barrier 30 and load 20; 256 rows by 64 by 8 is half of
    the made 100 cycles for 128 by 256 by 8; 5 functions of 64 units and 8 rows at 16 a cycle. Backward is the same."""
    problem = grid.Problem("lstm", "T10-B8-I64-H64", True, "cuda", "bf16")
    floor = floors.floor(problem, PHYSICS)
    step = 30 + 20 + 50 + 5 * 64 * 8 / 16
    assert (floor.ctas, floor.rows, floor.binds) == (1, 8, "chain")
    assert floor.chain == pytest.approx(10 * 2 * step / 1e6)
    assert floor.matrix == pytest.approx(1e3 * 3 * 2 * 80 * 128 * 256 / 200e12)
    elements = 3 * (80 * 128 + 128 * 256) + 2 * 80 * 5 * 64
    assert floor.bytes == pytest.approx(1e3 * 2 * elements / 1000e9)
    assert floor.ms == floor.chain
    assert floor.design == "1 CTA, 8 rows"


def test_the_floor_of_a_cluster_by_hand():
    """RNN, H=512, bf16: 512 KB of weights take two CTAs or more. Of sixteen each has 32 units, sends 8 rows of them."""
    problem = grid.Problem("rnn", "T100-B8-I512-H512", False, "cuda", "bf16")
    exchange = 100 + 160 + 32 * 8 * 2
    product = max(100 * (32 / 128) * (512 / 256), 25)
    sixteen = exchange + product + max(32 * 8 / 16, 20)
    chains = {(ctas, rows): ms for ms, ctas, rows in floors._chains(problem, PHYSICS)}
    assert 1 not in {ctas for ctas, _ in chains}
    assert chains[16, 8] == pytest.approx(100 * sixteen / 1e6)
    assert floors.floor(problem, PHYSICS).chain == min(chains.values())


def test_more_tiles_than_clusters_take_turns():
    one, two = (grid.Problem("gru", f"T100-B{B}-I768-H768", False, "cuda", "fp16") for B in (48, 56))
    of_sixteen = [{(c, r): ms for ms, c, r in floors._chains(p, PHYSICS)}[16, 8] for p in (one, two)]
    assert of_sixteen[1] == pytest.approx(2 * of_sixteen[0])  # six fit at once; the seventh tile waits for them


@pytest.mark.parametrize("precision", plan.PRECISIONS)
def test_every_row_has_a_floor_that_grows(precision):
    problems = [problem for problem in plan.grid() if problem.precision == precision]
    found = {str(problem): floors.floor(problem, PHYSICS) for problem in problems}
    assert all(floor.ms > 0 and math.isfinite(floor.ms) for floor in found.values())
    for problem in problems:
        if problem.training:
            forward = found[str(problem).replace("forward+backward", "forward")]
            assert found[str(problem)].ms > forward.ms


def test_without_a_number_there_is_no_floor():
    problem = grid.Problem("lstm", "T10-B8-I64-H64", True, "cuda", "bf16")
    assert floors.floor(problem, micro.Physics([], {})) is None
    for missing in ("copy", "matrix product", "syncthreads", "function rate", "mma, B in shared memory"):
        rest = [m for m in made_chip.measurements() if m["measure"] != missing]
        assert floors.floor(problem, micro.Physics(rest, {})) is None, missing
    failed = [m | {"error": "late"} for m in made_chip.measurements() if m["measure"] == "copy"]
    assert floors.floor(problem, micro.Physics([*rest, *failed], {})) is None


def test_a_number_between_two_places_lies_on_their_line():
    at = {"ctas": 2, "packet": "16"}
    assert PHYSICS.cycles_at("exchange", "bytes", 136, **at) == pytest.approx(120 + 136)
    assert PHYSICS.cycles_at("exchange", "bytes", 8192, **at) == pytest.approx(120 + 8192)
    assert PHYSICS.cycles_at("exchange", "bytes", 0, **at) == 136  # never less than what was measured
