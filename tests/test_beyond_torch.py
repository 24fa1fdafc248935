"""The lines of the README's table beside torch.nn: what its layers refuse and ours do, and what is lost with the way
round it. Each test shows both sides, so that a line that torch catches up with is noticed."""

import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import convert

README = Path(__file__).parent.parent / "README.md"
LAYERS = ("RNN", "GRU", "LSTM")


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    theirs = getattr(nn, name)(4, 6, dtype=torch.float64)
    return theirs, getattr(fusedrnn, name).from_torch(theirs)


def rows(*leading: int) -> torch.Tensor:
    return torch.randn(*leading, 4, dtype=torch.float64)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_compiles_as_one_graph(name):
    theirs, ours = pair(name)
    x = rows(5, 3)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(theirs, fullgraph=True, backend="eager")(x)
    torch._dynamo.reset()
    close(torch.compile(ours, fullgraph=True, backend="aot_eager")(x)[0], theirs(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_maps_a_layer(name):
    theirs, ours = pair(name)
    many = rows(2, 5, 3)
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(lambda x: theirs(x)[0])(many)
    close(torch.func.vmap(lambda x: ours(x)[0])(many), torch.stack([theirs(x)[0] for x in many]))


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_gradient_for_each_sample(name):
    theirs, ours = pair(name)
    samples = rows(3, 5)

    def gradients(module):
        def loss(parameters, x):
            return torch.func.functional_call(module, parameters, (x,))[0].square().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(module.named_parameters()), samples)

    with pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
        gradients(theirs)
    got = gradients(ours)
    for k, x in enumerate(samples):
        theirs.zero_grad()
        theirs(x)[0].square().sum().backward()
        for parameter, want in theirs.named_parameters():
            close(got[parameter][k], want.grad)


def test_forward_derivatives_of_an_lstm():
    theirs, ours = pair("LSTM")
    x, direction = rows(5, 3), rows(5, 3)
    single = nn.LSTM(4, 6)  # float32, which torch runs on oneDNN
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda z: single(z)[0], (x.float(),), (direction.float(),))
    _, tangent = torch.func.jvp(lambda z: ours(z)[0], (x,), (direction,))
    step = 1e-6
    want = (theirs(x + step * direction)[0] - theirs(x - step * direction)[0]) / (2 * step)
    torch.testing.assert_close(tangent, want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
def test_tokens_stand_for_one_hot_rows(name):
    theirs, ours = pair(name)
    tokens = torch.randint(4, (5, 3))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        theirs(tokens)
    close(ours(tokens)[0], theirs(nn.functional.one_hot(tokens, 4).double())[0])


@pytest.mark.parametrize("option", ["lengths", "resets"])
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_and_resets_are_arguments(name, option):
    """Their values are tested in test_lengths_and_resets.py."""
    theirs, ours = pair(name)
    given = {"lengths": torch.tensor([2, 5, 3]), "resets": torch.ones(5, 3, dtype=torch.bool)}[option]
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        theirs(rows(5, 3), **{option: given})
    assert ours(rows(5, 3), **{option: given})[0].shape == (5, 3, 6)


def test_the_reset_gate_may_come_before_the_product():
    """One step by hand, as Cho et al. 2014 print it."""
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        nn.GRU(4, 6, reset_after=False)
    ours = fusedrnn.GRU(4, 6, reset_after=False, dtype=torch.float64)
    x, h = rows(1, 3), torch.randn(1, 3, 6, dtype=torch.float64)
    w_r, w_z, w_n = ours.weight_ih_l0.chunk(3)
    u_r, u_z, u_n = ours.weight_hh_l0.chunk(3)
    b_r, b_z, b_n = (ours.bias_ih_l0 + ours.bias_hh_l0).chunk(3)
    r, z = torch.sigmoid(x[0] @ w_r.T + h[0] @ u_r.T + b_r), torch.sigmoid(x[0] @ w_z.T + h[0] @ u_z.T + b_z)
    n = torch.tanh(x[0] @ w_n.T + (r * h[0]) @ u_n.T + b_n)
    close(ours(x, h)[0][0], (1 - z) * n + z * h[0])


@pytest.mark.parametrize("name", LAYERS)
def test_isinstance_finds_the_base_class_alone(name):
    _, ours = pair(name)
    assert isinstance(ours, nn.RNNBase) and not isinstance(ours, getattr(nn, name))
    assert isinstance(ours.to_torch(), getattr(nn, name))


class Model(nn.Module):
    def __init__(self, rnn: nn.Module):
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor):
        return self.rnn(x)[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_torch_jit_script_takes_what_to_torch_gives(name):
    theirs, ours = pair(name)
    x = rows(5, 3)
    with pytest.raises(ValueError, match="Unknown type annotation"):
        torch.jit.script(Model(ours))
    close(torch.jit.script(Model(ours.to_torch()))(x), theirs(x)[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_torch_fx_and_traces_take_what_to_torch_gives(name):
    theirs, ours = pair(name)
    x = rows(5, 3)
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(Model(ours))
    with pytest.raises(RuntimeError, match="Could not export Python function call"):
        torch.jit.save(torch.jit.trace(Model(ours), (x,), check_trace=False), io.BytesIO())
    back = Model(ours.to_torch())
    close(torch.fx.symbolic_trace(back)(x), theirs(x)[0])
    close(torch.jit.trace(back, (x,))(x), theirs(x)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_eager_quantisation_takes_what_convert_gives_back():
    model = nn.Sequential(nn.LSTM(4, 6))
    convert(model)

    def quantised(of):
        return torch.ao.quantization.quantize_dynamic(of, {nn.LSTM}, dtype=torch.qint8)

    assert type(quantised(model)[0]) is fusedrnn.LSTM  # not looked at
    convert(model, to="torch")
    assert type(quantised(model)[0]).__module__.startswith("torch.ao")


def test_every_line_of_the_table_names_a_test_that_is_there():
    table = (
        README.read_text(encoding="utf-8").partition("<!-- beside-torch:begin -->")[2].partition("<!-- beside-torch")[0]
    )
    named = re.findall(r"`(test_\w+)::(test_\w+)`", table)
    lines = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(named) >= len(lines) - 2 > 10  # two heads
    for file, test in named:
        source = (Path(__file__).parent / f"{file}.py").read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file}::{test}"
