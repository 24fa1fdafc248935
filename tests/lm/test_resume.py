"""A run that was interrupted and gone on with is the run that was not, to the bit."""

import csv
import dataclasses
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fusedrnn.cli import main
from fusedrnn.lm import RunFolderError, Trainer, checkpoint
from fusedrnn.lm.run_folder import GIVEN, resume

from .conftest import SMALL

KINDS = {
    "plain": {},
    "random batches": {"sampling": "random"},
    "adam, dropout": {"optimizer": "adam", "lr": 0.01, "layers": 2, "dropout": 0.3, "schedule": "cosine", "warmup": 3},
    "lstm, all dropped": {"cell": "lstm", "layers": 2, "locked_dropout": 0.3, "weight_drop": 0.3, "tied": True},
    "momentum, parts": {"momentum": 0.9, "lr": 0.1, "accumulate": 2, "cell": "lstm"},
    "validation": {"validation": 0.2, "patience": 2, "optimizer": "adamw", "lr": 0.1, "max_tokens": 1300},
    "words": {"tokens": "word", "max_vocab": 50, "embed": 6, "embed_dropout": 0.2},
    "16 bits": {"amp": "fp16"},
}


class Stop(Exception):
    pass


def run_to(trainer, step, folder):
    """Train until so many steps have passed, and leave a checkpoint there."""

    def after_step():
        if trainer.step == step:
            checkpoint.save(folder, trainer)
            raise Stop

    with pytest.raises(Stop):
        for _ in trainer.run(after_step):
            pass


def finished(trainer):
    for _ in trainer.run():
        pass
    return trainer


def without_times(history):
    return [dataclasses.replace(epoch, tokens_per_second=0, seconds=0) for epoch in history]


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_goes_on_to_the_bit(tmp_path, small, options):
    config = dataclasses.replace(SMALL, epochs=3, **options)
    alone = finished(Trainer(config, small))
    batches = len(alone.batches)
    torch.manual_seed(5)  # of no consequence
    for step in (1, batches - 1, batches, batches + 3):
        run_to(Trainer(config, small), step, tmp_path)
        resumed = Trainer(config, small)
        assert checkpoint.load(tmp_path, resumed) == ""
        assert resumed.step == step
        finished(resumed)
        assert without_times(resumed.history) == without_times(alone.history)
        for ours, theirs in ((alone.model.state_dict(), resumed.model.state_dict()), (alone.best, resumed.best)):
            assert (ours is None) == (theirs is None)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours or ())
        assert (resumed.best is None) == (not config.validation)


def test_more_epochs_go_on_from_the_end(tmp_path, small):
    alone = finished(Trainer(dataclasses.replace(SMALL, epochs=4), small))
    run_to(Trainer(SMALL, small), 24, tmp_path)
    resumed = Trainer(dataclasses.replace(SMALL, epochs=4), small)
    checkpoint.load(tmp_path, resumed)
    assert without_times(finished(resumed).history) == without_times(alone.history)


