import itertools
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.lm import Vocab, normalize, perplexity
from fusedrnn.lm.text import normalize_prompt


def test_course_tokens_keep_letters_and_join_lines_without_a_separator():
    assert normalize("The Time Machine, by H. G. Wells [1898]\n\n  I\nTwo--words\n", "course") == (
        "the time machine by h g wellsitwo words"
    )
    assert normalize("Été", "course") == "t"
    assert normalize("As it is,\n Sir\n", "char") == "As it is,\n Sir\n"


def test_prompt_keeps_its_ends():
    assert normalize_prompt("The Time ", "course") == "the time "


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_course_tokens_are_lower_case_letters_and_single_spaces(text):
    tokens = normalize(text, "course")
    assert set(tokens) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert normalize(tokens, "course") == tokens.strip()


def test_timemachine_facts(timemachine):
    text = normalize(timemachine.text, "course")
    vocab = Vocab(text)
    assert len(text) == 170_580
    assert len(vocab) == 28
    assert vocab.idx_to_token[:9] == ["<unk>", " ", "e", "t", "a", "i", "n", "o", "s"]


def test_timemachine_perplexity_of_counts(timemachine):
    """What models that only count reach on the text they counted: the scale for every perplexity we print."""
    text = normalize(timemachine.text, "course")
    single = Counter(text)
    unigram = -sum(count * math.log(count / len(text)) for count in single.values()) / len(text)
    assert perplexity(unigram) == pytest.approx(17.21, abs=0.005)
    pairs, firsts = Counter(itertools.pairwise(text)), Counter(text[:-1])
    bigram = -sum(count * math.log(count / firsts[first]) for (first, _), count in pairs.items()) / (len(text) - 1)
    assert perplexity(bigram) == pytest.approx(10.11, abs=0.005)


def test_vocab_orders_by_frequency_then_by_appearance():
    vocab = Vocab("bbacca")
    assert vocab.idx_to_token == ["<unk>", "b", "a", "c"]
    assert (vocab["a"], vocab["z"], vocab[["c", "z", "b"]]) == (2, 0, [3, 0, 1])
    assert vocab.to_tokens([3, 1]) == ["c", "b"]
    assert torch.equal(vocab.encode("abz"), torch.tensor([2, 1, 0]))
    assert "a" in vocab
    assert "z" not in vocab


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_vocab_survives_json(text):
    vocab = Vocab(text)
    assert Vocab.from_json(vocab.to_json()).idx_to_token == vocab.idx_to_token
    assert "".join(vocab.to_tokens(vocab.encode(text).tolist())) == text


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", *(json.dumps({"idx_to_token": tokens}) for tokens in (["a"], ["<unk>", 1], ["<unk>", "a", "a"]))],
)
def test_vocab_refuses_other_json(content):
    with pytest.raises(ValueError):
        Vocab.from_json(content)
