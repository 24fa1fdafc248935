"""torch.func, vmap of the raw ops, double backward, autocast, fake tensors: the transforms of torch."""

import warnings

import pytest
import torch
from problems import Sample, cases, forward, inputs_of
from problems import backward as raw_backward
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import fusedrnn
from fusedrnn import ops
from fusedrnn.cells import CELLS
from fusedrnn.dispatch import REGISTRY

LAYERS, SINGLE = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")
T, B, I, H, N = 4, 2, 3, 4, 3
BACKENDS = ("cpu", "reference")

VARIED = [cell for cell in CELLS if cell != "rnn_relu"]  # rnn_tanh but for one line of the kernels
SAMPLES = [Sample(cell, T=4, B=3, I=2, H=3, **size) for cell in VARIED for size in (
    dict(D=2), dict(reverse=True, batch_first=True, bias=False), dict(D=2, lengths="packed"),
    dict(tokens=True, lengths="packed"), dict(tokens=True, D=2), dict(D=2, lengths="given"),
    dict(D=2, resets=True, lengths="given"),
)]  # fmt: skip
SAMPLES += [Sample("lstm", T=4, B=3, I=2, H=3, P=2, D=2)]


@pytest.fixture(autouse=True)
def no_loops_over_samples():
    """torch warns where vmap has no batching rule and runs an op sample by sample."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        yield


def agree(got, want, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def normal(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def pair(name: str, dtype=torch.float64, **options) -> tuple[nn.Module, nn.Module]:
    """Our module and torch.nn's, over equal parameters."""
    torch.manual_seed(7)
    ours, theirs = (getattr(library, name)(I, H, dtype=dtype, **options) for library in (fusedrnn, nn))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def input_of(name: str, dtype=torch.float64) -> torch.Tensor:
    return normal(B, I, dtype=dtype) if name in SINGLE else normal(T, B, I, dtype=dtype)


def tensors(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in tensors(part)]


def scalar(outputs) -> torch.Tensor:
    """A number that every output takes part in, each in its own way, with second derivatives."""
    return sum((k + 1) * out.sin().sum() for k, out in enumerate(tensors(outputs)))


def loss_of(module: nn.Module):
    """The scalar as a function of the parameters and the input."""
    return lambda parameters, x: scalar(functional_call(module, parameters, (x,)))


