"""The modules inside what surrounds a layer: copies, processes, parametrizations, pruning, optimizers, files.

In all of it they must do what torch.nn's do, and never compute with weights of an earlier moment.
"""

import copy
import itertools
import pickle

import pytest
import safetensors.torch
import torch
from torch import multiprocessing, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, Dataset

import fusedrnn
from fusedrnn.dispatch import REGISTRY, use_backend

LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")
KINDS = [(name, options) for name in LAYERS for options in ({}, {"num_layers": 2, "bidirectional": True})]
KINDS += [(name, {}) for name in CELLS]
REASONS = {name: REGISTRY[name].unavailable_reason() for name in ("cpu", "reference")}
BACKENDS = [pytest.param(name, marks=[pytest.mark.skip(why)] * bool(why)) for name, why in REASONS.items()]

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0] + "-deep" * bool(kind[1]))
each_layer = pytest.mark.parametrize("name", LAYERS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def one_thread():
    """Sizes are tiny, and threads that wait for each other take seconds where other processes have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield before
    torch.set_num_threads(before)


def make(library, kind, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return getattr(library, kind[0])(4, 5, dtype=torch.float64, **kind[1])


def pair(kind) -> tuple[nn.Module, nn.Module]:
    """torch.nn's and ours, with the same weights; ours has run, so whatever it keeps between calls is there."""
    theirs, ours = make(nn, kind), make(fusedrnn, kind)
    ours(input_for(kind))
    with torch.no_grad():
        ours(input_for(kind))
    return theirs, ours


def sgd(module: nn.Module, rate: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), rate)


def input_for(kind, seed: int = 1) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*(6, 3, 4)[kind[0] in CELLS :], dtype=torch.float64, generator=random)


def outputs(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return _listed(module(x))


def _listed(out) -> list[torch.Tensor]:
    return [out] if isinstance(out, torch.Tensor) else [t for part in out for t in _listed(part)]


def train(module: nn.Module, x: torch.Tensor, optimizer=None) -> list[torch.Tensor | None]:
    """Outputs, and all gradients by name, for random cotangents on every output; then the optimizer's step."""
    module.zero_grad()
    found = outputs(module, x)
    random = torch.Generator().manual_seed(2)
    torch.autograd.backward(found, [torch.randn(t.shape, dtype=t.dtype, generator=random) for t in found])
    grads = [None if p.grad is None else p.grad.clone() for _, p in sorted(module.named_parameters())]
    if optimizer:
        optimizer.step()
    return [*found, *grads]


def assert_same(ours, theirs, tolerance: float = 1e-12) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def assert_fresh(ours: nn.Module, kind) -> None:
    """With and without gradients, `ours` computes what a new torch.nn module with the present weights does."""
    theirs, x = make(nn, kind, seed=99), input_for(kind, seed=7)
    theirs.load_state_dict(ours.state_dict())
    assert_same(train(ours, x), train(theirs, x))
    with torch.no_grad():
        assert_same(outputs(ours, x), outputs(theirs, x))


@each_kind
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_of_a_used_module_has_weights_of_its_own(kind, how, tmp_path):
    theirs, ours = pair(kind)
    if how == "deepcopy":
        made = copy.deepcopy(ours)
    elif how == "pickle":
        made = pickle.loads(pickle.dumps(ours))
    else:
        torch.save(ours, tmp_path / "module.pt")
        made = torch.load(tmp_path / "module.pt", weights_only=False)
    x = input_for(kind)
    train(made, x, sgd(made))
    assert_same(train(ours, x), train(theirs, x))
    train(theirs, x, sgd(theirs))
    assert_same(train(made, x), train(theirs, x))


@each_kind
@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped-and-assigned"])
def test_a_saved_state_dict_of_torch_loads_into_a_used_module(kind, mapped, tmp_path):
    theirs, ours = make(nn, kind, seed=4), pair(kind)[1]
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True, mmap=mapped)
    ours.load_state_dict(state, assign=mapped)
    assert_same(train(ours, input_for(kind)), train(theirs, input_for(kind)))


@each_kind
def test_the_whole_state_of_torchs_module_fits_ours(kind):
    theirs, x = make(nn, kind), input_for(kind)
    made = getattr(fusedrnn, kind[0]).__new__(getattr(fusedrnn, kind[0]))
    # as pickled before torch 1.8, which knew no projections
    made.__setstate__({name: value for name, value in theirs.__getstate__().items() if name != "proj_size"})
    found = train(theirs, x)
    assert_same(train(made, x), found)


@each_kind
def test_safetensors_written_by_either_library_load_into_the_other(kind, tmp_path):
    theirs, ours = pair(kind)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(2)
    safetensors.torch.save_model(theirs, tmp_path / "theirs.safetensors")
    safetensors.torch.load_model(ours, tmp_path / "theirs.safetensors")
    assert_same(train(ours, input_for(kind)), train(theirs, input_for(kind)))
    safetensors.torch.save_model(ours, tmp_path / "ours.safetensors")
    back = make(nn, kind, seed=8)
    safetensors.torch.load_model(back, tmp_path / "ours.safetensors")
    assert_same(train(back, input_for(kind)), train(theirs, input_for(kind)))