KILLED = ["--hidden", "24", "--layers", "2", "--batch-size", "8", "--steps", "10", "--tokens", "course"]
KILLED += ["--epochs", "6", "--validation", "0.2", "--dropout", "0.2", "--optimizer", "adam", "--lr", "0.02"]


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path, capsys, small):
    (tmp_path / "text.txt").write_text(small.text[:1500])
    script = [
        sys.executable,
        Path(__file__).with_name("killed.py"),
        tmp_path / "runs",
        "20",
        "0",
        tmp_path / "text.txt",
    ]
    done = subprocess.run([*script, *KILLED, "--save-every", "2"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == 20
    assert told["with_checkpoint"] >= 5

    def left(name):
        folder = tmp_path / "runs" / name
        rows = [
            {key: value for key, value in row.items() if key not in ("tokens_per_second", "seconds")}
            for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines())
        ]
        results = json.loads((folder / "results.json").read_text())
        results.pop("seconds")
        assert main(["sample", str(folder), "--temperature", "1"]) == 0
        text = capsys.readouterr().out
        assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
        return (folder / "model.safetensors").read_bytes(), rows, results, text

    assert told["runs"] >= 1
    for number in range(told["runs"]):
        assert left(f"run{number}") == left("alone")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def replace_by_weights(path):
    path.write_bytes((path.parent / "model.safetensors").read_bytes())


def replace_by_other_run(path):
    (path.parent / "other").mkdir()
    from fusedrnn.lm import load_corpus

    run_to(Trainer(dataclasses.replace(SMALL, seed=7), load_corpus("pydoc")), 5, path.parent / "other")
    (path.parent / "other" / checkpoint.LAST).rename(path)


def replace_by_another_shape(path):
    """With a sum that is right."""
    run = checkpoint._identity(resume(path.parent)[0])
    metadata = json.dumps({"format": checkpoint.FORMAT, "run": run, "state": {}})
    tensors = {"a": torch.zeros(1)}
    named = {"fusedrnn": metadata, "sum": checkpoint._sum(tensors, metadata)}
    path.write_bytes(safetensors.torch.save(tensors, named))


DAMAGES = {
    "of another shape": (replace_by_another_shape, "not what a run saves"),
    "cut off": (cut, "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "one bit": (flip, "damaged: its contents do not have the sum"),
    "gone": (Path.unlink, "cannot read"),
    "weights": (replace_by_weights, "no checkpoint of fusedrnn"),
    "of another run": (replace_by_other_run, "of another run: seed differ"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_the_last_checkpoint_is_no_good_the_one_before_serves(run, damage):
    change, said = DAMAGES[damage]
    steps = []
    for name in (checkpoint.LAST, checkpoint.BEFORE):
        trainer, warning = resume(run)
        steps.append(trainer.step)
        assert (said in warning) == (len(steps) == 2)
        if name == checkpoint.LAST:
            change(run / name)
    assert steps == [24, 24]
    cut(run / checkpoint.BEFORE)
    with pytest.raises(RunFolderError, match="damaged") as caught:
        resume(run)
    assert "\n" not in str(caught.value)


def test_the_good_checkpoint_is_there_until_the_next_is_whole(run, monkeypatch):
    """Ended between the two renames of its first checkpoint, a run that went on from the one before goes on again."""
    cut(run / checkpoint.LAST)
    replace = os.replace

    def die(source, target):
        replace(source, target)
        if checkpoint.BEFORE in str(target) or checkpoint.LAST in str(source):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    main(["train", "--resume", str(run), "--epochs", "4", "--save-every", "1"])
    monkeypatch.undo()
    assert resume(run)[0].step >= 24


def test_an_option_that_does_not_work_is_not_kept(run, capsys):
    before = (run / "config.json").read_bytes()
    assert main(["train", "--resume", str(run), "--epochs", "3", "--backend", "triton"]) == 2
    assert "backend 'triton' cannot run" in capsys.readouterr().err
    assert (run / "config.json").read_bytes() == before
    assert main(["train", "--resume", str(run), "--epochs", "3", "--backend", "reference"]) == 0
    assert json.loads((run / "config.json").read_text())["train"]["backend"] == "reference"


@pytest.mark.parametrize("kept", GIVEN)
def test_a_run_without_checkpoints_is_not_begun_anew(run, kept, capsys):
    for name in {*GIVEN, checkpoint.LAST, checkpoint.BEFORE} - {kept}:
        (run / name).unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 2
    assert "has no checkpoint to go on from; train it anew with --force" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    (run / kept).unlink()
    assert resume(run)[0].step == 0


def test_other_text_is_refused(run):
    (run / "text.txt").write_text("another text")
    with pytest.raises(RunFolderError, match=r"text\.txt: its sha1 is"):
        resume(run)


def test_full_disk_leaves_the_last_checkpoint(run, small, capsys):
    """No file may become longer than 1000 bytes: what a full disk does, without filling one."""
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        status = main(["train", "--resume", str(run), "--epochs", "3", "--save-every", "1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    assert "File too large" in error
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} <= {"config.json"}
    assert resume(run)[0].step == 24


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trap_was_sprung"),)


def test_nothing_pickled_is_ever_read(run, monkeypatch, tmp_path):
    """Under any name it may have, beside the files and in place of each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the time machine")
    trap = pickle.dumps(Trap())
    for name in ("model.pt", "model.bin", "checkpoint.pkl", "checkpoint.pt"):
        (run / name).write_bytes(trap)
    assert main(["sample", str(run), "--length", "5"]) == 0
    assert main(["train", "--resume", str(run), "--epochs", "3"]) == 0
    for path in sorted(run.iterdir()):
        good = path.read_bytes()
        path.write_bytes(trap)
        main(["sample", str(run)])
        main(["eval", str(run), str(tmp_path / "text.txt")])
        main(["train", "--epochs", "4", "--resume", str(run)])
        path.write_bytes(good)
    assert not (tmp_path / "trap_was_sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "trap_was_sprung").exists()