def detached(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


CHECKED = [
    Sample(cell, T=4, B=3, I=2, H=3, **size)
    for cell in ("rnn_tanh", "gru", "lstm")
    for size in (dict(D=2), dict(D=2, tokens=True, lengths="packed"))
]


@pytest.mark.parametrize(("sample", "backend"), cases(BACKENDS, torch.float32, CHECKED))
def test_opcheck(sample, backend):
    call = sample.call(torch.float32)
    options = (call.cell, call.direction, call.batch_first, "auto", "full", "ieee", backend)
    torch.library.opcheck(ops.FORWARD[call.spec.op], (*ops.flat(call), *options))
    outputs = forward(call, backend)
    cotangents = sample.cotangents(outputs[:3])
    wanted = sum(1 << k for k, t in enumerate(inputs_of(call)) if t is not None and t.is_floating_point())
    arguments = (*cotangents, *ops.flat(call), outputs[0], *outputs[3:], *options, wanted)
    torch.library.opcheck(ops.BACKWARD[call.spec.op], arguments)


@pytest.mark.parametrize("save", ["full", "lean", "none"])
@pytest.mark.parametrize(("sample", "backend"), cases(BACKENDS, torch.float64, CHECKED))
def test_gradients_of_the_raw_ops(sample, backend, save):
    call = sample.keeping(save).call(torch.float64)
    given = [t.requires_grad_() if t.is_floating_point() and t.numel() else t for t in ops.flat(call)]
    call = ops.call_of(tuple(given), call.cell, call.direction, False, "auto", save, "ieee")
    outputs = forward(call, backend)
    assert not any(t.requires_grad for t in outputs[3:])
    cotangents, wanted = sample.cotangents(outputs[:3]), [t for t in given if t.requires_grad]
    kept = [t.detach() for t in forward(call._replace(save="full"), backend)]
    want = raw_backward(call._replace(save="full"), backend, cotangents, kept)
    got = torch.autograd.grad(outputs[: 1 + call.spec.states][::-1], wanted, cotangents[call.spec.states :: -1])
    agree(got, [g for g in want if g.numel()])


# vmap of the raw ops

NAMES = ("dy", "dh_n", "dc_n", *ops.TENSORS)
MAPPED = {
    "x": ("x",),
    "states": ("h0", "c0"),
    "cotangents": NAMES[:3],
    "data": (*NAMES[:6], "lengths", "resets"),
    "weights": ("w_hh", "b_ih"),
    "everything": tuple(name for name in NAMES if name != "row_offsets"),
}


def layer_and_gradients(sample: Sample, backend: str, wanted: int = -1):
    """All that the two raw ops return as a function of cotangents and inputs, and these by name."""
    call = sample.call(torch.float64)
    cotangents = sample.cotangents(forward(call, backend)[:3])
    # What rows that take no part save may be anything, as it is uninitialised memory after the kernels.
    poisoned = sample.lengths == "given" and call.cell in REGISTRY["cpu"].cells
    given = dict(zip(NAMES, (*cotangents, *ops.flat(call)), strict=True))

    def run(*values):
        now = ops.call_of(values[3:], call.cell, call.direction, call.batch_first, "auto", "full", "ieee")
        y, h_n, c_n, saved, cells = forward(now, backend)
        if poisoned and saved.shape != (0,):
            active = torch.arange(sample.T)[:, None] < now.lengths
            saved = torch.where(active.flatten()[:, None, None], saved, torch.nan)
        outputs = (y, h_n, c_n, saved, cells)
        grads = raw_backward(now, backend, values[:3], outputs, wanted)
        return outputs[: 3 if poisoned else 5], grads

    return run, given


def samples_of(name: str, tensor: torch.Tensor, sample: Sample) -> list[torch.Tensor]:
    """N different values of an argument, each as good as the one given."""
    if tensor.is_floating_point():
        return [tensor + 0.1 * n for n in range(N)]
    if name == "x":
        return [(tensor + n) % sample.I for n in range(N)]
    if name == "lengths" and sample.lengths == "packed":
        return [tensor] * N
    return [tensor.roll(n, -1) for n in range(N)]


KERNELS = cases(("cpu",), torch.float64, SAMPLES)
BEYOND = [s for s in SAMPLES if s not in {case.values[0] for case in KERNELS}]


@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize(("sample", "backend"), KERNELS + cases(("reference",), torch.float64, BEYOND))
def test_vmap_of_the_raw_ops_is_a_loop_over_samples(sample, backend, mapped):
    run, given = layer_and_gradients(sample, backend)
    names = [name for name in MAPPED[mapped] if given[name].shape != (0,)]
    many = {name: samples_of(name, given[name], sample) for name in names}
    dims = {name: k % (given[name].ndim + 1) for k, name in enumerate(names)}
    arguments = [torch.stack(many[n], dims[n]) if n in many else t for n, t in given.items()]
    got = vmap(run, tuple(dims.get(name) for name in NAMES))(*arguments)
    want = [run(*(many[name][n] if name in many else t for name, t in given.items())) for n in range(N)]
    for one, *others in zip(tensors(got), *map(tensors, want), strict=True):
        agree(one, torch.stack(others), 1e-12)


class Counted:
    """How often a backend's forward and backward are called."""

    def __init__(self, monkeypatch, backend: str) -> None:
        self.calls = {"forward": 0, "backward": 0}
        for name in self.calls:
            monkeypatch.setattr(REGISTRY[backend], name, self._counting(name, getattr(REGISTRY[backend], name)))

    def _counting(self, name, function):
        def call(*arguments):
            self.calls[name] += 1
            return function(*arguments)

        return call


@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("lengths", ["", "packed", "given"])
def test_samples_that_share_the_weights_are_one_call(lengths, mapped, monkeypatch):
    run, given = layer_and_gradients(Sample("gru", T=4, B=3, I=2, H=3, D=2, lengths=lengths), "reference")
    counted = Counted(monkeypatch, "reference")
    names = [name for name in MAPPED[mapped] if given[name].shape != (0,)]
    arguments = [torch.stack([t] * N) if name in names else t for name, t in given.items()]
    vmap(run, tuple(0 if name in names else None for name in NAMES))(*arguments)
    shared = not set(names) & {"w_hh", "b_ih"}
    assert counted.calls == {"forward": 1 if shared else N, "backward": 1 if shared else N}


@pytest.mark.parametrize("mapped", ["data", "weights"])
@pytest.mark.parametrize("sample", [Sample(cell, T=4, B=3, I=2, H=3, D=2) for cell in CELLS], ids=str)
def test_vmap_over_no_samples_keeps_the_shapes(sample, mapped):
    run, given = layer_and_gradients(sample, "reference")
    names = [name for name in MAPPED[mapped] if given[name].shape != (0,)]
    arguments = [t.new_empty(0, *t.shape) if name in names else t for name, t in given.items()]
    got = vmap(run, tuple(0 if name in names else None for name in NAMES))(*arguments)
    assert [t.shape for t in tensors(got)] == [(0, *t.shape) for t in tensors(run(*given.values()))]


# torch.func of the modules


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_gradients_by_sample(name):
    ours, theirs = pair(name)
    many = torch.stack([input_of(name) + n for n in range(N)])
    got = vmap(grad(loss_of(ours), (0, 1)), (None, 0))(detached(ours), many)
    want = [grad(loss_of(theirs), (0, 1))(detached(theirs), x) for x in many]
    agree(got[0], {key: torch.stack([of[key] for of, _ in want]) for key in want[0][0]})
    agree(got[1], torch.stack([of for _, of in want]))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_mean_over_mapped_samples(name):
    ours, theirs = pair(name, num_layers=2, bidirectional=True)
    many = torch.stack([input_of(name) + n for n in range(N)], -1)

    def by_vmap(parameters):
        return vmap(loss_of(ours), (None, -1))(parameters, many).mean()

    def by_loop(parameters):
        return torch.stack([loss_of(theirs)(parameters, x) for x in many.unbind(-1)]).mean()

    agree(grad(by_vmap)(detached(ours)), grad(by_loop)(detached(theirs)))


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_vmap_within_vmap(name):
    ours, theirs = pair(name)
    many = torch.stack([torch.stack([input_of(name) + n + m for n in range(N)]) for m in (0.0, 0.5)])
    got = vmap(vmap(grad(lambda x: scalar(ours(x)))))(many)
    agree(got.flatten(0, 1), torch.stack([grad(lambda x: scalar(theirs(x)))(x) for x in many.flatten(0, 1)]))


def jacobian(function, x: torch.Tensor) -> torch.Tensor:
    """Row by row, by plain autograd: torch.nn's modules have no batching rules of their own to be trusted with."""
    return torch.autograd.functional.jacobian(function, x, create_graph=True)


@pytest.mark.parametrize("transform", [jacrev, jacfwd], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_jacobians(name, transform):
    ours, theirs = pair(name)
    x = input_of(name)
    agree(transform(lambda x: tensors(ours(x))[0])(x), jacobian(lambda x: tensors(theirs(x))[0], x).detach())


@pytest.mark.parametrize("name", LAYERS)
def test_jacobians_by_the_parameters(name):
    ours, theirs = pair(name)
    x = input_of(name)
    of_ours, of_theirs = (lambda p, net=net: functional_call(net, p, (x,))[0].sum((0, 1)) for net in (ours, theirs))
    agree(jacrev(of_ours)(detached(ours)), jacrev(of_theirs)(detached(theirs)))


@pytest.mark.parametrize(
    "transform", [hessian, lambda f: jacrev(jacrev(f))], ids=["forward-reverse", "reverse-reverse"]
)
@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_hessians(name, transform):
    ours, theirs = pair(name)
    x = input_of(name)
    want = torch.autograd.functional.hessian(lambda x: scalar(theirs(x)), x)
    agree(transform(lambda x: scalar(ours(x)))(x), want)


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_ensembles_of_stacked_modules(name):
    pairs = [pair(name) for _ in range(N)]
    for k, (ours, theirs) in enumerate(pairs):
        with torch.no_grad():
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                q.copy_(p.mul_(1 + 0.1 * k))
    parameters, _ = stack_module_state([ours for ours, _ in pairs])
    x = input_of(name)
    one = pairs[0][0]
    got = vmap(lambda p: functional_call(one, p, (x,)))(parameters)
    for k, (_, theirs) in enumerate(pairs):
        agree([t[k] for t in tensors(got)], tensors(theirs(x)))
    grads = vmap(grad(loss_of(one)), (0, None))(parameters, x)
    for k, (_, theirs) in enumerate(pairs):
        agree({key: g[k] for key, g in grads.items()}, grad(loss_of(theirs))(detached(theirs), x))


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_forward_mode_by_every_argument(name):
    ours, theirs = pair(name)
    x = input_of(name)
    point, tangent = (detached(ours), x), ({k: v + 1 for k, v in detached(ours).items()}, x.flip(0))
    value, slope = jvp(loss_of(ours), point, tangent)
    grads = tensors([g.values() if isinstance(g, dict) else g for g in grad(loss_of(theirs), (0, 1))(*point)])
    directions = [*tangent[0].values(), tangent[1]]
    agree((value, slope), (loss_of(theirs)(*point), sum((g * v).sum() for g, v in zip(grads, directions, strict=True))))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_forward_mode_through_a_backward(name, create_graph):
    """What it gives is linear in the cotangent: along another it changes by what that one would give."""
    ours, theirs = pair(name)
    x = input_of(name).requires_grad_()
    y, want = (tensors(module(x))[0] for module in (ours, theirs))
    dy, along = normal(*y.shape), normal(*y.shape).flip(0)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(dy, along)
        slopes = torch.autograd.grad(y, (x, *ours.parameters()), dual, create_graph=create_graph)
        tangents = [forward_ad.unpack_dual(slope).tangent for slope in slopes]
    agree(tangents, list(torch.autograd.grad(want, (x, *theirs.parameters()), along)))
    _, pull = torch.func.vjp(lambda x: tensors(ours(x))[0], x.detach())
    agree(jvp(lambda dy: pull(dy)[0], (dy,), (along,))[1], tangents[0])


# plain autograd


def gradients(module: nn.Module, function, x: torch.Tensor) -> list[torch.Tensor]:
    """Of function(module, x), by x and by the parameters."""
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(function(module, x), (x, *module.parameters())))


def penalty(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    (slope,) = torch.autograd.grad(scalar(module(x)), x, create_graph=True)
    return (slope.norm() - 1) ** 2


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one", "deep"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradient_penalty(name, options):
    ours, theirs = pair(name, **options)
    agree(gradients(ours, penalty, input_of(name)), gradients(theirs, penalty, input_of(name)))


@pytest.mark.parametrize("name", SINGLE)
def test_gradient_penalty_of_cells(name):
    ours, theirs = pair(name)
    agree(gradients(ours, penalty, input_of(name)), gradients(theirs, penalty, input_of(name)))


@pytest.mark.parametrize("name", LAYERS)
def test_where_no_gradient_comes_no_backward_runs(name, monkeypatch):
    """The slope of a sum does not depend on y, whose own gradient is then none."""
    ours, theirs = pair(name)
    ours.backend, runs, reference = "reference", [], REGISTRY["reference"]

    def backward(*arguments, whole=reference.backward):
        runs.append(name)
        return whole(*arguments)

    monkeypatch.setattr(reference, "backward", backward)

    def slope(module, x):
        (slope,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        return slope.square().sum()

    agree(gradients(ours, slope, input_of(name)), gradients(theirs, slope, input_of(name)))
    assert runs == [name]
    ours.backend = "cpu"
    agree(gradients(ours, slope, input_of(name)), gradients(theirs, slope, input_of(name)))


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_gradients_under_autocast(name):
    ours, _ = pair(name, torch.float32)
    x = input_of(name, torch.float32)

    def cast(net, x):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = tensors(net(x))
        low = torch.bfloat16 if name in ("RNN", "LSTM", "RNNCell") else torch.float32
        assert {out.dtype for out in outputs} == {low}
        return scalar([out.float() for out in outputs])

    got = gradients(ours, cast, x)
    assert {g.dtype for g in got} == {torch.float32}
    agree(got, gradients(ours, lambda net, x: scalar(net(x)), x), 0.05)


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_fake_tensors_give_shapes(name):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True} if name in LAYERS else {}
    ours, _ = pair(name, torch.float32, **options)
    want = [(out.shape, out.dtype, out.stride()) for out in tensors(ours(input_of(name, torch.float32)))]
    with FakeTensorMode():
        fake = getattr(fusedrnn, name)(I, H, **options)
        x = torch.empty(input_of(name).shape, requires_grad=True)
        outputs = tensors(fake(x))
        grads = torch.autograd.grad(scalar(outputs), (x, *fake.parameters()))
    assert [(out.shape, out.dtype, out.stride()) for out in outputs] == want
    assert [g.shape for g in grads] == [t.shape for t in (x, *fake.parameters())]


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_a_second_call_repeats_the_first(name):
    ours, _ = pair(name, torch.float32)
    x = input_of(name, torch.float32)
    first, second = (gradients(ours, lambda net, x: scalar(net(x)), x) + tensors(ours(x)) for _ in range(2))
    vmap(grad(lambda x: scalar(ours(x))))(torch.stack([x, x]))
    third = gradients(ours, lambda net, x: scalar(net(x)), x) + tensors(ours(x))
    assert all(map(torch.equal, first, second)) and all(map(torch.equal, first, third))
