"""Every program of examples/ in its quick mode, and what it finds."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpora import with_corpora
from torch import nn

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "command")


@pytest.fixture
def example(monkeypatch, tmp_path):
    """A program by its name; what it draws goes into the test's folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def test_numpy_and_the_fused_layer_have_the_same_states_and_gradients(example):
    found = example("numpy_rnn").main(quick=True)
    for hand, fused in zip(*found.values(), strict=True):
        assert hand == pytest.approx(fused, abs=1e-14)
    states, gradients = found["by hand"]
    assert states.flatten() == pytest.approx(
        [0.4621172, 0.9051483, 0.3843454, 0.0378647, 0.0378466, 0.8060521], abs=5e-8
    )
    assert gradients[2] == pytest.approx([0.849564, -0.499284], abs=5e-7)


def test_cells_are_what_paper_says(example):
    found = example("cells_by_hand").main(quick=True)
    for name, (hand, layer) in found.items():
        assert layer == pytest.approx(hand, abs=1e-14), name
    assert found["bidirectional RNN"][1] == pytest.approx([0.7615942, 0.7068184, 0.9920456, 0.7615942], abs=5e-8)
    assert found["deep RNN"][1] == pytest.approx([0.6420150, 0.9266377], abs=5e-8)
    assert found["RNNCell"][1] == pytest.approx([-0.7615942] * 2, abs=5e-8)
    assert found["LSTM"][1] == pytest.approx([0.4496549, -0.0195852], abs=5e-8)
    assert found["GRU"][1] == pytest.approx([0.5706418, 0.1980582], abs=5e-8)
    assert found["parameters"][1] == [73216, 219648, 292864]


def test_one_product_is_two(example):
    found = example("concatenated_weights").main(quick=True)
    assert len(found["differences"]) == 5 and max(found["differences"].values()) < 1e-14
    assert len(found["milliseconds"]) == 6 and min(found["milliseconds"].values()) > 0


@with_corpora
def test_the_courses_program_is_the_same_on_torch_and_here(example):
    program = example("one_hot_language_model")
    ours, theirs = program.main(quick=True), program.main(quick=True, layer=nn.RNN)
    # From the third on rounding grows, to thirty times an epoch.
    assert ours["losses"][:2] == pytest.approx(theirs["losses"][:2], abs=1e-6)
    assert ours["losses"][-1] < 2.2 < 2.6 < ours["losses"][5]
    assert ours["text"].startswith("time traveller") and len(ours["text"]) == len("time traveller") + 50


@with_corpora
def test_reading_both_ways_foretells_only_what_it_has_read(example):
    found = example("deep_and_bidirectional").main(quick=True)
    deep, both = found["deep"], found["bidirectional"]
    assert both["in the middle"] < 2 < 8 < both["at the end"]
    assert deep["in the middle"] == pytest.approx(deep["at the end"], rel=1e-3)
    assert deep["at the end"] < 15


@with_corpora
def test_a_higher_temperature_repeats_less_and_errs_more(example):
    found = example("one_to_many").main(quick=True)
    words, new = ([row[what] for row in found] for what in ("words", "new"))
    assert words == sorted(words, reverse=True) and new == sorted(new)
    assert words[0] > 0.9 and words[-1] < 0.5
    assert new[0] < 0.5 and new[-1] > 0.9


def test_a_passage_is_told_by_its_words(example):
    found = example("classifier").main(quick=True)
    assert found["the longest topic"] + 0.15 < found["GRU"]
    assert found["the longest topic"] + 0.3 < found["bag of words"]


@with_corpora
def test_capitals_want_reading_both_ways(example):
    found = example("tagger").main(quick=True)
    assert found["both ways"]["capital"] > max(0.4, found["forward"]["capital"])
    assert found["both ways"]["as it is"] > 0.95


def test_stripped_text_is_spelled_again(example):
    tagger = example("tagger")
    text = "Well, I saw it; it's a Psychologist! And (so it goes) on: really? "
    tagged = tagger.strip(text)
    letters = "".join(tagger.LETTERS[number] for number in tagged.characters.tolist())
    assert letters == "well i saw it it's a psychologist and so it goes on really "
    assert tagger.spell(tagged) == "Well, I saw it; it's a Psychologist! And so it goes on: really? "


@with_corpora
def test_the_translator_learns_and_a_beam_finds_likelier_sentences(example):
    translator = example("translator")
    found = translator.main(quick=True)
    assert found["loss"] < 0.1 < 0.3 < found["history"][0] / translator.LONGEST
    for sentence in translator.SENTENCES:
        greedy, beam = (found[sentence, name][2] for name in ("greedy", "beam"))
        assert beam >= greedy - 1e-6


def test_what_lies_beyond_lengths_is_masked(example):
    translator = example("translator")
    masked = translator.sequence_mask(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([1, 2]))
    assert masked.tolist() == [[1, 0, 0], [4, 5, 0]]
    assert translator.bleu("va !", "va !") == pytest.approx(1)
    assert translator.bleu("va", "va !") < 1
    assert translator.bleu("le chat", "va !") == 0


def test_cells_forget_at_some_distance_and_gradients_say_why(example, tmp_path):
    found = example("long_memory").main(quick=True)
    errors, norms = found["errors"], found["norms"]
    assert errors["GRU", 10] < 0.5 / 6 and errors["RNN", 60] > 0.9 / 6
    assert norms["RNN 0.8"][99] < 1e-8 * norms["RNN 0.8"][1]
    assert norms["LSTM"][99] > 1e-3 * norms["LSTM"][1]
    before, after = found["clipped"]["RNN 1.3"]
    assert before[-1] > 10 * before[0] and max(after) <= 1 + 1e-9
    for name in ("long_memory.png", "gradients.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_speed_is_shown_of_both_libraries(example, capsys):
    found = example("speed").main(quick=True)
    assert len(found) == 6 and min(found.values()) > 0
    assert "times as fast" in capsys.readouterr().out


def test_every_program_has_help_a_line_and_a_test():
    listed = (EXAMPLES / "README.md").read_text()
    tested = Path(__file__).read_text()
    for name in PROGRAMS:
        assert f"[{name}.py]({name}.py)" in listed and f'example("{name}")' in tested
    done = subprocess.run([sys.executable, EXAMPLES / "numpy_rnn.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "h_t = tanh" in done.stdout and "--quick" in done.stdout


def test_a_missing_corpus_is_told_in_a_line(tmp_path):
    places = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "FUSEDRNN_DATA": str(tmp_path)}
    blocked = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, EXAMPLES / "translator.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | places | blocked, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for word in (str(tmp_path), "cache", "fra-eng.zip", "FUSEDRNN_DATA"):
        assert word in done.stderr
