"""What the functional forms offer beyond torch.nn, and that they, the modules and the transforms of torch agree."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import functional
from fusedrnn.call import Weights

T, B, I, H = 6, 4, 3, 5


def layers(module: nn.Module) -> list[Weights]:
    return [Weights(*ws[:2], *ws[2:4]) for ws in module.all_weights]


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_functional_forms_equal_the_modules(name, batch_first):
    options = {"bidirectional": True, "batch_first": batch_first}
    net = getattr(fusedrnn, name.upper())(I, H, num_layers=2, dtype=torch.float64, **options)
    x, form = torch.randn(B, T, I, dtype=torch.float64), getattr(functional, name)
    state = torch.randn(4, B if batch_first else T, H, dtype=torch.float64)
    for hx in (None, (state, state + 1) if name == "lstm" else state):
        torch.testing.assert_close(form(x, hx, layers(net), **options), net(x, hx), rtol=0, atol=0)
    if not batch_first:
        packed = pack_padded_sequence(x, [4, 4, 3, 2, 1, 1])
        y, state = form(packed.data, None, layers(net), batch_sizes=packed.batch_sizes, bidirectional=True)
        torch.testing.assert_close((y, state), (net(packed)[0].data, net(packed)[1]), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_lengths_are_a_packed_batch_without_sorting(name):
    theirs = getattr(nn, name.upper())(I, H, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([2, 6, 1, 4])
    y, state = getattr(functional, name)(x, None, layers(theirs), bidirectional=True, lengths=lengths)
    packed, want_state = theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))
    torch.testing.assert_close(y, pad_packed_sequence(packed)[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(state, want_state, rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_reset_begins_anew(batch_first):
    net = fusedrnn.LSTM(I, H, batch_first=batch_first, dtype=torch.float64)
    x = torch.randn(B, T, I, dtype=torch.float64) if batch_first else torch.randn(T, B, I, dtype=torch.float64)
    resets = torch.zeros(x.shape[:2], dtype=torch.bool)
    time = 1 if batch_first else 0
    resets.select(time, 2)[1 if not batch_first else slice(1, 2)] = True
    y, _ = functional.lstm(x, None, layers(net), batch_first=batch_first, resets=resets)
    whole, second = net(x)[0], net(x.narrow(time, 2, T - 2))[0]
    one = (slice(None), 1) if not batch_first else (1,)
    others = (slice(None), 0) if not batch_first else (0,)
    torch.testing.assert_close(y[others], whole[others], rtol=0, atol=0)
    torch.testing.assert_close(y[one][:2], whole[one][:2], rtol=0, atol=0)
    torch.testing.assert_close(y[one][2:], second[one], rtol=0, atol=1e-14)


def losses(name: str):
    """A scalar of everything a layer returns, by our module's math and by torch.nn's, over the same parameters."""
    made = [getattr(library, name)(I, H, dtype=torch.float64) for library in (fusedrnn, nn)]
    made[1].load_state_dict(made[0].state_dict())

    def loss(net):
        def of(x):
            y, state = net(x)
            state = state if isinstance(state, tuple) else (state,)
            return y.sin().sum() + sum((k + 2) * s.cos().sum() for k, s in enumerate(state))

        return of

    return [loss(net) for net in made]


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_transforms_of_torch_func(name):
    ours, theirs = losses(name)
    x, v = torch.randn(T, B, I, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
    many = torch.randn(3, T, B, I, dtype=torch.float64)
    exact = torch.func.grad(theirs)(x)

    def agree(got, want):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)

    agree(torch.func.grad(ours)(x), exact)
    agree(torch.func.jvp(ours, (x,), (v,))[1], (exact * v).sum())
    agree(torch.func.vmap(ours)(many), torch.stack([theirs(one) for one in many]))
    agree(torch.func.vmap(torch.func.grad(ours))(many), torch.stack([torch.func.grad(theirs)(one) for one in many]))
    agree(
        torch.func.grad(lambda x: (torch.func.grad(ours)(x) * v).sum())(x),
        torch.func.grad(lambda x: (torch.func.grad(theirs)(x) * v).sum())(x),
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        agree(torch.autograd.forward_ad.unpack_dual(ours(dual)).tangent, (exact * v).sum())


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_modules_compile_as_one_graph(name):
    net = getattr(fusedrnn, name)(I, H, num_layers=2, bidirectional=True, batch_first=True)
    fast = compiled(net)
    for steps in (4, 6, 7):  # from the second on with a symbolic number of steps
        results = []
        for run in (net, fast):
            x = torch.randn(2, steps, I, generator=torch.Generator().manual_seed(0)).requires_grad_()
            y, _ = run(x)
            y.square().sum().backward()
            results.append((y, x.grad))
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)


def test_compiled_tokens_are_checked():
    fast = compiled(fusedrnn.GRU(I, H))
    assert fast(torch.tensor([[0, 2]]))[0].shape == (1, 2, H)
    with pytest.raises(IndexError, match=r"expected tokens in \[0, 3\), the vocabulary, got 3"):
        fast(torch.tensor([[0, 3]]))


def test_compiled_torch_func_grad_is_right():
    ours, theirs = losses("LSTM")
    x = torch.randn(3, 2, I, dtype=torch.float64)
    torch.testing.assert_close(compiled(torch.func.grad(ours))(x), torch.func.grad(theirs)(x), rtol=1e-11, atol=1e-11)
