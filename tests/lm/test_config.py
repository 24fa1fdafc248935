import dataclasses
import math

import pytest

from fusedrnn.lm import ConfigError, CorpusError, TrainConfig, load_corpus
from fusedrnn.lm.config import presets, read_preset, read_toml
from fusedrnn.lm.dataset import Dataset, complete
from fusedrnn.lm.model import build_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "elman"}, "cell must be one of rnn, rnn_relu, gru, lstm, got 'elman'"),
        ({"sampling": "shuffled"}, "sampling must be one of"),
        ({"library": "jax"}, "library must be one of"),
        ({"init": "zeros"}, "init must be one of"),
        ({"tokens": "syllable"}, "tokens must be one of"),
        ({"hidden": 0}, r"hidden must be an integer of at least 1, below 2\*\*63, got 0"),
        ({"hidden": True}, "hidden must be an integer"),
        ({"layers": 1.5}, "layers must be an integer"),
        ({"epochs": -1}, "epochs must be"),
        ({"epochs": None}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"steps": 0}, "steps must be"),
        ({"lr": 0.0}, "lr must be a number above 0"),
        ({"lr": math.nan}, "lr must be a number above 0"),
        ({"lr": "1"}, "lr must be a number above 0, got '1'"),
        ({"clip": -1.0}, "clip must be a number of at least 0"),
        ({"clip": math.inf}, "clip must be"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*63 - 1, got -1"),
        ({"max_tokens": -1}, "max_tokens must be"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to below 1, got 1.0"),
        ({"tied": 1}, "tied must be true or false, got 1"),
        ({"validation": 0.6, "test": 0.4}, "leave nothing to train on"),
        ({"patience": 3}, "give validation a share"),
        ({"tied": True, "embed": 8}, "tied takes an embedding of 256"),
        ({"embed_dropout": 0.1}, "embed_dropout takes an embedding"),
        ({"dropout": 0.1, "locked_dropout": 0.1}, "one or the other"),
        ({"momentum": 0.9, "optimizer": "adam"}, "momentum is of sgd, not of adam"),
        ({"lr": 0.1, "min_lr": 0.2}, "min_lr 0.2 is above lr 0.1"),
        ({"max_vocab": 9, "tokens": "char"}, "max_vocab is of words, and tokens are char"),
        ({"accumulate": 3}, "accumulate must divide the 32 streams"),
    ],
    ids=str,
)
def test_bad_config(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_an_integer_is_a_number():
    assert TrainConfig(lr=2) == TrainConfig(lr=2.0)
    assert isinstance(TrainConfig(lr=2).lr, float)


def test_every_option_has_an_explanation():
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["about"]
        assert field.metadata["group"] in ("text", "model", "optimization", "run")


@pytest.mark.parametrize("name", presets())
def test_presets_are_whole(name, small):
    assert len(presets()[name]) > 20
    options = read_preset(name)
    assert options.pop("corpus") in ("timemachine", "tinyshakespeare")
    config = complete(TrainConfig(**options), small)
    assert len(Dataset.of(config, small).train) > config.batch_size * config.steps
    build_model(28, config)


def test_unknown_preset():
    with pytest.raises(ConfigError, match="preset must be one of d2l-"):
        read_preset("d2l-transformer")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr = ", "options.toml: Invalid value"),
        (b"\xff", "options.toml: 'utf-8' codec"),
        (b"attention = true", "options.toml: there is no option 'attention'"),
        (b"[model]\nhidden = 3", "options.toml: there is no option 'model'"),
        (b"lr = '1'", "options.toml: lr must be a number above 0, got '1'"),
        (b"corpus = 3", "options.toml: corpus must be a name or a path"),
    ],
    ids=str,
)
def test_wrong_toml(tmp_path, content, message):
    (tmp_path / "options.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_toml(tmp_path / "options.toml")
    assert "\n" not in str(caught.value)


def test_no_toml(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path / "nowhere.toml")


def test_splits_lie_in_the_order_of_the_text(small):
    config = TrainConfig(max_tokens=1000, validation=0.1, test=0.05)
    data = Dataset.of(complete(config, small), small)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [850, 100, 50]
    assert data.vocab.to_tokens([*data.train, *data.validation, *data.test, *data.unused]) == list(data.tokens)
    assert data.held_out == (data.tokens[950:1000], "test")
    only = Dataset.of(complete(TrainConfig(max_tokens=1000, validation=0.1), small), small)
    assert only.held_out == (data.tokens[900:1000], "validation")
    plain = Dataset.of(complete(TrainConfig(max_tokens=1000), small), small)
    assert plain.held_out[1] == "what it was not trained on"
    assert len(plain.held_out[0]) == len(plain.tokens) - 1000


def test_parts_of_less_than_two_tokens_are_refused(small):
    for part in ("validation", "test"):
        with pytest.raises(CorpusError, match=f"{part}: 0.001 of 1,000 tokens leaves nothing to foretell"):
            Dataset.of(complete(TrainConfig(max_tokens=1000, **{part: 0.001}), small), small)


def test_a_text_of_nothing_known_is_refused():
    corpus = dataclasses.replace(load_corpus("pydoc"), data=b"<unk> <unk> <unk>", tokens="word", max_tokens=0)
    with pytest.raises(CorpusError, match="the text has no token but <unk>"):
        Dataset.of(complete(TrainConfig(tokens="word"), corpus), corpus)


def test_words_know_what_was_trained_on_alone():
    corpus = dataclasses.replace(load_corpus("pydoc"), data=b"a b c a b\nd e f\n", tokens="word", max_tokens=0)
    data = Dataset.of(complete(TrainConfig(tokens="word", max_vocab=2, test=0.5), corpus), corpus)
    assert data.tokens == ["a", "b", "c", "a", "b", "<eos>", "d", "e", "f", "<eos>"]
    assert data.vocab.idx_to_token == ["<unk>", "a", "b"]
    assert data.train.tolist() == [1, 2, 0, 1, 2]
    assert data.test.tolist() == [0] * 5


def test_bytes_have_their_numbers():
    corpus = dataclasses.replace(load_corpus("pydoc"), data="é!".encode(), max_tokens=0)
    data = Dataset.of(complete(TrainConfig(tokens="byte"), corpus), corpus)
    assert data.train.tolist() == [0xC3, 0xA9, 0x21]
    assert len(data.vocab) == 256


def test_config_is_completed_by_the_corpus(small):
    config = complete(TrainConfig(), small)
    assert (config.tokens, config.max_tokens) == ("course", 10_000)
    config = complete(TrainConfig(tokens="char", max_tokens=0), small)
    assert (config.tokens, config.max_tokens) == ("char", 0)
    assert complete(TrainConfig(max_tokens=10**9), small).max_tokens == 0


def test_toml_that_is_nested_deeply(tmp_path):
    (tmp_path / "options.toml").write_text("hidden = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"options\.toml: nested too deeply"):
        read_toml(tmp_path / "options.toml")


def test_a_byte_order_mark_is_no_option(tmp_path):
    (tmp_path / "options.toml").write_bytes(b"\xef\xbb\xbfhidden = 3")
    assert read_toml(tmp_path / "options.toml") == {"hidden": 3}
