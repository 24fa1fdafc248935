import itertools
import json
import math
import os
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.lm import TOKENIZERS, Vocab, perplexity
from fusedrnn.lm.text import BYTES

COURSE, CHAR, BYTE, WORD = (TOKENIZERS[name] for name in ("course", "char", "byte", "word"))
TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=80)


def test_course_tokens_keep_letters_and_join_lines_without_a_separator():
    assert COURSE.split("The Time Machine, by H. G. Wells [1898]\n\n  I\nTwo--words\n") == (
        "the time machine by h g wellsitwo words"
    )
    assert COURSE.split("Été") == "t"
    assert CHAR.split("As it is,\n Sir\n") == "As it is,\n Sir\n"


def test_prompt_keeps_its_ends():
    assert COURSE.split_prompt("The Time ") == "the time "


@given(TEXT)
def test_course_tokens_are_lower_case_letters_and_single_spaces(text):
    tokens = COURSE.split(text)
    assert set(tokens) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert COURSE.split(tokens) == tokens.strip()


@pytest.mark.parametrize("tokenizer", [CHAR, BYTE], ids=["char", "byte"])
@given(text=TEXT)
def test_characters_and_bytes_spell_the_text_they_came_from(tokenizer, text):
    assert "".join(tokenizer.spell(tokenizer.split(text))) == text


def test_bytes_are_known_as_soon_as_their_character_is_whole():
    assert list(BYTE.spell("a" + "é".encode().decode("latin-1") + "\xff")) == ["a", "", "é", "\ufffd", ""]


def test_bytes_that_are_typed_need_not_be_utf_8():
    assert BYTE.split_prompt(os.fsdecode(b"a\xff")) == "a\xff"


def test_words_and_line_ends():
    tokens = ["The", "Time", "Machine", "<eos>", "<eos>", "by", "H.", "G.", "Wells"]
    assert WORD.split("The  Time Machine\n\n by H. G. Wells") == tokens
    assert WORD.split("Two words\n") == ["Two", "words", "<eos>"]
    assert "".join(WORD.spell(tokens)) == "The Time Machine\n\nby H. G. Wells"


@given(TEXT)
def test_words_split_again_are_the_same(text):
    tokens = WORD.split(text)
    assert WORD.split("".join(WORD.spell(tokens))) == tokens


def test_timemachine_facts(timemachine):
    text = COURSE.split(timemachine.text)
    vocab = Vocab(text)
    assert len(text) == 170_580
    assert len(vocab) == 28
    assert vocab.idx_to_token[:9] == ["<unk>", " ", "e", "t", "a", "i", "n", "o", "s"]


def test_timemachine_perplexity_of_counts(timemachine):
    """What models that only count reach on the text they counted: the scale for every perplexity we print."""
    text = COURSE.split(timemachine.text)
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


def test_vocab_of_the_most_frequent():
    vocab = Vocab(["the", "a", "the", "<unk>", "in"], most=2)
    assert vocab.idx_to_token == ["<unk>", "the", "a"]
    assert vocab.unknown == 0
    assert vocab["in"] == 0


def test_the_vocabulary_of_bytes_knows_all():
    vocab = Vocab.from_json(Vocab.of(BYTES).to_json())
    assert (len(vocab), vocab.unknown) == (256, None)
    assert vocab.encode(BYTE.split("é")).tolist() == list("é".encode())


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
