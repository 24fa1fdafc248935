"""Programs of a course on recurrent networks, with what they print worked out by hand."""

import math

import numpy as np
import pytest
import torch

import fusedrnn
from fusedrnn.backends.base import Problem
from fusedrnn.dispatch import REGISTRY


def fill(module: torch.nn.Module, **values) -> torch.nn.Module:
    """Set parameters by name: a number for all elements, or nested lists."""
    with torch.no_grad():
        for name, value in values.items():
            parameter = getattr(module, name)
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand(parameter.shape))
    return module


def sequence(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def assert_near(got: torch.Tensor, *want: float) -> None:
    torch.testing.assert_close(got.flatten(), torch.tensor(want, dtype=got.dtype), rtol=0, atol=5e-7)


# Program 2: the cells by hand.


def test_bidirectional_rnn_of_ones_and_halves():
    net = fusedrnn.RNN(1, 1, bias=False, bidirectional=True, dtype=torch.float64)
    fill(net, weight_ih_l0=1, weight_hh_l0=1, weight_ih_l0_reverse=0.5, weight_hh_l0_reverse=0.5)
    y, h_n = net(sequence(1, 2))
    # forward: tanh(1) = 0.761594, tanh(2 + 0.761594) = 0.992046
    # reverse: tanh(2 / 2) = 0.761594, then tanh((1 + 0.761594) / 2) = tanh(0.880797) = 0.706818
    assert_near(y[:, 0, 0], 0.7615942, 0.9920456)
    assert_near(y[:, 0, 1], 0.7068184, 0.7615942)
    assert_near(h_n, 0.9920456, 0.7068184)


@pytest.mark.parametrize(("nonlinearity", "want"), [("tanh", -0.7615942), ("relu", 0.0)])
def test_rnn_cell_with_weights_1_and_minus_2(nonlinearity, want):
    cell = fusedrnn.RNNCell(2, 2, bias=False, nonlinearity=nonlinearity, dtype=torch.float64)
    fill(cell, weight_ih=1, weight_hh=-2)
    # x W_ih = 1 + 2 = 3, h W_hh = -2 (1 + 1) = -4, act(-1)
    assert_near(cell(torch.tensor([[1.0, 2.0]]).double(), torch.ones(1, 2).double()), want, want)


def test_lstm_with_rows_scaled_1_2_3_4():
    net = fusedrnn.LSTM(1, 1, bias=False, dtype=torch.float64)
    rows = [[1.0], [2.0], [3.0], [4.0]]
    fill(net, weight_ih_l0=rows, weight_hh_l0=rows)
    y, (h_n, c_n) = net(sequence(0.5, -1))
    # x + h = a: i = s(a), f = s(2a), g = tanh(3a), o = s(4a); c = f c + i g, h = o tanh(c)
    # a = 0.5:               c = 0.622459 * 0.905148 = 0.563418                          h = 0.880797 * 0.510509
    # a = -1 + h = -0.550345: c = 0.249611 * 0.563418 - 0.365784 * 0.929000 = -0.199178   h = 0.099627 * -0.196586
    assert_near(y, 0.4496549, -0.0195852)
    assert_near(h_n, -0.0195852)
    assert_near(c_n, -0.1991784)


def test_gru_of_ones():
    net = fusedrnn.GRU(1, 1, bias=False, dtype=torch.float64)
    fill(net, weight_ih_l0=1, weight_hh_l0=1)
    y, h_n = net(sequence(1, -0.5), torch.full((1, 1, 1), 0.5, dtype=torch.float64))
    # r = z = s(1.5) = 0.817574, n = tanh(1 + 0.5 r) = 0.887236, h = (1 - z) n + 0.5 z = 0.570642
    # r = z = s(0.070642) = 0.517653, n = tanh(-0.5 + 0.570642 r) = -0.201797, h = (1 - z) n + 0.570642 z
    assert_near(y, 0.5706418, 0.1980582)
    assert_near(h_n, 0.1980582)


def test_lstm_has_4_and_gru_3_times_the_parameters():
    counts = [sum(p.numel() for p in net(28, 256).parameters()) for net in (fusedrnn.RNN, fusedrnn.GRU, fusedrnn.LSTM)]
    assert counts[0] == 256 * 28 + 256 * 256 + 2 * 256 == 73216
    assert counts == [73216, 3 * 73216, 4 * 73216]


# Program 3: three steps in NumPy, and a module assembled from its cell.


def test_three_steps_in_numpy():
    w_x, w_h, b = np.array([[0.5, -0.5], [1.0, 0.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]]), np.array([0.0, 0.5])
    xs = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    h = np.zeros(2)
    outputs = []
    for x in xs:
        h = np.tanh(w_x @ x + w_h @ h + b)
        outputs.append(h)
    # W_x x + b: (0.5, 1.5), (-0.5, 0.5), (0, 1.5); W_h turns (h1, h2) into (h2, -h1)
    first = [math.tanh(0.5), math.tanh(1.5)]
    second = [math.tanh(-0.5 + first[1]), math.tanh(0.5 - first[0])]
    third = [math.tanh(second[1]), math.tanh(1.5 - second[0])]
    np.testing.assert_allclose(outputs, [first, second, third], atol=1e-15)

    net = fusedrnn.RNN(2, 2, dtype=torch.float64)
    fill(net, weight_ih_l0=w_x.tolist(), weight_hh_l0=w_h.tolist(), bias_ih_l0=b.tolist(), bias_hh_l0=0)
    y, h_n = net(torch.from_numpy(xs))
    assert_near(y, 0.4621172, 0.9051483, 0.3843454, 0.0378647, 0.0378466, 0.8060521)
    np.testing.assert_allclose(y.detach(), outputs, atol=1e-14)
    np.testing.assert_allclose(h_n.detach(), outputs[-1:], atol=1e-14)


def test_a_batch_first_rnn_is_its_cell_in_a_loop():
    net = fusedrnn.RNN(3, 5, batch_first=True, dtype=torch.float64)
    cell = fusedrnn.RNNCell(3, 5, dtype=torch.float64)
    for name, parameter in cell.named_parameters():
        fill(cell, **{name: getattr(net, f"{name}_l0").detach()})
        assert parameter.shape == getattr(net, f"{name}_l0").shape
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    h, ys = torch.zeros(4, 5, dtype=torch.float64), []
    for t in range(6):
        h = cell(x[:, t], h)
        ys.append(h)
    y, h_n = net(x)
    torch.testing.assert_close(y, torch.stack(ys, 1), rtol=0, atol=1e-14)
    torch.testing.assert_close(h_n[0], h, rtol=0, atol=1e-14)


# Program 4: [X, H] [W_xh; W_hh] = X W_xh + H W_hh, for every cell.


@pytest.mark.parametrize(
    "cell",
    [
        fusedrnn.RNNCell(3, 5, dtype=torch.float64),
        fusedrnn.RNNCell(3, 5, nonlinearity="relu", dtype=torch.float64),
        fusedrnn.GRUCell(3, 5, dtype=torch.float64),
        fusedrnn.GRUCell(3, 5, reset_after=False, dtype=torch.float64),
        fusedrnn.LSTMCell(3, 5, dtype=torch.float64),
    ],
    ids=str,
)
def test_one_concatenated_product(cell):
    x, h, c = (torch.randn(4, width, dtype=torch.float64) for width in (3, 5, 5))
    w = torch.cat([cell.weight_ih, cell.weight_hh], 1)
    b = cell.bias_ih + cell.bias_hh
    a = torch.cat([x, h], 1) @ w.T + b
    torch.testing.assert_close(a, x @ cell.weight_ih.T + h @ cell.weight_hh.T + b, rtol=0, atol=1e-14)
    if isinstance(cell, fusedrnn.RNNCell):
        want = torch.tanh(a) if cell.nonlinearity == "tanh" else torch.relu(a)
    elif isinstance(cell, fusedrnn.LSTMCell):
        i, f, g, o = a.chunk(4, 1)
        c_new = f.sigmoid() * c + i.sigmoid() * g.tanh()
        want = o.sigmoid() * c_new.tanh()
    else:
        r, z = a[:, :10].sigmoid().chunk(2, 1)
        if cell.reset_after:  # the gate stands between the two products, so the candidate needs both
            n = x @ cell.weight_ih[10:].T + cell.bias_ih[10:] + r * (h @ cell.weight_hh[10:].T + cell.bias_hh[10:])
        else:
            n = torch.cat([x, r * h], 1) @ w[10:].T + b[10:]
        want = (1 - z) * n.tanh() + z * h
    got = cell(x, (h, c))[0] if isinstance(cell, fusedrnn.LSTMCell) else cell(x, h)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("module", [fusedrnn.RNN, fusedrnn.GRU, fusedrnn.LSTM])
def test_both_schedules_of_the_product_agree(module):
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    net = module(3, 5, dtype=torch.float64)
    usual = net(x)[0]
    for backend in REGISTRY.values():
        problem = Problem(net.cell, "cpu", torch.float64, T=7, B=4, I=3, H=5)
        if backend.not_supported_reasons(problem):
            continue
        for schedule in backend.schedules:
            net.backend, net.schedule = backend.name, schedule
            torch.testing.assert_close(net(x)[0], usual, rtol=0, atol=1e-14)


# Program 5: gates pinned open or shut.


def test_lstm_with_pinned_gates_is_almost_an_rnn():
    net = fusedrnn.LSTM(3, 5, dtype=torch.float64)
    with torch.no_grad():
        for weight in (net.weight_ih_l0, net.weight_hh_l0, net.bias_ih_l0, net.bias_hh_l0):
            weight[:10] = 0
            weight[15:] = 0
        net.bias_ih_l0[:5], net.bias_ih_l0[5:10], net.bias_ih_l0[15:] = 40, -40, 40  # s(40) = 1 - 4e-18
    x, h = torch.randn(6, 4, 3, dtype=torch.float64), torch.zeros(4, 5, dtype=torch.float64)
    w, u, b = net.weight_ih_l0[10:15], net.weight_hh_l0[10:15], (net.bias_ih_l0 + net.bias_hh_l0)[10:15]
    for x_t, y_t in zip(x, net(x)[0], strict=True):
        h = torch.tanh(torch.tanh(x_t @ w.T + h @ u.T + b))
        torch.testing.assert_close(y_t, h, rtol=0, atol=1e-14)


def test_gru_with_reset_1_and_update_0_is_the_rnn():
    gru, rnn = fusedrnn.GRU(3, 5, dtype=torch.float64), fusedrnn.RNN(3, 5, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(gru.parameters(), rnn.parameters(), strict=True):
            ours[:10] = 0
            ours[10:] = theirs
        gru.bias_ih_l0[:5], gru.bias_ih_l0[5:10] = 40, -800  # s(40) rounds to 1, s(-800) to 0
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(gru(x)[0], rnn(x)[0], rtol=0, atol=1e-15)
