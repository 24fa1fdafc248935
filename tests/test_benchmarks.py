"""The benchmarks themselves: the command, what is kept, the report and its targets."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from benchmarks import parts, report, speed_targets, tables
from benchmarks.record import RESULTS, Record, Row
from fusedrnn.bench import grid, measure
from fusedrnn.bench.grid import Problem
from fusedrnn.bench.pairs import Spread

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((RESULTS / "schema.json").read_text())
TRAINING, INFERENCE = (Problem("gru", "seed-64", training) for training in (True, False))


def test_the_command_measures_and_keeps_rows(tmp_path):
    kept_by_pytest = tmp_path / "pytest.json"
    options = ["--threads=1", "--budget=0.01", f"--results={tmp_path}/results", f"--benchmark-json={kept_by_pytest}"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--benchmark", "-q", *options, "-k", "seed-64 and gru and float32"],
        cwd=ROOT, env=alone, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (kept,) = (tmp_path / "results").iterdir()
    jsonschema.validate(json.loads(kept.read_text()), SCHEMA)
    rows = {(row.problem, row.side): row for row in Record.load(kept).rows}
    sides = {(str(p), side) for p in (TRAINING, INFERENCE) for side in (*measure.sides_of(p), measure.FLOOR)}
    assert rows.keys() == sides
    for (name, side), row in rows.items():
        assert f" {side} " in done.stdout
        assert row.threads == 1
        if side == measure.FLOOR:
            continue
        assert 0 < row.ratio.p20 <= row.ratio.median <= row.ratio.p80
        assert row.over_floor.median > 0 and 0 < row.error < 1e-5
        assert (row.onnxruntime_ratio is None) == (name == str(TRAINING))
        assert (row.backend is None) == (side != "auto")
    assert f"kept in {kept}" in done.stdout
    shown = {(e["group"], e["name"]): e["stats"] for e in json.loads(kept_by_pytest.read_text())["benchmarks"]}
    for (name, side), row in rows.items():  # what pytest-benchmark shows is what was measured by turns
        assert 1e3 * shown[f"{name}, 1 threads", side]["median"] == pytest.approx(row.ms.median, rel=1e-3)


def test_both_sides_are_given_the_same():
    theirs, ours = grid.torch_module(TRAINING), grid.fused_module(TRAINING, "reference", "auto")
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert one.equal(other)


def spread(median: float) -> Spread:
    return Spread(median, 0.9 * median, 1.1 * median)


def made(problem: Problem | str, ratio: float = 2.0, side: str = "auto", **more) -> Row:
    """A row that nothing was timed for."""
    return Row(str(problem), side, 2, spread(1.0), spread(ratio), spread(ratio), **more)


def grid_of(cell: str, ratio: float, training: bool = True, precision: str = "ieee", **more) -> list[Row]:
    return [made(Problem(cell, size, training, "cpu", precision), ratio, **more) for size in grid.SIZES]


def verdict(rows: list[Row], *words: str) -> tuple[str, bool | None]:
    """Measured and reached of the one target whose text has these words."""
    [found] = [t for t in speed_targets.targets(rows) if all(word in t.what for word in words)]
    return found.measured, found.reached


def test_geometric_means_are_over_the_grid_alone():
    rows = [*grid_of("gru", 4.6), made(Problem("gru", "d2l-256", True, layout="packed"), 0.1),
            made(Problem("gru", "T9-B32-I28-H256", True), 0.1)]  # fmt: skip
    assert verdict(rows, "gru, float32", "geometric mean") == ("4.60 over 8 of 8 rows", True)
    assert verdict(grid_of("gru", 4.4), "gru, float32", "geometric mean")[1] is False
    assert verdict(rows, "gru, bf16", "geometric mean") == ("not measured", None)
    assert verdict(grid_of("lstm", 1.3, precision="bf16"), "lstm, bf16", "geometric mean")[1] is True


def test_a_lost_row_misses_its_target_and_is_named():
    rows = grid_of("lstm", 2.0)
    assert verdict(rows, "float32, forward+backward: rows") == ("0 of 8", True)
    name = str(Problem("lstm", "d2l-256", True, layout="2 layers"))
    assert verdict([*rows, made(name, 0.9)], "float32, forward+backward: rows") == (f"1 of 9; {name} 0.90", False)
    assert verdict([*rows, made(name, 0.9, backend="torch")], "float32, forward+backward: rows")[1] is True
    assert verdict([*rows, made(name, 0.8, backend="torch")], "float32, forward+backward: rows")[1] is False


def test_only_the_most_threads_count():
    one = [dataclasses.replace(row, threads=1) for row in grid_of("rnn", 0.5)]
    assert verdict([*grid_of("rnn", 5.0), *one], "rnn, float32", "geometric mean") == ("5.00 over 8 of 8 rows", True)


def test_the_distance_to_the_floor_has_a_target_for_each_width():
    rows = [made(TRAINING, over_floor=spread(1.9)), made(Problem("gru", "ptb-650", True), over_floor=spread(1.4))]
    assert verdict(rows, "GEMMs", "H = 64") == ("beyond it 0 of 1", True)
    assert verdict(rows, "GEMMs", "H >= 256") == ("beyond it 1 of 1; gru ptb-650 forward+backward cpu 1.40", False)


def test_onnxruntime_is_judged_by_its_own_ratio():
    cells = {cell: grid_of(cell, 0.1, training=False, onnxruntime_ratio=spread(1.3)) for cell in grid.CELLS}
    rows = [row for own in cells.values() for row in own]
    assert verdict(rows, "onnxruntime: geometric mean") == ("1.30 over 24 of 24 rows", True)
    assert verdict(cells["gru"], "onnxruntime: geometric mean") == ("1.30 over 8 of 24 rows", None)
    assert verdict(rows, "onnxruntime: rows") == ("0 of 24", True)
    lost = made(Problem("rnn", "seed-64", False, layout="2 layers"), onnxruntime_ratio=spread(0.5))
    assert verdict([*rows, lost], "onnxruntime: rows")[1] is False


def test_cold_start_and_training_steps_have_targets():
    new = Row("cold start, new length", "auto", 0, spread(1.0), over_floor=spread(1.1))
    rows = [new, Row("cold start, import", "auto", 0, spread(61.0)), made("training step gru 64", 5.1)]
    assert verdict(rows, "new length")[1] is True
    assert verdict([dataclasses.replace(new, over_floor=spread(1.2))], "new length")[1] is False
    assert verdict(rows, "import") == ("61 ms", False)
    assert verdict(rows, "training step gru 64") == ("5.10", True)
    rest = Row("training step gru 64", "rest", 2, spread(0.7))
    assert verdict([*rows, rest], "all but the layer") == ("0.70 ms", None)


def test_a_lost_row_is_shown_and_marked():
    rows = [made(TRAINING, 0.8), made(TRAINING, 1.5, "cpu concat"), made(INFERENCE, 2.0, onnxruntime_ratio=spread(0.5))]
    lost, won = tables.layers(rows)[2:]
    assert "| **0.80 (0.72 to 0.88) lost** |" in lost and "| 1.50 (1.35 to 1.65) |" in lost
    assert "| 2.00 (1.80 to 2.20) | **0.50 (0.45 to 0.55) lost** |" in won


def test_the_report_is_written_from_files_alone(tmp_path):
    results, out = tmp_path / "results", tmp_path / "out"
    assert report.cpu_files(RESULTS).keys() <= {p for p in RESULTS.glob("*.json") if "cpu" in p.name}
    rows = [*grid_of("gru", 0.5), *grid_of("lstm", 30.0, training=False, onnxruntime_ratio=spread(1.2))]
    rows += [made(Problem("gru", "T9-B32-I28-H256", True)), made("training step gru 64")]
    rows += [dataclasses.replace(row, side=side) for row in rows[:9] for side in (grid.TORCH, measure.FLOOR)]
    Record([dataclasses.replace(row, over_floor=spread(1.5)) for row in rows]).save(results / "made.json")
    text = report.write(results, out).read_text()
    assert text.count("\n| ") == 2 + len(speed_targets.targets(rows)) + sum(2 * n for n in (1, 1, 1)) + 17 + 1
    pictures = sorted(path.name for path in (out / "plots" / "made").iterdir())
    assert pictures == ["floor.png", "inference.png", "onnxruntime.png", "scaling.png", "training.png"]
    for name in pictures:
        assert f"](plots/made/{name})" in text
        assert (out / "plots" / "made" / name).read_bytes().startswith(b"\x89PNG")


def test_parts_of_a_call_add_up_to_it(capsys):
    parts.main(["gru", "decode-256"])
    heads, row = capsys.readouterr().out.splitlines()
    assert heads.split()[1:] == ["call", "forward", "backward", "rest", "GEMMs", "over"]
    assert row.startswith("gru decode-256")
    call, forward, backward, rest, gemms, over = map(float, row.split()[-6:])
    assert min(forward, backward, rest, gemms) > 0
    assert call == pytest.approx(forward + backward + rest, rel=0.2)
    assert over == pytest.approx((forward + backward) / gemms, rel=0.5)


@pytest.mark.parametrize(
    ("given", "said"), [(["gru"], "of which size"), (["gru", "small"], "seed-64"), (["cnn"], "rnn")]
)
def test_parts_of_nothing_known(given, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        parts.main(given)
    assert said in capsys.readouterr().err
