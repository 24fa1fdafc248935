"""The cells worked out by hand, and the layers assembled from them.

First an RNN made of an RNNCell in a loop, over [T, B, I] and over [B, T, I] (batch_first): the layer gives the same
numbers. Then networks of one unit whose every number can be followed on paper, s the logistic function:

bidirectional RNN, weights 1 forward and 1/2 backward, x = 1, 2
    forward   tanh 1, tanh(2 + 0.761594);    backward  tanh(2 / 2), then tanh((1 + 0.761594) / 2)
deep RNN, two levels, all weights 1, x = 1, 2
    below     tanh 1 = 0.761594, tanh(2.761594) = 0.992046;    above  tanh 0.761594, tanh(0.992046 + 0.642015)
RNNCell, two inputs 1, 2 and two states of 1, weights 1 and -2
    tanh(1 + 2 - 2 - 2) = tanh(-1)
LSTM, the weights of its gates 1, 2, 3, 4 from both x and h, x = 0.5, -1; with a = x + h
    i = s(a), f = s(2a), g = tanh(3a), o = s(4a);    c = f c + i g, h = o tanh c
GRU, all weights 1, h0 = 1/2, x = 1, -1/2
    r = z = s(x + h), n = tanh(x + r h), h = (1 - z) n + z h
parameters of 28 inputs and 256 units
    RNN 256 (28 + 256 + 2) = 73216; GRU three times that, LSTM four times

Prints each by hand and from the layer, side by side.
"""

import math

import torch
from command import run
from torch import nn

import fusedrnn


def fill(module: nn.Module, **values: object) -> nn.Module:
    """Set parameters: a number for all elements, or a list."""
    with torch.no_grad():
        for name, value in values.items():
            parameter = getattr(module, name)
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype).expand(parameter.shape))
    return module


def s(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def sequence(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)  # [T, 1, 1]


def assembled(batch_first: bool) -> tuple[list[float], list[float]]:
    """The states of an RNNCell in a loop, and those of a layer with its weights."""
    torch.manual_seed(0)
    cell = fusedrnn.RNNCell(3, 2, dtype=torch.float64)
    layer = fusedrnn.RNN(3, 2, batch_first=batch_first, dtype=torch.float64)
    layer.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
    x = torch.randn(3, 3, 3, dtype=torch.float64)
    h, states = torch.zeros(3, 2, dtype=torch.float64), []
    for x_t in x.unbind(1 if batch_first else 0):
        h = cell(x_t, h)
        states.append(h)
    return torch.stack(states, 1 if batch_first else 0).flatten().tolist(), layer(x)[0].flatten().tolist()


def bidirectional() -> tuple[list[float], list[float]]:
    net = fusedrnn.RNN(1, 1, bias=False, bidirectional=True, dtype=torch.float64)
    fill(net, weight_ih_l0=1, weight_hh_l0=1, weight_ih_l0_reverse=0.5, weight_hh_l0_reverse=0.5)
    forward, backward = math.tanh(1), math.tanh(2 / 2)
    hand = [forward, math.tanh((1 + backward) / 2), math.tanh(2 + forward), backward]
    return hand, net(sequence(1, 2))[0].flatten().tolist()


def deep() -> tuple[list[float], list[float]]:
    net = fusedrnn.RNN(1, 1, 2, bias=False, dtype=torch.float64)
    fill(net, **{name: 1 for name, _ in net.named_parameters()})
    below = [math.tanh(1), math.tanh(2 + math.tanh(1))]
    hand = [math.tanh(below[0]), math.tanh(below[1] + math.tanh(below[0]))]
    return hand, net(sequence(1, 2))[0].flatten().tolist()


def rnn_cell() -> tuple[list[float], list[float]]:
    cell = fill(fusedrnn.RNNCell(2, 2, bias=False, dtype=torch.float64), weight_ih=1, weight_hh=-2)
    x, h = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    return [math.tanh(1 + 2 - 2 - 2)] * 2, cell(x, h).flatten().tolist()


def lstm() -> tuple[list[float], list[float]]:
    net = fusedrnn.LSTM(1, 1, bias=False, dtype=torch.float64)
    rows = [[1.0], [2.0], [3.0], [4.0]]
    fill(net, weight_ih_l0=rows, weight_hh_l0=rows)
    h = c = 0.0
    hand = []
    for x in (0.5, -1):
        a = x + h
        c = s(2 * a) * c + s(a) * math.tanh(3 * a)
        h = s(4 * a) * math.tanh(c)
        hand.append(h)
    return hand, net(sequence(0.5, -1))[0].flatten().tolist()


def gru() -> tuple[list[float], list[float]]:
    net = fill(fusedrnn.GRU(1, 1, bias=False, dtype=torch.float64), weight_ih_l0=1, weight_hh_l0=1)
    h, hand = 0.5, []
    for x in (1, -0.5):
        z = s(x + h)
        h = (1 - z) * math.tanh(x + z * h) + z * h
        hand.append(h)
    return hand, net(sequence(1, -0.5), torch.full((1, 1, 1), 0.5, dtype=torch.float64))[0].flatten().tolist()


def parameters() -> tuple[list[float], list[float]]:
    one = 256 * (28 + 256 + 2)
    layers = (fusedrnn.RNN(28, 256), fusedrnn.GRU(28, 256), fusedrnn.LSTM(28, 256))
    return [one, 3 * one, 4 * one], [sum(p.numel() for p in layer.parameters()) for layer in layers]


PROGRAMS = {
    "a cell in a loop, [T, B, I]": lambda: assembled(batch_first=False),
    "a cell in a loop, [B, T, I]": lambda: assembled(batch_first=True),
    "bidirectional RNN": bidirectional,
    "deep RNN": deep,
    "RNNCell": rnn_cell,
    "LSTM": lstm,
    "GRU": gru,
    "parameters": parameters,
}


def main(quick: bool = False) -> dict[str, tuple[list[float], list[float]]]:
    found = {name: program() for name, program in PROGRAMS.items()}
    for name, sides in found.items():
        for side, numbers in zip(("by hand", "layer"), sides, strict=True):
            shown = "  ".join(f"{number:.6f}" if isinstance(number, float) else f"{number}" for number in numbers[:6])
            print(f"{name:28}{side:8} {shown}{' ...' if len(numbers) > 6 else ''}")
    return found


if __name__ == "__main__":
    run(main)
