"""torch's own module samples, those its test suite runs on nn.RNN, GRU, LSTM and their cells, on ours.

The checks are those of pytorch/test/test_modules.py, each against torch.nn where there is something to compare.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils._pytree import tree_flatten, tree_map

import fusedrnn

NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls in [getattr(nn, n) for n in NAMES]}


def samples(name: str, dtype: torch.dtype = torch.float64, requires_grad: bool = False, training: bool = True) -> list:
    """Constructor and forward arguments as torch draws them."""
    torch.manual_seed(0)
    info = INFOS[name]
    drawn = info.module_inputs_func(info, "cpu", dtype, requires_grad, training)
    return [(s.constructor_input, s.forward_input, s.reference_fn) for s in drawn if s.forward_input is not None]


def pair(name: str, given, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's with the same weights."""
    ours, theirs = (getattr(library, name)(*given.args, **given.kwargs, dtype=dtype) for library in (fusedrnn, nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def assert_same(got, want, **tolerance) -> None:
    leaves, spec = tree_flatten(got)
    wanted, wanted_spec = tree_flatten(want)
    assert spec == wanted_spec
    for one, other in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_every_class_has_samples():
    assert set(INFOS) == set(NAMES)
    assert all(len(samples(name)) >= 2 for name in NAMES)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_forward(name, dtype, training):
    for constructor, given, reference in samples(name, dtype, training=training):
        ours, theirs = (m.train(training) for m in pair(name, constructor, dtype))
        got = ours(*given.args, **given.kwargs)
        assert_same(got, theirs(*given.args, **given.kwargs))
        if reference is not None:
            assert_same(got, reference(ours, *given.args, **given.kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_every_input_and_parameter(name):
    for constructor, given, _ in samples(name, requires_grad=True):
        grads = []
        for module in pair(name, constructor):
            outputs = tensors(module(*given.args, **given.kwargs))
            into = [*tensors((given.args, given.kwargs)), *module.parameters()]
            torch.manual_seed(1)
            grads.append(torch.autograd.grad(outputs, into, [torch.randn_like(out) for out in outputs]))
        assert_same(*grads)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["first", "second"])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, check):
    some = slice(None, None, 3 if check is torch.autograd.gradgradcheck else 1)  # all second ones would take a minute
    for constructor, given, _ in list(samples(name, requires_grad=True))[some]:
        module = getattr(fusedrnn, name)(*constructor.args, **constructor.kwargs, dtype=torch.float64)
        leaves, spec = tree_flatten((given.args, given.kwargs))
        names, values = zip(*module.named_parameters(), strict=True)

        def run(*given_now, module=module, spec=spec, leaves=leaves, names=names):
            inputs, parameters = given_now[: len(leaves)], given_now[len(leaves) :]
            args, kwargs = torch.utils._pytree.tree_unflatten(inputs, spec)
            called = torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), args, kwargs)
            return tuple(tensors(called))

        assert check(run, (*leaves, *values), fast_mode=True)  # as torch's own suite does


@pytest.mark.parametrize("name", NAMES)
def test_non_contiguous_inputs_and_gradients(name):
    for constructor, given, _ in samples(name, requires_grad=True):
        ours, theirs = pair(name, constructor)
        results = []
        for module, spread in ((theirs, False), (ours, True)):
            args, kwargs = tree_map(lambda t, spread=spread: spread_out(t) if spread else t, (given.args, given.kwargs))
            outputs = tensors(module(*args, **kwargs))
            torch.manual_seed(1)
            cotangents = [torch.randn_like(out) for out in outputs]
            into = [*tensors((given.args, given.kwargs)), *module.parameters()]
            cotangents = [spread_out(g) for g in cotangents] if spread else cotangents
            results.append((outputs, torch.autograd.grad(outputs, into, cotangents)))
        assert_same(results[1], results[0])


def spread_out(tensor):
    """The same values, two elements apart in memory."""
    if not isinstance(tensor, Tensor):
        return tensor
    wide = torch.stack((tensor, torch.full_like(tensor, torch.nan)), -1)[..., 0]
    assert tensor.numel() <= 1 or not wide.is_contiguous()
    return wide


@pytest.mark.parametrize("name", NAMES)
def test_repr_pickle_and_deepcopy(name):
    for constructor, given, _ in samples(name):
        ours, theirs = pair(name, constructor)
        assert repr(ours) == repr(theirs)
        want = ours(*given.args, **given.kwargs)
        for again in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
            assert_same(again(*given.args, **given.kwargs), want, rtol=0, atol=0)
            assert list(again.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_meta_and_to_empty(name):
    for constructor, given, _ in samples(name, torch.float32):
        ours, theirs = (getattr(library, name)(*constructor.args, **constructor.kwargs, device="meta")
                        for library in (fusedrnn, nn))  # fmt: skip
        on_meta = tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, (given.args, given.kwargs))
        got, want = (module(*on_meta[0], **on_meta[1]) for module in (ours, theirs))
        assert [(t.shape, t.device) for t in tensors(got)] == [(t.shape, t.device) for t in tensors(want)]
        real = ours.to_empty(device="cpu")
        real.reset_parameters()
        assert all(out.isfinite().all() for out in tensors(real(*given.args, **given.kwargs)))


@pytest.mark.parametrize("name", NAMES)
def test_factory_arguments(name):
    for constructor, _, _ in samples(name):
        for dtype in (torch.float16, torch.float64):
            module = getattr(fusedrnn, name)(*constructor.args, **constructor.kwargs, dtype=dtype, device="meta")
            assert all(p.dtype == dtype and p.is_meta for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_errors(name):
    info = INFOS[name]
    assert info.module_error_inputs_func is not None
    found = info.module_error_inputs_func(info, "cpu", torch.float64, False, True)
    assert found
    for error in found:
        given = error.module_error_input
        constructor, forward = given.constructor_input, given.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            module = getattr(fusedrnn, name)(*constructor.args, **({"dtype": torch.float64} | constructor.kwargs))
            assert error.error_on == ModuleErrorEnum.FORWARD_ERROR
            module(*forward.args, **forward.kwargs)
