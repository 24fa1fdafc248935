"""What a module's call takes above its arithmetic: one step, batch 1, no gradient, one thread.

python -m benchmarks.overhead [H ...]

The floor is the product of all weights [G*H, 2*H] and [x, h] by torch.mv, in the same process and by turns with the
modules, each of which gives what torch.nn gives. A side's time is that of its best turn of 60 calls, after 5 that fetch
its weights into the cache again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import fusedrnn

TURNS, FIRST, CALLS = 200, 5, 60


def times(sides: list[Callable]) -> list[float]:
    """Microseconds a call of each."""
    best = [float("inf")] * len(sides)
    for turn in range(-1, TURNS):  # one to warm up
        for k, side in enumerate(sides):
            for _ in range(FIRST):
                side()
            start = time.perf_counter()
            for _ in range(CALLS):
                side()
            spent = (time.perf_counter() - start) / CALLS * 1e6
            best[k] = min(best[k], spent) if turn >= 0 else best[k]
    return best


def calls(stock: nn.Module, x: torch.Tensor, h: torch.Tensor) -> list[Callable]:
    """torch.nn's module and ours with the same weights."""
    hx = (h, h.clone()) if "LSTM" in type(stock).__name__ else h
    ours = getattr(fusedrnn, type(stock).__name__).from_torch(stock)
    torch.testing.assert_close(ours(x, hx), stock(x, hx))
    return [lambda: stock(x, hx), lambda: ours(x, hx)]


@torch.no_grad()
def measured(cell: str, H: int) -> list[float]:
    layer, step = getattr(nn, cell)(H, H), getattr(nn, f"{cell}Cell")(H, H)
    x, h = torch.randn(1, 1, H), torch.randn(1, 1, H)
    weights, xh = torch.cat([layer.weight_ih_l0, layer.weight_hh_l0], 1), torch.cat([x, h], -1)[0, 0]
    floor, *rest = times([lambda: torch.mv(weights, xh), *calls(layer, x, h), *calls(step, x[0], h[0])])
    return [floor, *(time - floor for time in rest)]


def main() -> None:
    torch.set_num_threads(1)
    print("microseconds; above the floor:")
    print("             floor  torch.nn  fusedrnn  torch.nn's cell  our cell")
    for H in map(int, sys.argv[1:] or ("256",)):
        for cell in ("RNN", "GRU", "LSTM"):
            print("{:5}{:5}{:8.1f}{:10.1f}{:10.1f}{:17.1f}{:10.1f}".format(cell, H, *measured(cell, H)), flush=True)


if __name__ == "__main__":
    main()
