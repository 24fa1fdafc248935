import csv
import dataclasses
import hashlib
import json

import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from fusedrnn.cli import main
from fusedrnn.lm import RunFolderError, Trainer, TrainingDiverged, checkpoint, plots
from fusedrnn.lm.corpus import pydoc_in_place_of
from fusedrnn.lm.plots import draw_curve
from fusedrnn.lm.run_folder import FILES, RunFolder, describe, load_run, read_history, resume

from .conftest import SMALL


def trained(corpus, folder, **options):
    trainer = Trainer(dataclasses.replace(SMALL, **options), corpus)
    target = RunFolder(folder)
    for _ in trainer.run():
        if len(trainer.history) == 1:
            target.begin(trainer)
    target.finish(trainer)
    return trainer


def files(folder):
    return sorted(path.name for path in folder.iterdir())


WRITTEN = sorted(set(FILES) - {checkpoint.BEFORE})


def test_files(tmp_path, small):
    trainer = trained(small, tmp_path / "a" / "run")
    folder = tmp_path / "a" / "run"
    assert files(folder) == WRITTEN
    config = json.loads((folder / "config.json").read_text())
    assert config["train"] == dataclasses.asdict(trainer.config)
    assert config["corpus"]["sha1"] == hashlib.sha1((folder / "text.txt").read_bytes()).hexdigest()
    assert (folder / "text.txt").read_bytes() == small.data
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == [epoch.loss for epoch in trainer.history]
    with Image.open(folder / "curve.png") as curve:
        assert curve.size == (1080, 630)


@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm"])
def test_read_back_is_what_was_written(tmp_path, small, cell):
    trainer = trained(small, tmp_path / "run", cell=cell, layers=2)
    tokens = trainer.batches.tokens[:20].unsqueeze(1)
    for library in ("fusedrnn", "torch"):
        run = load_run(tmp_path / "run", library)
        assert run.vocab.idx_to_token == trainer.data.vocab.idx_to_token
        assert run.label == "pydoc"
        torch.testing.assert_close(run.model(tokens)[0], trainer.model(tokens)[0], rtol=0, atol=1e-5)


def test_safetensors_file_loads_into_torch(run):
    weights = safetensors.torch.load_file(run / "model.safetensors")
    layer = {name.removeprefix("rnn."): weight for name, weight in weights.items() if name.startswith("rnn.")}
    vocabulary = len(json.loads((run / "vocab.json").read_text())["idx_to_token"])
    nn.GRU(vocabulary, SMALL.hidden).load_state_dict(layer)


def test_every_output_names_what_a_corpus_stands_in_for(tmp_path):
    trainer = trained(pydoc_in_place_of("timemachine"), tmp_path / "run")
    label = "pydoc (standing in for timemachine)"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["corpus"]["label"] == label
    metrics = (tmp_path / "run" / "metrics.csv").read_text()
    assert {row["corpus"] for row in csv.DictReader(metrics.splitlines())} == {label}
    assert load_run(tmp_path / "run").label == label
    assert label in describe(trainer.config, label)


@pytest.mark.parametrize("where", ["loss", "weight", "last weight"])
def test_what_has_diverged_is_not_saved(run, where):
    """A loss is known before the step that follows from it: its weights may be the first to go."""
    before = {path: path.read_bytes() for path in run.iterdir()}
    trainer, _ = resume(run, epochs=3)

    def after_step():
        if where == "loss":
            trainer.losses[-1].fill_(torch.inf)
        elif where == "weight" or trainer.step == trainer.steps:
            trainer.model.head.bias.data[1] = torch.nan
        if where != "last weight":
            RunFolder.of(run).save(trainer)

    with pytest.raises(TrainingDiverged, match=r"(the loss became inf|a weight became nan) in epoch 3"):
        for _ in trainer.run(after_step):
            RunFolder.of(run).finish(trainer)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_corpus_of_any_name_is_read_back(tmp_path, small):
    trainer = trained(dataclasses.replace(small, name='a\u2028b\nc\r,"d'), tmp_path / "run")
    assert read_history(tmp_path / "run") == trainer.history


def test_used_folder_is_refused_and_left_as_it_was(run):
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(RunFolderError, match="is not empty"):
        RunFolder(run)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_force_replaces_a_run_and_nothing_else(run, small):
    (run / "notes.md").write_text("mine")
    trainer = Trainer(dataclasses.replace(SMALL, seed=1), small)
    folder = RunFolder(run, force=True)
    assert (run / "model.safetensors").exists()  # until there is something to put in its place
    folder.begin(trainer)
    assert files(run) == ["config.json", "notes.md", "text.txt", "vocab.json"]


def test_force_leaves_alone_what_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="holds something that is no run"):
        RunFolder(tmp_path, force=True)


