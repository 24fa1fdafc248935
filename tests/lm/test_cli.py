import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusedrnn import dispatch
from fusedrnn.cli import main
from fusedrnn.lm import CORPORA
from fusedrnn.lm.run_folder import FILES
from fusedrnn.lm.text import normalize

TINY = ["--hidden", "8", "--batch-size", "4", "--steps", "5", "--max-tokens", "500", "--epochs", "2"]


@pytest.fixture
def call(capsys):
    """Run the command line in this process: (exit status, standard output, standard error)."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("library", ["fusedrnn", "torch"])
@pytest.mark.parametrize("cell", ["rnn", "rnn_relu", "gru", "lstm"])
def test_train_and_sample(call, tmp_path, cell, library):
    options = ["--cell", cell, "--library", library, "--sampling", "random", "--init", "normal"]
    status, out, err = call("train", "pydoc", *TINY, *options, "--out", tmp_path / "run")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].startswith(f"{cell} 8, pydoc, first 500 tokens: vocabulary 28, ")
    assert [line.split("  ")[:2] for line in lines[1:3]] == [["pydoc", "epoch 1/2"], ["pydoc", "epoch 2/2"]]
    assert lines[3].startswith("perplexity ")
    assert lines[4].startswith("time traveller")
    assert len(lines[4]) == 64
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(FILES)

    status, out, err = call("sample", tmp_path / "run", "--num-chars", "50")
    assert (status, out) == (0, lines[4] + "\n")
    assert err.startswith(f"# {cell} 8, pydoc, first 500 tokens; ")
    assert "tokens/s" in err


def test_sample_is_deterministic_and_takes_a_prompt_as_it_is_typed(call, run):
    outputs = [call("sample", run, "--prompt", "Hello, World", "--temperature", 1, "--seed", s)[1] for s in (5, 5, 6)]
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0].startswith("hello world")


def test_user_text_keeps_its_characters(call, tmp_path):
    (tmp_path / "verse.txt").write_text("Ça alors!\nDéjà vu.\n" * 40)
    status, out, _ = call("train", tmp_path / "verse.txt", *TINY, "--out", tmp_path / "run")
    assert status == 0
    assert "Ça alors!\nDéjà" in out  # the prompt is the text's own beginning: 'time traveller' is not in its alphabet
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["tokens"] == "char"
    assert call("sample", tmp_path / "run", "--prompt", "Déjà", "--num-chars", "3")[0] == 0


def test_default_run_folder(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", "pydoc", *TINY)[0] == 0
    assert Path("runs/pydoc-gru-8/model.safetensors").exists()


def test_offline_trains_on_pydoc_and_says_so_everywhere(call, tmp_path):
    status, out, err = call("train", "timemachine", *TINY, "--out", tmp_path / "run")
    assert status == 0
    assert err.count("\n") == 1
    assert "could not be had" in err
    assert "FUSEDRNN_DATA" in err
    label = "pydoc (standing in for timemachine)"
    assert all(label in line for line in out.splitlines()[:4])
    for name in ("config.json", "metrics.csv"):
        assert label in (tmp_path / "run" / name).read_text()
    assert label in call("sample", tmp_path / "run")[2]


def test_eval_of_what_was_not_trained_on_and_of_any_text(call, run, tmp_path):
    status, out, err = call("eval", run)
    held_out = normalize((run / "text.txt").read_text(), "course")[1000:]
    (tmp_path / "same.txt").write_text(held_out)
    assert status == 0
    assert out.endswith(f" bits a character on {len(held_out) - 1:,} characters of pydoc it was not trained on\n")
    assert err.startswith("# gru 16, pydoc, first 1,000 tokens; ")
    again = call("eval", run, tmp_path / "same.txt", "--library", "torch")[1]
    assert again.startswith("perplexity ")
    assert again.split(" on ")[0] == out.split(" on ")[0]


def test_eval_tells_what_is_not_in_the_vocabulary(call, tmp_path):
    (tmp_path / "verse.txt").write_text("Ça alors!\nDéjà vu.\n" * 40)
    (tmp_path / "other.txt").write_text("Ça va, Zoé?")
    assert call("train", tmp_path / "verse.txt", *TINY, "--out", tmp_path / "run")[0] == 0
    status, out, _ = call("eval", tmp_path / "run", tmp_path / "other.txt")
    assert status == 0
    assert out.splitlines()[1] == "3 of them are not in its vocabulary and were scored as <unk>"


def test_force_overwrites(call, run):
    before = (run / "model.safetensors").read_bytes()
    assert call("train", "pydoc", *TINY, "--seed", 1, "--out", run, "--force")[0] == 0
    assert (run / "model.safetensors").read_bytes() != before


def wrong_checksum(tmp_path):
    (tmp_path / "timemachine.txt").write_text("not it")
    return ["train", "timemachine", "--data", tmp_path]


def text_file(content):
    def arguments(tmp_path):
        (tmp_path / "text.txt").write_bytes(content)
        return ["train", tmp_path / "text.txt", "--out", tmp_path / "new"]

    return arguments


def a_letter(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    return tmp_path / "a.txt"


def in_run(change, command="sample"):
    def arguments(tmp_path):
        change(tmp_path / "run")
        return [command, tmp_path / "run"]

    return arguments


TRAIN = ["train", "pydoc", *TINY]
BAD_INPUT = {
    "nothing": ([], "required"),
    "unknown command": (["fly"], "invalid choice: 'fly'"),
    "unknown flag": ([*TRAIN, "--hiden", "5"], "--hiden"),
    "flag without value": ([*TRAIN, "--hidden"], "expected one argument"),
    "no integer": ([*TRAIN, "--hidden", "many"], "invalid int value: 'many'"),
    "unknown cell": ([*TRAIN, "--cell", "elman"], "invalid choice: 'elman'"),
    "unknown library": ([*TRAIN, "--library", "jax"], "invalid choice: 'jax'"),
    "unknown backend": ([*TRAIN, "--backend", "abacus"], "abacus"),
    "hidden 0": ([*TRAIN, "--hidden", "0"], "hidden must be"),
    "lr nan": ([*TRAIN, "--lr", "nan"], "lr must be"),
    "negative clip": ([*TRAIN, "--clip", "-1"], "clip must be"),
    "negative seed": ([*TRAIN, "--seed", "-1"], "--seed"),
    "huge seed": ([*TRAIN, "--seed", str(2**64)], "--seed"),
    "no threads": ([*TRAIN, "--threads", "0"], "--threads"),
    "negative max-tokens": ([*TRAIN, "--max-tokens", "-5"], "max_tokens must be"),
    "divergence": ([*TRAIN, "--cell", "rnn_relu", "--lr", "1e30", "--clip", "0", "--epochs", "20"], "the loss became"),
    "missing corpus": (["train", "nowhere.txt"], "'nowhere.txt' is neither a file nor one of"),
    "strict corpus": (["train", "timemachine", "--strict-corpus"], "could not be had"),
    "data for a path": (["train", "a.txt", "--data", "b"], "is not a name"),
    "sentence pairs": (["train", "fra-eng"], "no text for a language model"),
    "wrong checksum": (wrong_checksum, CORPORA["timemachine"].sha1),
    "empty corpus": (text_file(b""), "is empty"),
    "short corpus": (text_file(b"too short for a batch"), "one batch takes 1,121"),
    "latin-1 corpus": (text_file("né\n".encode("latin-1") * 2000), "is not UTF-8"),
    "run folder exists": (lambda tmp_path: [*TRAIN, "--out", tmp_path / "run"], "is not empty"),
    "folder of something else": (lambda tmp_path: [*TRAIN, "--out", tmp_path, "--force"], "is no run"),
    "eval nowhere": (["eval", "nowhere"], "nowhere/config.json"),
    "eval of no text": (lambda tmp_path: ["eval", tmp_path / "run", "nowhere.txt"], "'nowhere.txt' is neither a file"),
    "eval of damaged text": (in_run(lambda run: (run / "text.txt").write_bytes(b"\xff"), "eval"), "not the UTF-8 text"),
    "eval without a text": (in_run(lambda run: (run / "text.txt").unlink(), "eval"), "text.txt"),
    "eval of one letter": (lambda tmp_path: ["eval", tmp_path / "run", a_letter(tmp_path)], "nothing to foretell"),
    "sample nowhere": (["sample", "nowhere"], "nowhere/config.json"),
    "sample unfinished": (in_run(lambda run: (run / "model.safetensors").unlink()), "model.safetensors"),
    "sample corrupt weights": (
        in_run(lambda run: (run / "model.safetensors").write_bytes(b"junk")),
        "model.safetensors",
    ),
    "sample corrupt config": (in_run(lambda run: (run / "config.json").write_text("{")), "config.json"),
    "sample empty prompt": (lambda tmp_path: ["sample", tmp_path / "run", "--prompt", ""], "prompt is empty"),
    "sample negative": (lambda tmp_path: ["sample", tmp_path / "run", "--num-chars", "-1"], "num_chars"),
    "sample cold": (lambda tmp_path: ["sample", tmp_path / "run", "--temperature", "-1"], "temperature"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(call, run, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, fragment = BAD_INPUT[case]
    arguments = arguments(tmp_path) if callable(arguments) else arguments
    before = {path: path.read_bytes() for path in run.iterdir()}
    status, _, err = call(*arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert "error: " in err
    assert fragment in err
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_failed_start_leaves_no_run_folder_in_the_way(call, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "_environment", "abacus")
    assert call(*TRAIN, "--out", tmp_path / "run")[0] == 2
    monkeypatch.undo()
    assert call(*TRAIN, "--out", tmp_path / "run")[0] == 0


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["eval", "--help"], ["sample", "--help"], ["bench", "--help"]]
)
def test_help(call, arguments):
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    assert "usage: fusedrnn" in out


def test_info(call):
    status, out, _ = call("info")
    assert status == 0
    assert "fusedrnn" in out


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "fusedrnn.cli", "train", "nowhere.txt"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fusedrnn: error: corpus 'nowhere.txt'")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