def test_weights_shared_with_a_spawned_process_are_trained_there_and_used_here():
    modules = nn.ModuleList(pair(kind)[1] for kind in KINDS).share_memory()
    for kind, ours in zip(KINDS, modules, strict=True):
        assert all(p.is_shared() for p in ours.parameters())
        assert_fresh(ours, kind)
    multiprocessing.spawn(_train_all_there, (modules,), nprocs=1)
    for kind, ours in zip(KINDS, modules, strict=True):
        theirs = make(nn, kind)
        train(theirs, input_for(kind), sgd(theirs))
        assert_same(list(ours.parameters()), list(theirs.parameters()))
        assert_fresh(ours, kind)


def _train_all_there(rank: int, modules: nn.ModuleList) -> None:
    torch.set_num_threads(1)
    for kind, module in zip(KINDS, modules, strict=True):
        train(module, input_for(kind), sgd(module))


class Encoded(Dataset):
    """Sequences that a module encodes in the worker."""

    def __init__(self, module: nn.Module, kind) -> None:
        self.module, self.kind = module, kind

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return outputs(self.module, input_for(self.kind, seed=index))[0]


# Python 3.12 and later warn of every fork beside threads, which is what this test is about.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@each_layer
def test_forked_dataloader_workers_run_a_module_that_ran_here_on_many_threads(name, one_thread):
    kind = (name, {})
    torch.set_num_threads(max(2, one_thread))
    theirs, ours = pair(kind)
    wide = getattr(fusedrnn, name)(64, 128)
    wide(torch.randn(8, 64, 64))[0].sum().backward()  # enough work to start every thread there is
    loader = DataLoader(Encoded(ours, kind), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=30)
    for _ in range(2):
        got = torch.cat(list(loader))
        torch.testing.assert_close(got, torch.stack([outputs(theirs, input_for(kind, seed=k))[0] for k in range(8)]))
        assert_fresh(ours, kind)


def _spectral_norm(module, name):
    # torch.nn.LSTM evaluates a parametrization several times in a call, and each evaluation is a power iteration: only
    # converged ones can be compared.
    parametrizations.spectral_norm(module, name, n_power_iterations=300)


def _hooked_spectral_norm(module, name):
    nn.utils.spectral_norm(module, name)  # evaluated once in a call, by a hook


def _pruned(module, name):
    prune.l1_unstructured(module, name, 0.3)


@each_kind
@pytest.mark.parametrize(
    "change",
    [parametrizations.weight_norm, parametrizations.orthogonal, _spectral_norm, _hooked_spectral_norm, _pruned],
    ids=lambda change: change.__name__.strip("_"),
)
def test_changed_weights_train_and_infer_as_in_torch(kind, change):
    modules, x = pair(kind), input_for(kind)
    for module in modules:
        for name in ("weight_ih", "weight_hh"):
            torch.manual_seed(7)  # some start from random vectors
            change(module, name + "_l0" * (kind[0] in LAYERS))
    theirs, ours = modules
    optimizers = [sgd(module, 0.1) for module in modules]
    for _ in range(3):
        got, want = train(ours, x, optimizers[1]), train(theirs, x, optimizers[0])
        assert_same(got, want, 1e-9 if change is _spectral_norm else 1e-11)
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        assert_same(outputs(ours, x), outputs(theirs, x), 1e-9)
    if change is _pruned:
        for module in modules:
            for name in ("weight_ih", "weight_hh"):
                prune.remove(module, name + "_l0" * (kind[0] in LAYERS))
        assert_same(outputs(ours, x), outputs(theirs, x), 1e-11)
        assert_fresh(ours, kind)


@each_kind
@each_backend
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda ps: torch.optim.Adam(ps, 0.1, fused=True),
        lambda ps: torch.optim.SGD(ps, 0.5, momentum=0.9, fused=True),
        lambda ps: torch.optim.AdamW(ps, 0.1, foreach=True),
        lambda ps: torch.optim.Adagrad(ps, 0.1, fused=True),
    ],
    ids=["fused-adam", "fused-sgd", "foreach-adamw", "fused-adagrad"],
)
def test_an_optimizers_step_is_seen_by_the_next_call(kind, backend, optimizer):
    _, ours = pair(kind)
    made = optimizer(ours.parameters())
    with use_backend(backend):
        for _ in range(2):
            train(ours, input_for(kind), made)
            assert_fresh(ours, kind)


def _written(ours: nn.Module) -> None:
    for parameter in ours.parameters():
        parameter.data.mul_(1.5)  # leaves the version counter as it is


def _assigned(ours: nn.Module) -> None:
    for parameter in ours.parameters():
        parameter.data = parameter.data.flip(0)


