"""The definition: the loop against torch.nn, the backward by hand against autograd of the loop, and gradcheck."""

import pytest
import torch
from problems import PROBLEMS, Sample, assert_equal, inputs_of, run, run_torch

from fusedrnn import autograd, ops, reference
from fusedrnn.cells import CELLS

SMALL = [
    Sample("rnn_tanh", T=3, B=2, I=2, H=3, D=2),
    Sample("rnn_relu", T=3, B=2, I=2, H=3, lengths="given"),
    Sample("gru", T=3, B=2, I=2, H=3, D=2, lengths="packed"),
    Sample("gru_reset_before", T=3, B=2, I=2, H=3, resets=True),
    Sample("lstm", T=3, B=2, I=2, H=3, P=2),
    Sample("lstm", T=3, B=3, I=2, H=2, tokens=True, batch_first=True, reverse=True),
]


def run_loop(sample: Sample) -> dict[str, torch.Tensor]:
    """As `run`, in float64, on the plain loop and autograd."""
    call = sample.call(torch.float64)
    leaves = [None if t is None else t.clone().requires_grad_(t.is_floating_point()) for t in inputs_of(call)]
    x, h0, c0, *weights = leaves
    grouped = tuple(type(w)(*weights[5 * d : 5 * d + 5]) for d, w in enumerate(call.weights))
    outputs = reference.forward(call._replace(x=x, h0=h0, c0=c0, weights=grouped))[:3]
    given = [out for out in outputs if out.requires_grad]
    torch.autograd.backward(given, sample.cotangents(outputs)[: len(given)])
    names = ("x", "h0", "c0", *ops.DIFFERENTIABLE[3:])
    by_name = {name: out.detach() for name, out in zip(("y", "h_n", "c_n"), given, strict=False)}
    return by_name | {f"d{n}": t.grad for n, t in zip(names, leaves, strict=False) if t is not None and t.requires_grad}


@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_equals_torch_in_float64(sample):
    theirs = run_torch(sample, torch.float64)
    if theirs is None:
        pytest.skip("torch.nn has no such cell or option")
    assert_equal(run(sample, "reference", torch.float64), theirs, 1e-12)


@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_the_derived_backward_equals_autograd_of_the_loop(sample):
    got, want = run(sample, "reference", torch.float64), run_loop(sample)
    for name, tensor in want.items():  # autograd leaves None where nothing depends on an input
        if tensor is None:
            want[name] = torch.zeros_like(got[name])
    assert_equal(got, want, 1e-12)


def test_reset_before_is_the_unit_as_printed():
    sample = Sample("gru_reset_before", T=4, B=2, I=3, H=5)
    call = sample.call(torch.float64)
    w = call.weights[0]
    h, ys = call.h0[0], []
    for x in call.x:
        (w_r, w_z, w_n), (u_r, u_z, u_n) = w.w_ih.chunk(3), w.w_hh.chunk(3)
        b_r, b_z, b_n = (w.b_ih + w.b_hh).chunk(3)
        r = torch.sigmoid(x @ w_r.T + h @ u_r.T + b_r)
        z = torch.sigmoid(x @ w_z.T + h @ u_z.T + b_z)
        n = torch.tanh(x @ w_n.T + (r * h) @ u_n.T + b_n)
        h = (1 - z) * n + z * h
        ys.append(h)
    torch.testing.assert_close(run(sample, "reference", torch.float64)["y"], torch.stack(ys), rtol=0, atol=1e-14)


def layer(sample: Sample):
    """The Function of the sample's cell as a function of its differentiable inputs, and those inputs."""
    call = sample.call(torch.float64)
    flat = ops.flat(call)
    inputs = [t.clone().requires_grad_() for t in inputs_of(call) if t is not None and t.is_floating_point()]
    places = [k for k, t in enumerate(flat[:13]) if t.is_floating_point() and (t.ndim > 1 or t.numel())]
    op = call.spec.op
    options = (call.cell, call.direction, call.batch_first, "auto", "full", "ieee", "reference")

    def function(*tensors):
        arguments = list(flat)
        for k, tensor in zip(places, tensors, strict=True):
            arguments[k] = tensor
        y, h_n, c_n, _, _ = autograd.FUNCTIONS[op].apply(*arguments, op, *options)
        return (y, h_n, c_n) if CELLS[call.cell].states == 2 else (y, h_n)

    return function, inputs


@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_gradcheck(sample):
    function, inputs = layer(sample)
    assert torch.autograd.gradcheck(function, inputs, atol=1e-7)


@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_gradgradcheck(sample):
    function, inputs = layer(sample)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-6)
