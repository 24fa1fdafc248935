"""Peak memory of a training step of one layer on the CPU, torch.nn, save="full" and save="lean", in T*B*H values.

python -m benchmarks.memory [T B I H]

Each step runs in a process of its own, after a small one. Counted is how far the peak resident size rises above the
size before the step: y, its cotangent, the gradient of x and all else the step makes, but neither x nor the weights.
Below some 10 MB the small step before counts as much.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch
from torch import nn

from fusedrnn import ops
from fusedrnn.call import Call, Weights

SIZES = (1000, 32, 256, 256)
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}
KINDS = ("torch.nn", "full", "lean")


def step(cell: str, kind: str, T: int, B: int, I: int, H: int):
    """A training step, ready to run: forward, and all gradients for a cotangent of y."""
    net, x = CELLS[cell](I, H), torch.randn(T, B, I)
    weights = tuple(net.parameters())
    if kind == "torch.nn":
        x.requires_grad_()

        def run_torch():
            y, _ = net(x)
            return torch.autograd.grad(y, (x, *weights), torch.ones_like(y))

        return run_torch
    h0 = torch.zeros(1, B, H)
    call = Call(cell, x, h0, h0 if cell == "lstm" else None, (Weights(*(w.detach() for w in weights)),), (False,))
    options = (cell, 0, False, "auto", kind, "ieee", "cpu")

    def run():
        y, _, _, saved, cells = ops.forward(call.spec.op, *ops.flat(call), *options)
        everything = sum(1 << k for k in (0, 3, 4, 5, 6))
        return ops.backward(
            call.spec.op, torch.ones_like(y), None, None, *ops.flat(call), y, saved, cells, *options, everything
        )

    return run


def measured(cell: str, kind: str, sizes: tuple[int, ...]) -> float:
    """The peak of one step in this process, in units."""
    for _ in range(3):
        step(cell, kind, 8, *sizes[1:])()
    run = step(cell, kind, *sizes)
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1]) * resource.getpagesize()
    kept = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del kept
    T, B, _, H = sizes
    return (peak - before) / (4 * T * B * H)


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and arguments[0] in CELLS:
        print(measured(arguments[0], arguments[1], tuple(map(int, arguments[2:]))))
        return
    sizes = [str(n) for n in (arguments or SIZES)]
    print(f"T={sizes[0]} B={sizes[1]} I={sizes[2]} H={sizes[3]}, in units of T*B*H float32 values")
    print("cell      " + "".join(f"{kind:>10}" for kind in KINDS))
    for cell in CELLS:
        values = []
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.memory", cell, kind, *sizes]
            values.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(f"{cell:10}" + "".join(f"{value:10.2f}" for value in values))


if __name__ == "__main__":
    main()