@pytest.mark.parametrize("config", ["{}", "[]", '{"model_type": "gpt2"}', "not json"])
def test_force_leaves_alone_what_another_program_configures(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_text("of a model of theirs")
    with pytest.raises(RunFolderError, match=r"holds something that is no run; it is left alone: .*config\.json: "):
        RunFolder(tmp_path, force=True)


def test_a_folder_is_one_processs_at_a_time(run, tmp_path, capsys):
    """A second open of it is refused in one process as in two."""
    options = ["--hidden", "8", "--batch-size", "4", "--steps", "5", "--max-tokens", "500", "--epochs", "1"]
    for path, arguments in (
        (tmp_path / "new", ["pydoc", *options, "--out", str(tmp_path / "new")]),
        (run, ["pydoc", *options, "--out", str(run), "--force"]),
        (run, ["--resume", str(run), "--epochs", "3"]),
    ):
        held = RunFolder(path, force=True)
        half_written = path / ".checkpoint.safetensors.1.tmp"
        half_written.touch()
        before = files(path)
        assert main(["train", *arguments]) == 2
        assert f"another process is training in '{path}'" in capsys.readouterr().err
        assert files(path) == before
        del held
        half_written.unlink()
    assert main(["train", *arguments]) == 0


def test_workers_that_do_not_lead_share_the_folder(run):
    folders = [RunFolder.of(run, leads) for leads in (True, False, False)]
    assert len(folders) == 3


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot make the run folder"):
        RunFolder(tmp_path / "file" / "run")


def edit_config(change):
    def damage(run):
        config = json.loads((run / "config.json").read_text())
        change(config)
        (run / "config.json").write_text(json.dumps(config))

    return damage


DAMAGES = {
    **{
        f"no {name}": lambda run, name=name: (run / name).unlink()
        for name in FILES
        if name in ("config.json", "vocab.json", "model.safetensors")
    },
    "config not json": lambda run: (run / "config.json").write_text("{"),
    "config not utf-8": lambda run: (run / "config.json").write_bytes(b"\xff\xfe\xfd"),
    "config a list": lambda run: (run / "config.json").write_text("[]"),
    "config of the future": edit_config(lambda config: config.update(format=99)),
    "config of another shape": edit_config(lambda config: config.update(environment=3)),
    "config incomplete": edit_config(lambda config: config.pop("corpus")),
    "unknown option": edit_config(lambda config: config["train"].update(attention=True)),
    "unknown cell": edit_config(lambda config: config["train"].update(cell="elman")),
    "other hidden size": edit_config(lambda config: config["train"].update(hidden=17)),
    "hidden size no integer": edit_config(lambda config: config["train"].update(hidden=16.0)),
    "other number of layers": edit_config(lambda config: config["train"].update(layers=10**9)),
    "other cell": edit_config(lambda config: config["train"].update(cell="lstm")),
    "vocab not json": lambda run: (run / "vocab.json").write_text("<unk>"),
    "vocab too short": lambda run: (run / "vocab.json").write_text('{"idx_to_token": ["<unk>", "a"]}'),
    "weights cut off": lambda run: (run / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{"),
    "weights not finite": lambda run: safetensors.torch.save_file(
        {name: weight * torch.nan for name, weight in safetensors.torch.load_file(run / "model.safetensors").items()},
        run / "model.safetensors",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_run(run, damage):
    DAMAGES[damage](run)
    with pytest.raises(RunFolderError, match=r"config\.json|vocab\.json|model\.safetensors") as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


def test_history_is_read_back_and_drawn(run, tmp_path, small, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = trained(small, tmp_path / "other", validation=0.2, epochs=4)
    assert read_history(tmp_path / "other") == trainer.history
    for folders in (["run"], ["other"], ["run", "other"]):
        assert main(["plot", *folders, "--out", "curves.png"]) == 0
        assert capsys.readouterr().out == "curves curves.png\n"
        with Image.open("curves.png") as picture:
            assert picture.size == (1080, 630)


def test_curve_of_any_title_and_length(small):
    trainer = Trainer(SMALL, small)
    next(trainer.run())
    for title in ("one epoch of $a$ \u6f22 " + "long " * 40, "long " * 40 + r"$\frac$", r"a\$_$"):
        assert draw_curve(trainer.history, title).startswith(b"\x89PNG")


def test_every_run_is_in_the_legend_by_its_name(small, monkeypatch):
    drawn = []
    png = plots._png

    def seen(figure, axes):
        drawn.append(axes)
        return png(figure, axes)

    monkeypatch.setattr(plots, "_png", seen)
    trainer = Trainer(SMALL, small)
    next(trainer.run())
    names = [r"$\frac$", "_u", "$a_$", "r\u6f22"]
    plots.draw_runs(dict.fromkeys(names, trainer.history), "$b_$")
    value = f" {trainer.history[0].perplexity:.2f}"
    shown = [text.get_text().replace(r"\$", "$").strip() for text in drawn[0].get_legend().get_texts()]
    assert shown == [name.replace("\u6f22", r"\u6f22") + value for name in names]


def test_a_curve_that_cannot_be_drawn_costs_no_checkpoint(tmp_path, small, monkeypatch):
    def fail(history, title):
        raise RuntimeError("no picture")

    monkeypatch.setattr(plots, "draw_curve", fail)
    with pytest.raises(RuntimeError, match="no picture"):
        trained(small, tmp_path / "run")
    assert resume(tmp_path / "run")[0].finished