def _transposed(ours: nn.Module) -> None:
    for parameter in ours.parameters():
        if parameter.dim() == 2:
            parameter.data = (2 * parameter.data).t().contiguous().t()  # same shape, other strides


def _through_numpy(ours: nn.Module) -> None:
    for parameter in ours.parameters():
        parameter.detach().numpy()[...] *= -1


def _as_views_of_one_vector(ours: nn.Module) -> None:
    # One number before them: rows that no vector load may take to be aligned.
    vector = nn.utils.parameters_to_vector(ours.parameters())
    start, shifted = 1, torch.cat([vector.new_zeros(1), 0.5 * vector]).detach()
    for parameter in ours.parameters():
        parameter.data = shifted[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


def _cast_there_and_back(ours: nn.Module) -> None:
    ours.float().double()


@each_kind
@each_backend
@pytest.mark.parametrize(
    "write",
    [_written, _assigned, _transposed, _through_numpy, _as_views_of_one_vector, _cast_there_and_back],
    ids=lambda write: write.__name__[1:],
)
def test_a_write_behind_autograds_back_is_seen_by_the_next_call(kind, backend, write):
    with use_backend(backend):
        _, ours = pair(kind)
        ours.zero_grad()
        before = outputs(ours, input_for(kind))[0].detach()
        write(ours)
        assert not torch.equal(outputs(ours, input_for(kind))[0], before)
        assert_fresh(ours, kind)


def test_the_torch_backend_sees_what_an_optimizer_and_a_write_changed():
    torch.manual_seed(3)
    theirs, ours, x = nn.LSTM(4, 5), fusedrnn.LSTM(4, 5, backend="torch"), torch.randn(6, 3, 4)  # what it can run
    optimizer = torch.optim.Adam(ours.parameters(), 0.1, fused=True)
    for change in (optimizer.step, lambda: _written(ours), lambda: _assigned(ours), optimizer.step):
        train(ours, x)
        change()
        theirs.load_state_dict(ours.state_dict())
        assert_same(train(ours, x), train(theirs, x), 1e-5)


@each_kind
@pytest.mark.parametrize("foreach", [True, False])
def test_clipping_gives_the_norm_and_the_gradients_of_torch(kind, foreach):
    modules, found = pair(kind), []
    for module in modules:
        train(module, input_for(kind))
        norm = nn.utils.clip_grad_norm_(module.parameters(), 0.1, foreach=foreach)
        found.append([norm, *(p.grad for p in module.parameters())])
    assert found[0][0] > 0.1
    assert_same(found[1], found[0])


@each_layer
@pytest.mark.parametrize("role", ["layers", "input-and-state"])
def test_a_tied_weight_gets_the_sum_of_its_gradients(name, role, tmp_path):
    found = []
    for library in (nn, fusedrnn):
        torch.manual_seed(3)
        net = getattr(library, name)(5, 5, num_layers=2, dtype=torch.float64)
        x = torch.randn(6, 3, 5, dtype=torch.float64)
        net(x)
        if role == "layers":
            net.weight_hh_l1, net.bias_ih_l1 = net.weight_hh_l0, net.bias_ih_l0
        else:
            net.weight_hh_l0 = net.weight_ih_l0
        optimizer = sgd(net, 0.1)
        found.append([t for _ in range(3) for t in train(net, x, optimizer)])
        safetensors.torch.save_model(net, tmp_path / "tied.safetensors")
        with torch.no_grad():
            net.weight_hh_l0.zero_()
        safetensors.torch.load_model(net, tmp_path / "tied.safetensors")
        found[-1] += outputs(net, x)
    assert_same(found[1], found[0])


@each_kind
def test_a_frozen_weight_gets_no_gradient_and_changes_no_other(kind):
    modules, x = pair(kind), input_for(kind)
    names = list(dict(modules[0].named_parameters()))
    for frozen in [*([name] for name in names), names[::2], names]:
        for module in modules:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name not in frozen)
        found = [train(module, x.clone().requires_grad_()) for module in modules]
        assert_same(found[1], found[0])
        assert all(parameter.grad is None for name, parameter in modules[1].named_parameters() if name in frozen)


@each_kind
@each_backend
def test_gradients_of_every_subset_of_the_outputs(kind, backend):
    modules, x = pair(kind), input_for(kind)
    count = len(outputs(modules[0], x))
    for subset in itertools.chain.from_iterable(itertools.combinations(range(count), n + 1) for n in range(count)):
        found = []
        for module in modules:
            leaf = x.clone().requires_grad_()
            with use_backend(backend):
                chosen = [outputs(module, leaf)[k].sin().sum() for k in subset]
                found.append(torch.autograd.grad(chosen, [leaf, *module.parameters()], allow_unused=True))
        # What a chosen output does not depend on is None in torch and may be zeros here.
        ours, theirs = ([torch.zeros(()) if g is None else g for g in grads] for grads in reversed(found))
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other.expand_as(one).to(one.dtype), rtol=1e-12, atol=1e-12)
