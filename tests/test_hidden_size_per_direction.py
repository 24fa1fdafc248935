"""hidden_size=(forward, reverse): values and every gradient in float64, beside a loop over torch.nn's cells."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from stepped import (
    KINDS,
    LAYERS,
    SIZES,
    B,
    I,
    Stepped,
    T,
    agree,
    beside_the_loop,
    made,
    names,
    outcome,
    rows,
    state_of,
    tensors,
)
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn

LENGTHS = torch.tensor([3, 6, 1, 5])
OPTIONS = [{}, {"num_layers": 2, "batch_first": True}, {"num_layers": 3, "bias": False, "memory": "lean"}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "deep-batch_first", "deeper-nobias-lean"])
@pytest.mark.parametrize("kind", KINDS, ids=names)
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
def test_outputs_and_gradients_equal_those_of_two_cells(kind, options, with_state):
    module = made(kind, **options)
    beside_the_loop(module, rows(T, B), state_of(module, B) if with_state else None)


@pytest.mark.parametrize("which", [("lengths",), ("resets",), ("lengths", "resets")], ids="-".join)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_lengths_and_resets(kind, batch_first, which):
    module = made(kind, num_layers=2, batch_first=batch_first)
    given_rows = {"lengths": LENGTHS, "resets": torch.rand(T, B) < 0.3}
    beside_the_loop(module, rows(T, B), state_of(module, B), **{name: given_rows[name] for name in which})


SIZE, STEPS, FLAG = st.integers(1, 20), st.integers(1, 12), st.booleans()


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.tuples(SIZE, SIZE),
    shape=st.tuples(STEPS, st.integers(1, 5)),
    options=st.fixed_dictionaries(
        {
            "bias": FLAG,
            "batch_first": FLAG,
            "schedule": st.sampled_from(["auto", "hoisted"]),
            "memory": st.sampled_from(["full", "lean"]),
        },
        optional={"num_layers": st.just(3)},
    ),
    with_state=FLAG,
    with_lengths=FLAG,
    with_resets=FLAG,
)
def test_any_shape_and_option(kind, sizes, shape, options, with_state, with_lengths, with_resets):
    torch.manual_seed(0)
    module = made(kind, sizes, **options)
    given_rows = {"lengths": torch.randint(shape[0] + 1, shape[1:])} if with_lengths else {}
    given_rows |= {"resets": torch.rand(shape) < 0.3} if with_resets else {}
    beside_the_loop(module, rows(*shape), state_of(module, shape[1]) if with_state else None, **given_rows)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_dropout_draws_the_masks_of_a_time_major_output(name, batch_first):
    module = made(name, num_layers=3, dropout=0.5, batch_first=batch_first)
    beside_the_loop(module, rows(T, B), state_of(module, B))
    module.eval()
    beside_the_loop(module, rows(T, B))


@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_packed_sequences_are_lengths(kind, with_state):
    module = made(kind, num_layers=2)
    hx, parameters = state_of(module, B) if with_state else None, list(module.parameters())

    def packed(x, *hx):
        y, state = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False), *hx)
        return pad_packed_sequence(y)[0], state

    x = rows(T, B)
    agree(outcome(packed, parameters, x, hx), outcome(Stepped(module), parameters, x, hx, lengths=LENGTHS))


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_one_sequence_without_a_batch(kind):
    module = made(kind, num_layers=2)
    x, hx = rows(T), state_of(module)
    y, state = module(x, hx)
    assert [s.shape for s in tensors(state)] == [s.shape for s in tensors(hx)] and y.shape == (T, sum(SIZES))
    beside = [s.unsqueeze(1) for s in tensors(hx)]
    batched = (tuple(beside[:2]), tuple(beside[2:])) if module.mode == "LSTM" else tuple(beside)
    want_y, want = module(x.unsqueeze(1), batched)
    agree([y, *tensors(state)], [want_y.squeeze(1), *(s.squeeze(1) for s in tensors(want))], 1e-13)


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_tokens_are_one_hot_rows(kind):
    module = made(kind, num_layers=2)
    tokens = torch.randint(I, (T, B))
    many = pack_padded_sequence(tokens, LENGTHS, enforce_sorted=False)
    for x, data in ((tokens, tokens), (tokens[:, 0], tokens[:, 0]), (many, many.data)):
        hot = nn.functional.one_hot(data, I).double()
        results = []
        for one in (x, many._replace(data=hot) if x is many else hot):
            y, state = module(one)
            outputs = [y.data if x is many else y, *tensors(state)]
            total = sum((k + 1) * out.square().sum() for k, out in enumerate(outputs))
            results.append([*outputs, *torch.autograd.grad(total, list(module.parameters()))])
        agree(*results)


def pair_and_one(kind, **options):
    """Layers of (5, 5) and of 5 drawn from one seed, and the second with its states in the form of the first's."""
    drawn = []
    for sizes in ((5, 5), 5):
        torch.manual_seed(0)
        drawn.append(made(kind, sizes, num_layers=2, **options))
    pair, one = drawn

    def of_one(x, hx):
        """Its own states are [L*2, B, H], the directions of a layer side by side."""
        stacked = [torch.stack(of, 1).flatten(0, 1) for of in (hx if one.mode == "LSTM" else (hx,))]
        y, state = one(x, tuple(stacked) if one.mode == "LSTM" else stacked[0])
        return y, [of.unflatten(0, (2, 2)).unbind(1) for of in (state if one.mode == "LSTM" else (state,))]

    return pair, one, of_one


