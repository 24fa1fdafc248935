"""One product of [X, H] with the stacked weights, or two products and a sum: the same numbers, and what each costs.

    [X, H] [W_xh; W_hh] = X W_xh + H W_hh

for every cell: the RNN's preactivation, the LSTM's four gates, the GRU's reset and update gates. The GRU's candidate
wants care: where its reset gate stands before the product (the textbook's), [X, R * H] is one product too; where it
stands after it (torch's), R multiplies H W_hh alone and the two products stay apart.

Prints the largest difference between both for each cell, in float64, then the time of a whole layer, forward and
backward, on both schedules: "concat" forms the stacked product in each step, "hoisted" multiplies all inputs before the
loop, in one large product, and H W_hh in each step.
"""

import torch
from command import run
from torch.utils import benchmark

import fusedrnn

CELLS = {
    "RNN": lambda I, H: fusedrnn.RNNCell(I, H, dtype=torch.float64),
    "ReLU RNN": lambda I, H: fusedrnn.RNNCell(I, H, nonlinearity="relu", dtype=torch.float64),
    "GRU": lambda I, H: fusedrnn.GRUCell(I, H, dtype=torch.float64),
    "GRU, reset before": lambda I, H: fusedrnn.GRUCell(I, H, reset_after=False, dtype=torch.float64),
    "LSTM": lambda I, H: fusedrnn.LSTMCell(I, H, dtype=torch.float64),
}


def one_product(cell, x, h, c):
    """The state after one step, every gate from [x, h] times the stacked weights where that can be."""
    H = cell.hidden_size
    w, b = torch.cat([cell.weight_ih, cell.weight_hh], 1).T, cell.bias_ih + cell.bias_hh  # [I + H, G], [G]
    a = torch.cat([x, h], 1) @ w + b
    if isinstance(cell, fusedrnn.RNNCell):
        return a.tanh() if cell.nonlinearity == "tanh" else a.relu()
    if isinstance(cell, fusedrnn.LSTMCell):
        i, f, g, o = a.chunk(4, 1)
        return o.sigmoid() * (f.sigmoid() * c + i.sigmoid() * g.tanh()).tanh()
    r, z = a[:, : 2 * H].sigmoid().chunk(2, 1)
    if cell.reset_after:
        of_x, of_h = x @ cell.weight_ih[2 * H :].T, h @ cell.weight_hh[2 * H :].T
        n = of_x + cell.bias_ih[2 * H :] + r * (of_h + cell.bias_hh[2 * H :])
    else:
        n = torch.cat([x, r * h], 1) @ w[:, 2 * H :] + b[2 * H :]
    return (1 - z) * n.tanh() + z * h


def difference(make) -> float:
    torch.manual_seed(0)
    cell = make(28, 64)
    x, h, c = (torch.randn(32, width, dtype=torch.float64) for width in (28, 64, 64))
    fused = cell(x, (h, c))[0] if isinstance(cell, fusedrnn.LSTMCell) else cell(x, h)
    return (one_product(cell, x, h, c) - fused).abs().max().item()


def milliseconds(layer, schedule: str, seconds: float) -> float:
    """Of forward and backward, T=35, B=32, the median."""
    layer.schedule = schedule
    x = torch.randn(35, 32, layer.input_size)

    def step() -> None:
        layer(x)[0].sum().backward()

    timer = benchmark.Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return 1e3 * timer.blocked_autorange(min_run_time=seconds).median


def main(quick: bool = False) -> dict:
    differences = {name: difference(make) for name, make in CELLS.items()}
    for name, value in differences.items():
        print(f"{name:18} largest difference {value:.1e}")
    times = {}
    print(f"forward and backward, {torch.get_num_threads()} threads, ms:")
    for name in ("RNN", "GRU", "LSTM"):
        for I, H in ((28, 64),) if quick else ((28, 64), (28, 256), (256, 256)):
            layer = getattr(fusedrnn, name)(I, H)
            for schedule in ("concat", "hoisted"):
                times[name, I, H, schedule] = milliseconds(layer, schedule, 0.1 if quick else 1.0)
            told = ", ".join(f"{schedule} {times[name, I, H, schedule]:.2f}" for schedule in ("concat", "hoisted"))
            print(f"{name:5} {I} inputs, {H} units: {told}")
    return {"differences": differences, "milliseconds": times}


if __name__ == "__main__":
    run(main)
