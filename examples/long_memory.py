"""How far back RNN, GRU and LSTM can remember, and what becomes of the gradient on the way.

The adding problem (Hochreiter and Schmidhuber, 1997, doi:10.1162/neco.1997.9.8.1735): of T numbers from 0 to 1 two are
marked, one in each half, and at the end the network is to say their sum. Always saying 1 has a mean squared error of
1/6. Each cell is trained alike at growing T; where its error stays at 1/6 it has not learnt to remember so far.

Why: the gradient of the last state with respect to an input k steps before it is a product of k Jacobians. For an RNN
its norm falls or grows like the k-th power of the largest singular value of W_hh times the slope of tanh: it vanishes
or explodes. An LSTM's cell is carried on by its forget gate and a GRU's state by its update gate, the more of it the
larger those gates' biases are: here both begin at 1.
Clipping, g <- min(1, theta / |g|) g, bounds a gradient that explodes; nothing brings back one that has vanished
(Pascanu, Mikolov and Bengio, 2013, arXiv:1211.5063).

Prints the errors and the gradients' norms, and draws long_memory.png and gradients.png here.
"""

import itertools
import time

import torch
from command import run
from matplotlib.figure import Figure
from torch import nn

import fusedrnn
from fusedrnn.lm import grad_clipping

CHANCE = 1 / 6
CARRYING_BIAS = 1.0


class Adder(nn.Module):
    def __init__(self, cell: str, hidden: int):
        super().__init__()
        self.rnn = getattr(fusedrnn, cell)(2, hidden)
        self.head = nn.Linear(hidden, 1)
        carry(self.rnn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, B, 2]; returns the sums [B]."""
        return self.head(self.rnn(x)[0][-1]).squeeze(1)


def carry(net: nn.RNNBase) -> None:
    """Begin with an LSTM's forget gate, or a GRU's update gate, open: both are the second of the gates."""
    if not isinstance(net, fusedrnn.RNN):
        nn.init.constant_(net.bias_ih_l0[net.hidden_size : 2 * net.hidden_size], CARRYING_BIAS)


def problems(T: int, B: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and marks [T, B, 2], and the sums [B]."""
    numbers, marks, each = torch.rand(T, B), torch.zeros(T, B), torch.arange(B)
    marks[torch.randint(T // 2, (B,)), each] = 1
    marks[torch.randint(T // 2, T, (B,)), each] = 1
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(0)


def error(cell: str, T: int, steps: int, hidden: int) -> float:
    """The mean squared error on new problems after so many steps of training."""
    torch.manual_seed(0)
    model = Adder(cell, hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(steps):
        x, sums = problems(T, 64)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), sums).backward()
        grad_clipping(model, 1)
        optimizer.step()
    with torch.no_grad():
        x, sums = problems(T, 1000)
        return nn.functional.mse_loss(model(x), sums).item()


def network(name: str, hidden: int) -> nn.RNNBase:
    """New, in float64: an RNN whose W_hh is orthogonal times the number in its name, GRU, LSTM."""
    cell, _, scale = name.partition(" ")
    net = getattr(fusedrnn, cell)(2, hidden, dtype=torch.float64)
    for weight in net.weight_hh_l0.split(hidden):
        nn.init.orthogonal_(weight, float(scale or 1))
    carry(net)
    return net


def gradient_norms(name: str, T: int, hidden: int = 64) -> torch.Tensor:
    """Of a random sum of the last state, with respect to the input 0, 1, ... T - 1 steps before it: [T]."""
    torch.manual_seed(0)
    net, x = network(name, hidden), 0.1 * torch.randn(T, 1, 2, dtype=torch.float64)
    x.requires_grad_()
    y, _ = net(x)
    (dx,) = torch.autograd.grad(y[-1] @ torch.randn(hidden, dtype=torch.float64), x)
    return dx.flatten(1).norm(dim=1).flip(0)


def parameter_norms(name: str, lengths: list[int], theta: float, hidden: int = 64) -> tuple[list[float], list[float]]:
    """Of the gradient of all parameters, before and after clipping, for sequences of these lengths."""
    before, after = [], []
    for T in lengths:
        torch.manual_seed(0)
        net, x = network(name, hidden), 0.1 * torch.randn(T, 8, 2, dtype=torch.float64)
        net(x)[0][-1].sum().backward()
        before.append(grad_clipping(net, theta).item())
        after.append(torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item())
    return before, after


def draw_errors(errors: dict[tuple[str, int], float], path: str) -> None:
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    lengths = sorted({T for _, T in errors})
    axes.axhline(CHANCE, color="0.5", linestyle="dotted")
    axes.text(lengths[0], CHANCE * 1.06, "always saying 1", color="0.4", fontsize=9)
    for cell in ("RNN", "GRU", "LSTM"):
        axes.plot(lengths, [errors[cell, T] for T in lengths], marker="o", label=cell)
    axes.set(xscale="log", yscale="log", xlabel="length T", ylabel="mean squared error", title="The adding problem")
    axes.set_xticks(lengths, [str(T) for T in lengths])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path)


def draw_gradients(norms: dict[str, torch.Tensor], lengths: list[int], clipped: dict, theta: float, path: str) -> None:
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in norms.items():
        left.plot(values, label=name)
    left.set(yscale="log", xlabel="steps before the last", ylabel="norm", title="Gradient with respect to an input")
    left.legend(frameon=False)
    for name, (before, after) in clipped.items():
        (line,) = right.plot(lengths, before, marker="o", label=name)
        right.plot(lengths, after, marker="o", linestyle="dotted", color=line.get_color(), label=f"{name}, clipped")
    right.set(yscale="log", xlabel="length T", title=f"Gradient of all parameters, clipped at {theta:g}")
    right.legend(frameon=False)
    figure.savefig(path)


def main(quick: bool = False) -> dict:
    lengths, steps, hidden = ([10, 60], 250, 32) if quick else ([10, 20, 40, 80, 160, 320], 2000, 64)
    errors = {}
    for cell, T in itertools.product(("RNN", "GRU", "LSTM"), lengths):
        start = time.perf_counter()
        errors[cell, T] = error(cell, T, steps, hidden)
        print(
            f"{cell:4} T={T:3}: error {errors[cell, T]:.4f}, chance {CHANCE:.4f}, {time.perf_counter() - start:.0f} s"
        )
    norms = {name: gradient_norms(name, 100) for name in ("RNN 0.8", "RNN 1", "RNN 1.3", "GRU", "LSTM")}
    for name, values in norms.items():
        print(f"{name:8} gradient's norm 1, 50 and 99 steps back: {values[1]:.1e}, {values[50]:.1e}, {values[99]:.1e}")
    theta, all_lengths = 1.0, [1, 2, 5, 10, 20, 30, 40, 50]
    clipped = {name: parameter_norms(name, all_lengths, theta) for name in ("RNN 0.8", "RNN 1.3")}
    draw_errors(errors, "long_memory.png")
    draw_gradients(norms, all_lengths, clipped, theta, "gradients.png")
    return {"errors": errors, "norms": norms, "clipped": clipped}


if __name__ == "__main__":
    run(main)
