import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusedrnn import dispatch
from fusedrnn.cli import main
from fusedrnn.lm import CORPORA, checkpoint, plots
from fusedrnn.lm.run_folder import FILES, read_history
from fusedrnn.lm.text import TOKENIZERS

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
    assert {path.name for path in (tmp_path / "run").iterdir()} == set(FILES) - {checkpoint.BEFORE}

    status, out, err = call("sample", tmp_path / "run", "--length", "50")
    assert (status, out) == (0, lines[4] + "\n")
    assert err.startswith(f"# {cell} 8, pydoc, first 500 tokens; ")
    assert "tokens/s" in err


def test_sample_is_deterministic_and_takes_a_prompt_as_it_is_typed(call, run):
    outputs = [call("sample", run, "--prompt", "Hello, World", "--temperature", 1, "--seed", s)[1] for s in (5, 5, 6)]
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0].startswith("hello world")


def test_prompts_from_files_and_several_texts(call, run, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("Hello, World\n")
    greedy = call("sample", run, "--prompt", "hello world")[1]
    assert call("sample", run, "--prompt-file", tmp_path / "prompt.txt")[1] == greedy
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello, World\n")))
    assert call("sample", run, "--prompt-file", "-")[1] == greedy
    assert call("sample", run, "--prompt", "hello world", "--num", 2)[1] == f"{greedy}\n{greedy}"
    drawn = call("sample", run, "--num", 3, "--temperature", 1, "--top-k", 5, "--top-p", 0.9, "--length", 20)[1]
    texts = drawn.rstrip("\n").split("\n\n")
    assert len(set(texts)) == 3
    assert all(text.startswith("time traveller") and len(text) == 34 for text in texts)


def test_user_text_keeps_its_characters(call, tmp_path):
    (tmp_path / "verse.txt").write_text("Ça alors!\nDéjà vu.\n" * 40)
    status, out, _ = call("train", tmp_path / "verse.txt", *TINY, "--out", tmp_path / "run")
    assert status == 0
    assert "Ça alors!\nDéjà" in out  # the prompt is the text's own beginning: 'time traveller' is not in its alphabet
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["tokens"] == "char"
    assert call("sample", tmp_path / "run", "--prompt", "Déjà", "--length", "3")[0] == 0


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


def test_eval_of_what_was_not_trained_on_and_of_any_text(call, tmp_path, small):
    text = TOKENIZERS["course"].split(small.text)[:3000]
    for name, content in (("text", text), ("rest", text[500:]), ("test", text[-300:])):
        (tmp_path / f"{name}.txt").write_text(content)
    assert call("train", tmp_path / "text.txt", *TINY, "--out", tmp_path / "run")[0] == 0
    status, out, err = call("eval", tmp_path / "run")
    assert status == 0
    assert " nats a character, " in out
    label = f"{tmp_path / 'text.txt'}, what it was not trained on"
    assert out.endswith(f" bits a character on 2,499 characters of {label}\n")
    assert err.startswith("# gru 8, ")
    again = call("eval", tmp_path / "run", tmp_path / "rest.txt", "--library", "torch")[1]
    assert again.split(" on ")[0] == out.split(" on ")[0]
    parts = ["--max-tokens", "0", "--validation", "0.2", "--test", "0.1"]
    status, out, _ = call("train", tmp_path / "text.txt", *TINY, *parts, "--out", tmp_path / "parts")
    assert status == 0
    test = next(line for line in out.splitlines() if line.startswith("test perplexity "))
    assert test.endswith(" nats on 299 tokens")
    for given in ([], [tmp_path / "test.txt"]):
        out = call("eval", tmp_path / "parts", *given)[1]
        assert out.split()[1] == test.split()[2].rstrip(",")


@pytest.mark.parametrize("tokens", ["byte", "word"])
def test_bytes_and_words(call, tmp_path, tokens):
    (tmp_path / "verse.txt").write_text("Ça alors, déjà vu.\n" * 60)
    options = [*TINY, "--max-tokens", "0", "--tokens", tokens, "--tied"]
    if tokens == "word":
        options += ["--max-vocab", "3"]  # of five
    status, out, _ = call("train", tmp_path / "verse.txt", *options, "--out", tmp_path / "run")
    assert status == 0
    (tmp_path / "other.txt").write_text("Ça alors, déjà lu.\n" * 3)
    status, out, _ = call("eval", tmp_path / "run", tmp_path / "other.txt")
    assert status == 0
    assert f" nats a {tokens}, " in out
    characters = 54 if tokens == "word" else 57  # the first token is not scored; half a letter remains of bytes
    assert f" {tokens}s, {characters} characters, of " in out
    assert ("in its vocabulary" in out) == (tokens == "word")
    status, out, _ = call("sample", tmp_path / "run", "--prompt", "Ça alors,", "--length", "7")
    assert status == 0
    assert out.startswith("Ça alors,")
    assert call("sample", tmp_path / "run", "--prompt", "lu.", "--length", "7")[0] == (0 if tokens == "byte" else 2)


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


def toml(content):
    def arguments(tmp_path):
        (tmp_path / "options.toml").write_text(content)
        return ["train", "--config", tmp_path / "options.toml"]

    return arguments


def a_letter(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    return tmp_path / "a.txt"


def in_run(change, command="sample"):
    def arguments(tmp_path):
        change(tmp_path / "run")
        return [*(["train", "--resume"] if command == "resume" else [command]), tmp_path / "run"]

    return arguments


def edit(path, pattern, new):
    path.write_text(re.sub(pattern, new, path.read_text()))


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
    "negative seed": ([*TRAIN, "--seed", "-1"], "seed must be from 0 to 2**63 - 1, got -1"),
    "huge seed": ([*TRAIN, "--seed", str(2**64)], "seed must be from 0"),
    "unknown preset": (["train", "--preset", "gpt"], "invalid choice: 'gpt'"),
    "no such options": (["train", "--config", "nowhere.toml"], "cannot read 'nowhere.toml'"),
    "wrong options": (toml("cells = 'gru'"), "there is no option 'cells'"),
    "conflict": ([*TRAIN, "--dropout", "0.1", "--locked-dropout", "0.1"], "one or the other"),
    "no GPU": ([*TRAIN, "--device", "cuda"], "there is no CUDA device"),
    "eval without a GPU": (["eval", "run", "--device", "cuda"], "there is no CUDA device"),
    "sample without a GPU": (["sample", "run", "--device", "cuda"], "there is no CUDA device"),
    "resume nowhere": (["train", "--resume", "nowhere"], "nowhere/config.json"),
    "resume what ended": (lambda tmp_path: ["train", "--resume", tmp_path / "run"], "has ended; give it more --epochs"),
    "resume another": (
        lambda tmp_path: ["train", "pydoc", "--hidden", "9", "--force", "--resume", tmp_path / "run"],
        "--resume goes on with the run's own corpus, force, hidden: it takes epochs, ",
    ),
    "resume without checkpoints": (
        in_run(lambda run: [(run / name).write_bytes(b"") for name in (checkpoint.LAST, checkpoint.BEFORE)], "resume"),
        "damaged",
    ),
    "many threads": ([*TRAIN, "--threads", "99999999999"], "--threads: must be from 1 to 4096, got 99999999999"),
    "huge hidden": ([*TRAIN, "--hidden", "100000000"], "memory is short"),
    "too huge hidden": ([*TRAIN, "--hidden", str(2**62)], "a size beyond what torch counts"),
    "huger hidden": ([*TRAIN, "--hidden", str(2**63)], "below 2**63, got 9223372036854775808"),
    "empty corpus name": (["train", ""], "CORPUS: must not be empty"),
    "empty options": ([*TRAIN, "--config", ""], "--config: must not be empty"),
    "empty run folder": ([*TRAIN, "--out", ""], "--out: must not be empty"),
    "corpus with a NUL": (toml('corpus = "a\\u0000b"'), "embedded null"),
    "bench huge": (["bench", "--H", str(10**23)], "a size beyond what torch counts"),
    "plot nowhere to write": (
        lambda tmp_path: ["plot", tmp_path / "run", "--out", "nodir/x.png"],
        "error: nodir/x.png: No such file or directory",
    ),
    "sample huge": (lambda tmp_path: ["sample", tmp_path / "run", "--num", str(10**13)], "memory is short"),
    "resume without threads": (
        in_run(lambda run: edit(run / "config.json", r'"threads": \d+', '"threads": 0'), "resume"),
        "threads must be from 1 to 4096, got 0",
    ),
    "nested config": (in_run(lambda run: (run / "config.json").write_text("[" * 100_000)), "config.json: "),
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
    "plot nowhere": (["plot", "nowhere"], "nowhere/metrics.csv"),
    "plot nothing": (["plot"], "required: RUN"),
    "plot a jpeg": (lambda tmp_path: ["plot", tmp_path / "run", "--out", "a.jpg"], "must name a PNG file"),
    "plot damaged": (in_run(lambda run: (run / "metrics.csv").write_text("epoch\n1\n"), "plot"), "not the metrics"),
    "plot no epoch": (in_run(lambda run: (run / "metrics.csv").write_text("epoch\n"), "plot"), "no epoch has ended"),
    "eval nowhere": (["eval", "nowhere"], "nowhere/config.json"),
    "eval of no text": (lambda tmp_path: ["eval", tmp_path / "run", "nowhere.txt"], "'nowhere.txt' is neither a file"),
    "eval of damaged text": (in_run(lambda run: (run / "text.txt").write_bytes(b"\xff"), "eval"), "its sha1 is"),
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
    "sample negative": (lambda tmp_path: ["sample", tmp_path / "run", "--length", "-1"], "number of tokens"),
    "sample no file": (
        lambda tmp_path: ["sample", tmp_path / "run", "--prompt-file", "no.txt"],
        "cannot read 'no.txt'",
    ),
    "sample two prompts": (
        lambda tmp_path: ["sample", tmp_path / "run", "--prompt-file", "a", "--prompt", "b"],
        "not allowed with argument",
    ),
    "sample top-p": (lambda tmp_path: ["sample", tmp_path / "run", "--top-p", "0"], "top_p must be above 0"),
    "sample none": (lambda tmp_path: ["sample", tmp_path / "run", "--num", "0"], "--num"),
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
    "arguments", [["--help"], *([command, "--help"] for command in ("train", "eval", "sample", "plot", "bench"))]
)
def test_help(call, arguments):
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    assert "usage: fusedrnn" in out


def test_info(call):
    status, out, _ = call("info")
    assert status == 0
    assert "fusedrnn" in out


def test_tensorboard_reads_what_was_written(call, run):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = ["--resume", run, "--epochs", "4", "--tensorboard"]
    assert call("train", *options)[0] == 0
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss/training")]
    assert losses == [(12 * e.epoch, pytest.approx(e.loss)) for e in read_history(run) if e.epoch > 2]


def test_a_missing_package_is_named_with_its_extra(call, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    status, _, err = call("train", "--resume", run, "--epochs", "4", "--tensorboard")
    assert (status, err) == (
        2,
        "fusedrnn: error: the package tensorboard is missing: pip install 'fusedrnn[tensorboard]'\n",
    )


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "fusedrnn.cli", "train", "nowhere.txt"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fusedrnn: error: corpus 'nowhere.txt'")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_title_may_be_empty(call, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(plots, "draw_curve", lambda history, title: drawn.append(title) or b"")
    for options in ([], ["--title", ""], ["--title", "$a$"]):
        assert call("plot", run, *options)[0] == 0
    assert drawn == ["gru 16, pydoc, first 1,000 tokens", "", "$a$"]
    assert "default: )" not in call("plot", "--help")[1]