@pytest.mark.parametrize("kind", KINDS, ids=names)
def test_equal_sizes_give_the_numbers_of_one_size(kind):
    pair, one, of_one = pair_and_one(kind, dropout=0.3)
    agree(list(pair.parameters()), list(one.parameters()), 0)
    x, hx = rows(T, B), state_of(pair, B)
    got, want = (outcome(run, list(m.parameters()), x, hx) for run, m in ((pair, pair), (of_one, one)))
    agree(got, want, 1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_without_a_gradient_and_after_parameters_were_replaced(name):
    module = made(name)
    x, hx = rows(T, B), state_of(module, B)
    for _ in range(2):  # from the second call on the weights that were checked are kept
        with torch.no_grad():
            agree(tensors(module(x, hx)), tensors(Stepped(module)(x, hx)), 1e-13)
            agree(tensors(module(x)), tensors(Stepped(module)(x)), 1e-13)
    doubled = {key: 2 * value for key, value in module.state_dict().items()}
    got = tensors(torch.func.functional_call(module, doubled, (x, hx)))
    module.weight_hh_l0_reverse = nn.Parameter(doubled["weight_hh_l0_reverse"])
    agree(tensors(module(x, hx)), tensors(Stepped(module)(x, hx)), 1e-13)
    module.load_state_dict(doubled)
    agree(tensors(module(x, hx)), got, 0)
    parametrize.register_parametrization(module, "weight_ih_l0_reverse", nn.Tanh())
    agree(tensors(module(x, hx)), tensors(Stepped(module)(x, hx)), 1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch(name):
    y, state = made(name, num_layers=2)(rows(T, 0))
    assert y.shape == (T, 0, 7) and {s.shape for s in tensors(state)} == {(2, 0, 5), (2, 0, 2)}


@pytest.mark.parametrize("schedule", ["auto", "concat", "hoisted"])
@pytest.mark.parametrize("backend", ["auto", "cpu", "torch", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_backends_and_schedules(name, backend, schedule):
    module = made(name, (9, 17), dtype=torch.float32, backend=backend, schedule=schedule)
    x = rows(T, B).float()
    if (backend == "torch" and (name != "LSTM" or schedule != "auto")) or (backend, schedule) == (
        "reference",
        "concat",
    ):
        with pytest.raises(fusedrnn.BackendError, match=f"backend '{backend}' cannot run"):
            module(x)
        return
    got = tensors(module(x))
    want = tensors(Stepped(module.double())(x.double()))
    agree([t.double() for t in got], want, 1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_casts_as_it_does_for_one_size(name):
    pair, _, of_one = pair_and_one(name, dtype=torch.float32)
    x = rows(T, B).float()
    hx = pair(x)[1]  # not all of it can be said in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        agree(tensors(pair(x, hx)), tensors(of_one(x, hx)), 0)


@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[2:], ids=names)
def test_first_and_second_derivatives(kind):
    module = made(kind, (2, 1))
    keys, parameters = zip(*module.named_parameters(), strict=True)
    x, hx = rows(3, 2), state_of(module, 2)
    states = tensors(hx)

    def run(x, *values):
        given = values[: len(states)]
        hx = (given[:2], given[2:]) if module.mode == "LSTM" else given
        replaced = dict(zip(keys, values[len(states) :], strict=True))
        return tuple(tensors(torch.func.functional_call(module, replaced, (x, hx))))

    values = [t.detach().clone().requires_grad_() for t in (x, *states, *parameters)]
    assert torch.autograd.gradcheck(run, values)
    assert torch.autograd.gradgradcheck(run, values)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_as_one_graph(name):
    module = made(name, num_layers=2, batch_first=True)
    torch._dynamo.reset()
    fast = torch.compile(module, fullgraph=True, backend="aot_eager")
    parameters = list(module.parameters())
    for steps in (4, 6, 7):  # from the second on with a symbolic number of steps
        x, hx = rows(2, steps), state_of(module, 2)
        for arguments in ((x,), (x, hx)):
            agree(outcome(fast, parameters, *arguments), outcome(module, parameters, *arguments), 1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_transforms_of_torch_func(name):
    module = made(name, num_layers=2)
    x, v, many = rows(T, B), rows(T, B), rows(3, T, B)

    def loss(run):
        return lambda x: sum((k + 1) * out.sin().sum() for k, out in enumerate(tensors(run(x))))

    ours, stepped = loss(module), loss(Stepped(module))
    exact = torch.func.grad(stepped)(x)
    agree([torch.func.grad(ours)(x)], [exact])
    agree([torch.func.jvp(ours, (x,), (v,))[1]], [(exact * v).sum()])
    agree([torch.func.vmap(ours)(many)], [torch.stack([stepped(one) for one in many])])
