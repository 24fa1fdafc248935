import math

import pytest
import torch

from fusedrnn.lm import Choice, ConfigError, TrainConfig, Vocab, build_model, continuation, generate, generate_many

VOCAB = Vocab("abc")


@pytest.fixture(params=["fusedrnn", "torch"])
def model(request):
    torch.manual_seed(0)
    return build_model(len(VOCAB), TrainConfig(cell="lstm", hidden=8, library=request.param)).double()


def test_greedy_takes_the_likeliest_of_the_whole_history(model):
    """Carrying the state one step at a time is the same as reading everything from the start every time."""
    text = "ab"
    for _ in range(12):
        scores, _ = model(VOCAB.encode(text).unsqueeze(1))
        text += VOCAB.idx_to_token[1 + int(scores[-1, 0, 1:].argmax())]
    assert continuation(model, VOCAB, "ab", 12) == text


def test_one_token_a_step_without_a_graph(model):
    shapes = []
    model.rnn.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape[:2]))
    characters = generate(model, VOCAB, "abc", 4)
    next(characters)
    assert torch.is_grad_enabled()
    assert len("".join(characters)) == 3
    assert shapes == [(3, 1), (1, 1), (1, 1), (1, 1)]


def test_seed_decides_what_is_drawn(model):
    def draw(seed):
        return "".join(generate(model, VOCAB, "a", 60, Choice(temperature=1.0), torch.Generator().manual_seed(seed)))

    assert draw(0) == draw(0) != draw(1)


def test_draws_follow_the_models_distribution(model):
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([5.0, math.log(0.5), math.log(0.3), math.log(0.2)]))
    for temperature, shares in [(1.0, (0.5, 0.3, 0.2)), (0.5, (0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38))]:
        choice = Choice(temperature=temperature)
        drawn = "".join(generate(model, VOCAB, "a", 3000, choice, torch.Generator().manual_seed(0)))
        assert len(drawn) == 3000  # `<unk>` would be longer
        for token, share in zip("abc", shares, strict=True):
            assert drawn.count(token) / 3000 == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("temperature", [1e-300, 1e-8])
def test_tiny_temperature_is_greedy(model, temperature):
    choice = Choice(temperature=temperature)
    assert "".join(generate(model, VOCAB, "a", 20, choice)) == continuation(model, VOCAB, "a", 20)[1:]


def probabilities(scores, **options):
    return Choice(temperature=1.0, **options).probabilities(torch.tensor([scores]).log())[0].tolist()


def test_the_likeliest_alone_are_drawn_from():
    scores = [0.1, 0.4, 0.2, 0.3]
    assert probabilities(scores) == pytest.approx(scores)
    assert probabilities(scores, top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probabilities(scores, top_k=9) == pytest.approx(scores)
    assert probabilities(scores, top_p=0.39) == pytest.approx([0, 0.4, 0, 0])
    assert probabilities(scores, top_p=0.41) == pytest.approx([0, 0.4, 0, 0.3])
    assert probabilities(scores, top_p=0.95) == pytest.approx(scores)
    assert probabilities(scores, top_k=3, top_p=0.5) == pytest.approx([0, 4 / 9, 0, 3 / 9])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}])
def test_the_likeliest_of_all_is_greedy(model, options):
    choice = Choice(temperature=1.0, **options)
    assert "".join(generate(model, VOCAB, "ab", 20, choice)) == continuation(model, VOCAB, "ab", 20)[2:]


def test_several_texts_side_by_side(model):
    together = list(generate_many(model, VOCAB, "abc", 30, 3))
    assert len(together) == 30
    alone = "".join(generate(model, VOCAB, "abc", 30))
    assert ["".join(text) for text in zip(*together, strict=True)] == [alone] * 3
    draws = generate_many(model, VOCAB, "abc", 60, 3, Choice(temperature=1.0), torch.Generator().manual_seed(0))
    assert len({"".join(text) for text in zip(*draws, strict=True)}) == 3


def test_a_vocabulary_of_nothing_known():
    vocab = Vocab(["<unk>"])
    with pytest.raises(ConfigError, match="the model knows no token but <unk>"):
        generate_many(build_model(1, TrainConfig(hidden=8)), vocab, ["<unk>"], 1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "abzé"}, "the prompt holds 'z', 'é', which the model was not trained on"),
        ({"num_tokens": -1}, "the number of tokens must not be negative"),
        ({"num": 0}, "the number of texts must be at least 1"),
    ],
    ids=str,
)
def test_bad_arguments_raise_before_the_first_token(model, options, message):
    with pytest.raises(ConfigError, match=message):
        generate_many(model, VOCAB, **{"prompt": "a", "num_tokens": 1, "num": 1} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be"),
        ({"top_p": math.nan}, "top_p must be"),
    ],
    ids=str,
)
def test_bad_choice(options, message):
    with pytest.raises(ConfigError, match=message):
        Choice(**options)
