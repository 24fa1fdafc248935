"""The gates of each cell and their derivatives on float32 tiles, as derived in `fusedrnn.autograd`."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + e) or e / (1 + e), e = exp(-|x|), which does not overflow. NaN of NaN."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit
def tanh(x):
    """(1 - e) / (1 + e), e = exp(-2|x|), which saturates; near zero, where 1 - e cancels, x (1 + x^2 q(x^2)), q as in
    csrc/cpu/math.h. NaN of NaN, -0 of -0."""
    a = tl.abs(x)
    e = tl.exp(-2 * a)
    large = (1 - e) / (1 + e)
    u = x * x
    q = -0.005704987 * u + 0.020639087
    q = q * u - 0.053739715
    q = q * u + 0.13331442
    q = q * u - 0.33333282
    return tl.where(a < 0.625, x * (1 + u * q), tl.where(x < 0, -large, large))


@triton.jit
def rnn(a, RELU: tl.constexpr):
    """h of the pre-activation; NaN stays NaN."""
    if RELU:
        return tl.where(a < 0, 0.0, a)
    return tanh(a)


@triton.jit
def rnn_gradient(h, dh, RELU: tl.constexpr):
    """da; it passes where h is NaN."""
    if RELU:
        return tl.where(h <= 0, 0.0, dh)
    return dh * (1 - h * h)


@triton.jit
def gru(r, z, n, h):
    """The new state from the gates and the state before."""
    return (1 - z) * n + z * h


@triton.jit
def gru_gradient(n, z, h, dh):
    """da_n and da_z."""
    return dh * (1 - z) * (1 - n * n), dh * (h - n) * z * (1 - z)


@triton.jit
def reset_gradient(d, value, r):
    """da_r of the cotangent of r * value."""
    return d * value * r * (1 - r)


@triton.jit
def lstm(i, f, g, o, c):
    """h and c."""
    c = f * c + i * g
    return o * tanh(c), c


@triton.jit
def lstm_gradient(i, f, g, o, c_before, c, dh, dc):
    """da_i, da_f, da_g, da_o and dc before the step."""
    t = tanh(c)
    dc += dh * o * (1 - t * t)
    return (
        dc * g * i * (1 - i),
        dc * c_before * f * (1 - f),
        dc * i * (1 - g * g),
        dh * t * o * (1 - o),
        dc * f,
    )
