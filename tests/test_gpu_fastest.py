"""What `auto` takes on a GPU, drawn from rows of `make gpu`: made rows, and those that are kept."""

import dataclasses
import itertools
import json
import runpy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu import fastest
from benchmarks.record import RESULTS, Failure, Record, Row
from fusedrnn.bench.grid import Problem, Size
from fusedrnn.bench.pairs import Spread
from fusedrnn.fastest import ANY

TIME = Spread(1.0, 1.0, 1.0)


def row(problem: Problem, side: str, ratio: float, spread: float = 0.0, clock: str = "events") -> Row:
    return Row(str(problem), side, 0, TIME, TIME, Spread(ratio, ratio - spread, ratio + spread), clock=clock)


def problem(T: int, B: int, H: int, cell: str = "lstm", precision: str = "fp16", layout: str = "") -> Problem:
    return Problem(cell, str(Size(T, B, H, H)), True, "cuda", precision, layout)


def drawn(*rows: Row, failures: tuple[Failure, ...] = ()) -> list[tuple]:
    """Backend, T, B and H of each line of one group."""
    groups = fastest.measured(Record(list(rows), list(failures))).items()
    return [(one.backend, one.T, one.B, one.H) for group in groups for one in fastest.lines(*group)]


def test_one_box_holds_what_one_backend_wins():
    rows = [row(problem(T, B, H), "cuda hoisted", 2.0) for T in (35, 128) for B in (1, 64) for H in (64, 256)]
    assert drawn(*rows) == [("cuda", (35, ANY), (1, 64), (1, 256))]


def test_a_lost_point_is_in_no_box():
    lost = row(problem(128, 64, 256), "cuda hoisted", 0.9)
    rows = [row(problem(128, B, H), "cuda hoisted", 2.0) for B in (1, 64) for H in (64, 256) if (B, H) != (64, 256)]
    assert drawn(*rows, lost) == [("cuda", (128, ANY), (1, 1), (1, 256)), ("cuda", (128, ANY), (64, 64), (1, 64))]


def test_each_backend_has_what_it_wins():
    rows = [row(problem(128, 8, H), f"{name} hoisted", ratio) for H, name, ratio in (
        (64, "cuda", 3.0), (64, "triton", 2.0), (512, "cuda", 1.5), (512, "triton", 2.5),
    )]  # fmt: skip
    assert drawn(*rows) == [("cuda", (128, ANY), (8, 8), (1, 64)), ("triton", (128, ANY), (8, 8), (512, 512))]


def test_the_least_of_all_layouts_counts():
    rows = [row(problem(128, 8, 64, layout=layout), "cuda hoisted", 2.0) for layout in ("", "bidirectional")]
    assert len(drawn(*rows)) == 1
    assert not drawn(*rows, row(problem(128, 8, 64, layout="2 layers"), "cuda hoisted", 0.8))


def test_a_failure_a_doubtful_gain_another_clock_and_another_schedule_win_nothing():
    one = problem(128, 8, 64)
    won = row(one, "triton hoisted", 2.0)
    assert not drawn(won, failures=(Failure(str(one), "triton hoisted", "no"),))
    assert len(drawn(won, failures=(Failure(str(one), "triton hoisted capture", "no"),))) == 1
    assert not drawn(row(one, "triton hoisted", 1.01, spread=0.02))
    assert not drawn(row(one, "triton hoisted", 2.0, clock="graph"))
    assert not drawn(row(one, "triton concat", 2.0), row(one, "auto", 2.0), row(one, "torch", 2.0))


SIZES = list(itertools.product((35, 128), (1, 16, 64), (64, 256, 512)))
RATIOS = st.one_of(st.none(), st.sampled_from([0.5, 0.99, 1.0, 1.01, 1.2, 1.3, 2.0, 4.0]))


@given(st.fixed_dictionaries({(name, size): RATIOS for name in fastest.RIVALS for size in SIZES}))
def test_what_is_won_is_taken_and_what_is_lost_is_not(ratios):
    rows = [row(problem(*size), f"{name} hoisted", ratio, 0.015) for (name, size), ratio in ratios.items() if ratio]
    for group, measured in fastest.measured(Record(rows)).items():
        lines = fastest.lines(group, measured)
        for size in SIZES:
            facts = problem(*size).facts
            taken = next((line.backend for line in lines if line.covers(facts)), None)
            assert taken is None or measured.may_have(taken, size)
            if any(measured.wins(name, size) for name in fastest.RIVALS):
                assert taken is not None and measured.wins(taken, size)
            assert not any(line.covers(dataclasses.replace(facts, save="none")) for line in lines)


def test_the_written_table_is_that_of_the_results(tmp_path):
    """Files of two runs: the later one's row of a problem counts."""
    for torch, ratio in (("2.11", 3.0), ("2.12", 0.5)):
        rows = [row(problem(128, 8, 64), "cuda hoisted", ratio), row(problem(128, 8, 512), "cuda hoisted", 2.0)]
        path = tmp_path / f"a-gpu-torch-{torch}-fusedrnn.json"
        Record(rows).save(path)
        kept = json.loads(path.read_text())
        kept["machine"]["gpu_capability"] = [9, 0]
        path.write_text(json.dumps(kept))
    text = fastest.source(fastest.tables(tmp_path))
    written = tmp_path / "fastest.py"
    written.write_text(text)
    (capability, lines), *others = runpy.run_path(str(written))["ON_GPU"].items()
    assert capability == (9, 0) and not others
    assert lines == (("cuda", "lstm", "float16", True, (128, ANY), (8, 8), (512, 512)),)
    assert "a-gpu-torch-2.11-fusedrnn.json" in text


def test_the_table_of_the_package_is_drawn_from_the_results_that_are_kept():
    wanted = fastest.source(fastest.tables(RESULTS))
    assert fastest.TABLE.read_text() == wanted, "python -m benchmarks.gpu.fastest --write"


@pytest.mark.parametrize("training", [True, False])
def test_groups_are_told_apart(training):
    rows = [
        row(dataclasses.replace(problem(128, 8, 64, cell, precision), training=training), "cuda hoisted", 2.0)
        for cell in ("rnn", "gru") for precision in ("ieee", "tf32", "bf16")
    ]  # fmt: skip
    groups = fastest.measured(Record(rows))
    assert list(groups) == [
        (op, precision, training) for op in ("gru", "rnn") for precision in ("bfloat16", "ieee", "tf32")
    ]
    assert all(len(fastest.lines(*group)) == 1 for group in groups.items())
