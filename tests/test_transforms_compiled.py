"""torch.compile and torch.export: one node a layer, no graph break, no recompilation, and every transform inside."""

import functools

import pytest
import torch
from test_transforms import LAYERS, SINGLE, H, I, agree, gradients, input_of, normal, pair, penalty, scalar, tensors
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fusedrnn

OPTIONS = {"num_layers": 2, "bidirectional": True}
SIZES = ((4, 2), (7, 3), (200, 2), (3, 5))

# torch.export warns of the list of parameters that nn.RNNBase keeps, for torch.nn's own modules too.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")


def loss(module, x) -> torch.Tensor:
    return scalar(module(x))


def our_nodes(graphs) -> list[str]:
    modules = [module for graph in graphs for module in graph.modules() if isinstance(module, GraphModule)]
    names = [str(node.target) for module in modules for node in module.graph.nodes]
    return [name for name in names if name.startswith("fusedrnn")]


def compiled(function, backend="aot_eager", **options):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=backend, **options)


@pytest.mark.parametrize("twice", ["state", "weight", "bias"])
def test_a_tensor_given_twice(twice):
    """torch.compile traces no autograd Function that is given one."""
    net, x, h = fusedrnn.LSTM(I, I, dtype=torch.float64), normal(5, 2, I), normal(1, 2, I).requires_grad_()
    if twice != "state":
        setattr(net, f"{twice}_hh_l0", getattr(net, f"{twice}_ih_l0"))
    state = (h, h if twice == "state" else h.detach())

    def output(x):
        return net(x, state)[0].square().sum()

    found, want = (torch.autograd.grad(run(x), (h, *net.parameters())) for run in (compiled(output), output))
    for one, other in zip(found, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "how"), [*((name, "dynamic") for name in LAYERS), ("GRU", "marked")])
def test_training_steps_of_every_size_are_one_graph_with_one_node_a_layer(name, how):
    net, theirs = pair(name, **OPTIONS)
    recorded = AotEagerAndRecordGraphs()
    fast = compiled(loss, recorded, dynamic=True if how == "dynamic" else None)

    def step(net, x):
        if how == "marked":
            torch._dynamo.mark_dynamic(x, (0, 1))
        return fast(net, x)

    for steps, batch in SIZES:
        x = normal(steps, batch, I)
        agree(gradients(net, step, x), gradients(theirs, loss, x))
    op = name.lower()
    assert len(recorded.fw_graphs) == len(recorded.bw_graphs) == 1
    assert our_nodes(recorded.fw_graphs) == [f"fusedrnn.{op}_forward.default"] * 2
    assert our_nodes(recorded.bw_graphs) == [f"fusedrnn.{op}_backward.default"] * 2


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_what_make_fx_traced_runs_at_other_sizes(name):
    net, theirs = pair(name)
    parameters, x = dict(net.named_parameters()), input_of(name)

    def slopes(parameters, x):
        outputs = torch.func.functional_call(net, parameters, (x,))
        return torch.autograd.grad(scalar(outputs), list(parameters.values()))

    traced = make_fx(slopes, tracing_mode="symbolic")(parameters, x)
    other = torch.cat((x, x), -2)
    agree(traced(parameters, other), torch.autograd.grad(loss(theirs, other), list(theirs.parameters())))
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True) as mode:
        assert [tuple(t.shape) for t in tensors(net(mode.from_tensor(x)))] == [t.shape for t in tensors(net(x))]


def test_the_graph_of_many_steps_is_as_large_as_that_of_few():
    net, _ = pair("LSTM")
    counts = []
    for steps in (5, 200):
        recorded = AotEagerAndRecordGraphs()
        gradients(net, compiled(loss, recorded, dynamic=False), normal(steps, 2, I))
        counts.append([len(graph.graph.nodes) for graph in (*recorded.fw_graphs, *recorded.bw_graphs)])
    assert counts[0] == counts[1]
    assert len(counts[0]) == 2


@pytest.mark.parametrize("name", (*LAYERS, *SINGLE))
def test_inference_is_one_node(name):
    net, _ = pair(name)
    recorded = AotEagerAndRecordGraphs()
    x = input_of(name)
    with torch.no_grad():
        agree(tensors(compiled(net, recorded)(x)), tensors(net(x)))
    assert len(our_nodes(recorded.fw_graphs)) == 1


