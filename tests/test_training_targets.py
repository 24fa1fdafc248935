"""The rows of trained recipes: taken from a run's folder, kept, and shown."""

from __future__ import annotations

import json

import pytest

from benchmarks import targets
from fusedrnn.cli import main

RECIPE = {"corpus": "pydoc", "hidden": 8, "max_tokens": 2000, "batch_size": 4, "steps": 10, "validation": 0.2}


def made(preset="d2l-gru", library="fusedrnn", seed=0, threads=2, epochs=500, **numbers):
    kept = {"perplexity": 1.05, "seconds": 60.0, "machine": {}, "continuation": "time", "in_corpus": True} | numbers
    return {"preset": preset, "library": library, "epochs": epochs, "seed": seed, "threads": threads, **kept}


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setattr(targets, "presets", lambda: {"other": "", "small": ""})
    monkeypatch.setattr(targets, "read_preset", lambda name: RECIPE | ({"hidden": 9} if name == "other" else {}))


def test_a_row_is_taken_from_the_folder_of_a_run(recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    options = "--hidden 8 --max-tokens 2000 --batch-size 4 --steps 10 --validation 0.2 --epochs 2 --seed 3"
    assert main(["train", "pydoc", *options.split(), "--out", str(run)]) == 0
    monkeypatch.setattr(targets, "FILE", tmp_path / "targets.json")
    for _ in range(2):
        targets.keep(targets.of_run(run))
    [row] = json.loads(targets.FILE.read_text())
    results = json.loads((run / "results.json").read_text())
    assert (row["preset"], row["library"], row["seed"], row["epochs"]) == ("small", "fusedrnn", 3, 2)
    assert row["validation"] == pytest.approx(results["validation"]["loss"], abs=1e-4)
    assert row["continuation"].startswith("time traveller")
    assert "test" not in row


def test_a_run_of_other_options_is_no_recipe(recipe, tmp_path):
    run = tmp_path / "run"
    assert main(["train", "pydoc", "--hidden", "8", "--max-tokens", "2000", "--epochs", "1", "--out", str(run)]) == 0
    with pytest.raises(SystemExit, match="no recipe"):
        targets.of_run(run)


def test_tables_show_medians_spreads_and_what_is_missed():
    seeds = [made(seed=seed, perplexity=p, threads=t) for seed, p, t in ((0, 1.02, 2), (1, 1.5, 1), (2, 1.2, 1))]
    rows = [*seeds, made(library="torch", seconds=90.0), made(epochs=3, seed=9)]
    rows += [made("tinyshakespeare", validation=1.5, threads=1), made("timemachine", validation=1.7, test=1.8)]
    lines = targets.tables(rows)
    assert "| `d2l-gru` | 1.0 | 1.10 | 1.200 **missed** (1.020 to 1.500) | 1.050 | 3 and 1 | 2 | 60 | 90 |" in lines
    assert "| `tinyshakespeare` | validation | 1.55 | 1.500 |  | 1 and 0 | 1 | 60 |  |" in lines
    assert "| `timemachine` | test |  | 1.800 |  | 1 and 0 | 2 | 60 |  |" in lines
    assert "| `d2l-rnn` | 1.3 | 1.35 |  |  | 0 |  |  |  |" in lines
    assert not any("`tinyshakespeare` | test" in line for line in lines)
