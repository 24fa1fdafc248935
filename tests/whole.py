"""What a backend of a GPU has to do whatever its kernels are, for the tests that run them on CPU tensors."""

import torch
from problems import Sample, assert_equal, backward, forward, inputs_of, run
from torch.nn.utils.rnn import pack_sequence

from fusedrnn.cells import CELLS


def repeats_and_saving_changes_no_output(sample: Sample, name: str, dtype: torch.dtype) -> None:
    assert_equal(run(sample, name, dtype), run(sample, name, dtype))
    without, kept = (forward(sample.keeping(save).call(dtype), name)[:3] for save in ("none", "full"))
    assert all(map(torch.equal, without, kept))


def takes_any_cotangents_and_gives_single_gradients(sample: Sample, name: str, dtype: torch.dtype) -> None:
    call = sample.call(dtype)
    outputs = forward(call, name)
    absent, zeros = call.h0.new_empty(0), [torch.zeros_like(out) for out in outputs[:3]]
    for k in range(CELLS[call.cell].states + 1):
        one = torch.ones((), dtype=dtype).expand(outputs[k].shape)
        sparse, dense = [absent] * 3, list(zeros)
        sparse[k], dense[k] = one, one.clone()
        found, want = (backward(call, name, given, outputs) for given in (sparse, dense))
        assert all(map(torch.equal, found, want))
    for k, tensor in enumerate(inputs_of(call)):
        if tensor is not None and tensor.is_floating_point():
            grads = backward(call, name, dense, outputs, 1 << k)
            assert torch.equal(grads[k], want[k])
            assert all(grad.shape == (0,) for j, grad in enumerate(grads) if j != k)


def takes_any_layout(sample: Sample, name: str, dtype: torch.dtype, tolerance: float = 0) -> None:
    """Each operand but x as a window of whole vectors, with its outer dimensions swapped, and as one row for all."""
    for layout in (_window, _swapped, _one_row_for_all):
        call = sample.call(dtype)
        weights = tuple(type(w)._make(t if t is None else layout(t) for t in w) for w in call.weights)
        c0 = None if call.c0 is None else layout(call.c0)
        call = call._replace(h0=layout(call.h0), c0=c0, weights=weights)
        dense = call._replace(
            h0=call.h0.contiguous(),
            c0=None if c0 is None else c0.contiguous(),
            weights=tuple(type(w)._make(t if t is None else t.contiguous() for t in w) for w in weights),
        )
        outputs = forward(dense, name)
        torch.testing.assert_close(forward(call, name), outputs, rtol=tolerance, atol=tolerance)
        cotangents = sample.cotangents(outputs[:3])
        found = backward(call, name, tuple(map(layout, cotangents)), outputs)
        want = backward(dense, name, tuple(layout(t).contiguous() for t in cotangents), outputs)
        torch.testing.assert_close(found, want, rtol=tolerance, atol=tolerance)


def _window(t: torch.Tensor) -> torch.Tensor:
    wide = t.new_full((*t.shape[:-1], t.shape[-1] + 16), torch.nan)
    return wide[..., 8:-8].copy_(t)


def _swapped(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim > 2 else t


def _one_row_for_all(t: torch.Tensor) -> torch.Tensor:
    return t[(slice(1),) * (t.ndim - 1)].expand(t.shape)


def writes_no_input_and_shares_no_memory(sample: Sample, name: str, dtype: torch.dtype) -> None:
    call = sample.call(dtype)
    given = [t for t in inputs_of(call) if t is not None]
    before = [t.clone() for t in given]
    outputs = forward(call, name)
    assert all(map(torch.equal, given, before))
    cotangents = sample.cotangents(outputs[:3])
    read = [*given, *(t for t in outputs if t is not None), *cotangents]
    before = [t.clone() for t in read]
    grads = backward(call, name, cotangents, outputs)
    assert all(map(torch.equal, read, before))
    storages = [t.untyped_storage().data_ptr() for t in (*given, *outputs, *grads) if t is not None and t.numel()]
    assert len(storages) == len(set(storages))


def trains(ours: torch.nn.RNNBase, packed: bool, tolerance: float) -> None:
    torch.manual_seed(0)
    ours.reset_parameters()
    x = torch.randn(4, 3, ours.input_size, dtype=ours.weight_hh_l0.dtype)
    given = pack_sequence([x[:4, 0], x[:2, 1], x[:1, 2]]) if packed else x
    found, want = [], []
    for module, into in ((ours, found), (ours.to_torch(), want)):
        y, state = module(given)
        y = y.data if packed else y
        loss = y.square().sum() + sum(s.sum() for s in (state if isinstance(state, tuple) else (state,)))
        into += [y.detach(), *torch.autograd.grad(loss, list(module.parameters()))]
    names = "y", *dict(ours.named_parameters())
    assert_equal(dict(zip(names, found, strict=True)), dict(zip(names, want, strict=True)), tolerance)


def gives_a_gradient_for_each_sample(ours: torch.nn.RNNBase, tolerance: float) -> None:
    torch.manual_seed(0)
    ours.reset_parameters()
    parameters = dict(ours.named_parameters())
    x = torch.randn(3, 4, 2, ours.input_size, dtype=ours.weight_hh_l0.dtype)

    def loss(module):
        return lambda weights, x: torch.func.functional_call(module, weights, (x,))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss(ours)), in_dims=(None, 0))(parameters, x)
    each = [torch.autograd.grad(loss(ours.to_torch())(parameters, one), list(parameters.values())) for one in x]
    want = {name: torch.stack([grads[k] for grads in each]) for k, name in enumerate(parameters)}
    assert_equal({name: grad.detach() for name, grad in found.items()}, want, tolerance)