def test_a_cell_unrolled_by_the_user_is_one_node_a_step():
    net, _ = pair("LSTMCell")

    def unrolled(net, x):
        state, states = None, []
        for row in x:
            state = net(row, state)
            states.append(state)
        return scalar(states)

    recorded = AotEagerAndRecordGraphs()
    x = normal(2, 2, I)
    agree(gradients(net, compiled(unrolled, recorded), x), gradients(net, unrolled, x))
    assert len(our_nodes(recorded.fw_graphs)) == len(our_nodes(recorded.bw_graphs)) == 2


def test_inductor_trains_as_eager_does():
    losses = []
    for how in (torch.compile(fullgraph=True), lambda step: step):
        torch._dynamo.reset()
        nets = torch.nn.ModuleList(pair(name, torch.float32)[0] for name in LAYERS)
        optimizer = torch.optim.SGD(nets.parameters(), 0.01)

        @how
        def step(x, nets=nets):
            return functools.reduce(torch.add, [scalar(net(x)) for net in nets])

        ran = []
        for k in range(3):
            optimizer.zero_grad()
            value = step(normal(4, 2, I, dtype=torch.float32) + k)
            value.backward()
            optimizer.step()
            ran.append(value.item())
        losses.append(ran)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "backend"), [("RNN", "aot_eager"), ("GRU", "eager"), ("LSTM", "eager"), ("LSTMCell", "eager")]
)
def test_transforms_inside_torch_compile(name, backend):
    """Right, and never the zeros that torch gives where an autograd Function over a custom op is traced."""
    ours, theirs = pair(name)
    x = normal(*(2, 2, I)[-input_of(name).ndim :])
    of_ours, of_theirs = functools.partial(loss, ours), functools.partial(loss, theirs)

    def transforms(x, direction):
        each = vmap(grad(of_ours))(torch.stack([x, direction]))
        return grad(of_ours)(x), jvp(of_ours, (x,), (direction,))[1], each

    def by_dual_numbers(x, direction):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(of_ours(forward_ad.make_dual(x, direction))).tangent

    direction = x.flip(0)
    slope, other = grad(of_theirs)(x), grad(of_theirs)(direction)
    along = (slope * direction).sum()
    agree(compiled(transforms, backend)(x, direction), (slope, along, torch.stack([slope, other])))
    agree(compiled(by_dual_numbers, backend)(x, direction), along)


@pytest.mark.parametrize(("name", "strict"), [*((name, False) for name in LAYERS), ("LSTM", True)])
def test_exported_programs_run_and_train_at_every_size(name, strict):
    net, theirs = pair(name, **OPTIONS)
    any_size = torch.export.Dim.DYNAMIC
    program = torch.export.export(net, (normal(4, 2, I),), dynamic_shapes=({0: any_size, 1: any_size},), strict=strict)
    assert our_nodes([program.graph_module]) == [f"fusedrnn.{name.lower()}_forward.default"] * 2
    for steps, batch in SIZES:
        x = normal(steps, batch, I)
        agree(tensors(program.module()(x)), tensors(theirs(x)))
        agree(by_name(program.module(), loss, x), by_name(theirs, loss, x))


def by_name(module, function, x) -> dict[str, torch.Tensor]:
    names = ("x", *dict(module.named_parameters()))
    return dict(zip(names, gradients(module, function, x), strict=True))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("memory", ["full", "lean", "none"])
def test_gradients_of_what_was_traced_are_those_of_eager(memory, strict):
    net, theirs = pair("GRU", bidirectional=True)
    net.memory = "lean" if memory == "lean" else "full"
    x = normal(4, 2, I)
    with torch.set_grad_enabled(memory != "none"):  # without gradients a graph keeps nothing for backward
        exported = torch.export.export(net, (x,), strict=strict).module()
        traced = make_fx(lambda parameters, x: functional_call(net, parameters, x))(dict(net.named_parameters()), x)
    want = by_name(net, loss, x)
    agree(by_name(exported, loss, x), want, 0.0)
    agree(by_name(net, lambda net, x: scalar(traced(dict(net.named_parameters()), x)), x), want, 0.0)
    agree(by_name(exported, penalty, x), by_name(theirs, penalty, x))


@pytest.mark.parametrize("name", SINGLE)
def test_exported_cells_run_every_batch(name):
    net, theirs = pair(name)
    program = torch.export.export(net, (normal(2, I),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for batch in (2, 7):
        agree(tensors(program.module()(normal(batch, I))), tensors(theirs(normal(batch, I))))


def test_an_exported_program_is_saved_and_loaded(tmp_path):
    net = fusedrnn.GRU(I, H)
    x = normal(4, 2, I, dtype=torch.float32)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "gru.pt2")
    agree(tensors(torch.export.load(tmp_path / "gru.pt2").module()(x)), tensors(net(x)), 0.0)
