"""A recurrent network of two units over three steps, in NumPy, beside the fused one.

    h_t = tanh(W_x x_t + W_h h_{t-1} + b),    h_0 = 0

W_h turns (h1, h2) into (h2, -h1): what a unit reads of the past is the other's state. With x = (1, 0), (0, 1), (1, 1)
and the weights below, the first state is (tanh 0.5, tanh 1.5) = (0.462117, 0.905148), the second
(tanh(-0.5 + 0.905148), tanh(0.5 - 0.462117)), the third (tanh of the second's second, tanh(1.5 - its first)).

The gradient of L, the sum of the last state, goes back through time by hand too:

    d a_t = d h_t (1 - h_t^2),    d x_t = W_x^T d a_t,    d h_{t-1} = W_h^T d a_t

Prints the states and the gradients of x from both, step by step.
"""

import numpy as np
import torch
from command import run

import fusedrnn

W_X = np.array([[0.5, -0.5], [1.0, 0.0]])
W_H = np.array([[0.0, 1.0], [-1.0, 0.0]])
B = np.array([0.0, 0.5])
X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    """States [3, 2], and the gradient of the sum of the last one with respect to x [3, 2]."""
    states = [np.zeros(2)]
    for x in X:
        states.append(np.tanh(W_X @ x + W_H @ states[-1] + B))
    dx, dh = np.empty_like(X), np.ones(2)
    for t in reversed(range(len(X))):
        da = dh * (1 - states[t + 1] ** 2)
        dx[t], dh = W_X.T @ da, W_H.T @ da
    return np.array(states[1:]), dx


def fused() -> tuple[np.ndarray, np.ndarray]:
    net = fusedrnn.RNN(2, 2, dtype=torch.float64)
    given = {"weight_ih_l0": W_X, "weight_hh_l0": W_H, "bias_ih_l0": B, "bias_hh_l0": 0 * B}
    net.load_state_dict({name: torch.from_numpy(values) for name, values in given.items()})
    x = torch.from_numpy(X).requires_grad_()  # [T, I]: one sequence, without a batch
    y, _ = net(x)
    (dx,) = torch.autograd.grad(y[-1].sum(), x)
    return y.detach().numpy(), dx.numpy()


def main(quick: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """States and gradients of both."""
    found = {"by hand": by_hand(), "fused": fused()}
    for part, name in enumerate(("state", "gradient of x")):
        for t in range(len(X)):
            told = "   ".join(f"{side} ({values[part][t][0]:+.6f}, {values[part][t][1]:+.6f})"
                              for side, values in found.items())  # fmt: skip
            print(f"step {t + 1}, {name}: {told}")
    return found


if __name__ == "__main__":
    run(main)
