import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedrnn
from fusedrnn.lm import ConfigError, CorpusUnavailable, RNNModel, Vocab, load_data_time_machine, predict


@pytest.fixture
def data(timemachine, tmp_path, monkeypatch):
    """FUSEDRNN_DATA set, as a course program finds it."""
    (tmp_path / "timemachine.txt").write_bytes(timemachine.data)
    monkeypatch.setenv("FUSEDRNN_DATA", str(tmp_path))


def test_load_data_time_machine(data):
    batches, vocab = load_data_time_machine(32, 35)
    assert len(vocab) == 28
    assert vocab["t"] == 3
    assert vocab.idx_to_token[3] == "t"
    assert len(batches) == len(list(batches)) == 8
    for X, Y in batches:
        assert X.shape == Y.shape == (32, 35)
        assert torch.equal(X[:, 1:], Y[:, :-1])
    (before, _), (after, _) = list(batches)[:2]
    text = "".join(vocab.to_tokens(torch.cat([before[0], after[0]]).tolist()))
    assert text in "".join(vocab.to_tokens(batches.batches.tokens.tolist()))


def test_load_data_time_machine_options(data):
    batches, _ = load_data_time_machine(32, 35, use_random_iter=True)
    (before, _), (after, _) = list(batches)[:2]
    assert len(batches) == 8
    assert before.shape == after.shape == (32, 35)
    whole, _ = load_data_time_machine(32, 35, max_tokens=0)
    assert len(whole) == 152


def test_load_data_time_machine_never_hands_out_another_text():
    with pytest.raises(CorpusUnavailable):
        load_data_time_machine(32, 35)


def test_global_seed_decides_the_offset(data):
    batches, _ = load_data_time_machine(2, 5)
    first = []
    for seed in (0, 0, 4):
        torch.manual_seed(seed)
        first.append(next(iter(batches))[0])
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


@pytest.mark.parametrize("layer", ["RNN", "GRU", "LSTM"])
def test_net_is_called_with_batch_major_tokens(layer):
    outputs = []
    for library in (fusedrnn, nn):
        torch.manual_seed(0)
        net = RNNModel(getattr(library, layer)(9, 6, num_layers=2), 9)
        X = torch.arange(20).view(4, 5) % 9
        state = net.begin_state(batch_size=4, device=torch.device("cpu"))
        scores, state = net(X, state)
        assert scores.shape == (20, 9)
        outputs.append(scores)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(net(X[:1])[0], scores[::4], rtol=0, atol=1e-6)


class NextLetter:
    """A net that holds the letter after the one it reads likeliest, and counts its steps in the state."""

    def begin_state(self, *, batch_size, device):
        return torch.zeros(batch_size, device=device)

    def __call__(self, X, state):
        return F.one_hot((X.flatten() + 1) % 4, 4).float(), state + 1


def test_predict():
    assert predict("ab", 5, NextLetter(), Vocab("aaabbc")) == "abc<unk>abc"
    assert predict("ab", 0, NextLetter(), Vocab("aaabbc")) == "ab"


def test_predict_needs_a_prefix():
    with pytest.raises(ConfigError, match="the prefix is empty"):
        predict("", 5, NextLetter(), Vocab("abc"))


def test_one_hot_relu_rnn_learns(data):
    """The course's first program, shortened: tokens into a ReLU RNN of 64, SGD, no clipping, the state detached."""
    torch.manual_seed(0)
    batches, vocab = load_data_time_machine(batch_size=32, num_steps=35)
    net = RNNModel(fusedrnn.RNN(len(vocab), 64, nonlinearity="relu"), len(vocab))
    optimizer = torch.optim.SGD(net.parameters(), lr=1)
    losses = []
    for _ in range(30):
        state = net.begin_state(batch_size=32)
        for X, Y in batches:
            scores, state = net(X, state.detach())
            loss = F.cross_entropy(scores, Y.T.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.7
    assert losses[-1] < 2.45
    text = predict("time traveller", 20, net, vocab)
    assert text.startswith("time traveller")
    assert len(text) == 34
