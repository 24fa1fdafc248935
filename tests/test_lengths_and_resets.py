"""Two arguments that torch.nn's layers lack: lengths of padded sequences in any order, and resets of the state."""

from itertools import pairwise

import pytest
import torch
from problems import NAMES, Sample, assert_equal, backward, cases, forward
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn
from fusedrnn import functional
from fusedrnn.call import Call, Weights
from fusedrnn.cells import CELLS, LEAN_CHUNK
from fusedrnn.dispatch import REGISTRY

LAYERS = ("RNN", "GRU", "LSTM")
T, B, I, H = 7, 5, 4, 3
LENGTHS = torch.tensor([3, 7, 1, 5, 7])


def pair(name: str, **options) -> tuple[nn.Module, nn.Module]:
    theirs = getattr(nn, name)(I, H, dtype=torch.float64, **options)
    return theirs, getattr(fusedrnn, name).from_torch(theirs)


def flat(state) -> list[torch.Tensor]:
    return [state] if isinstance(state, torch.Tensor) else list(state)


def gradients(outputs, x, module) -> list[torch.Tensor]:
    torch.manual_seed(1)
    cotangents = [torch.randn(out.shape, dtype=out.dtype) for out in outputs]
    return list(torch.autograd.grad(outputs, [x, *module.parameters()], cotangents))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["plain", "deep-both"])
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_equal_packing_and_padding_again(name, options, batch_first):
    theirs, ours = pair(name, batch_first=batch_first, **options)
    x = torch.randn((B, T, I) if batch_first else (T, B, I), dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=batch_first, enforce_sorted=False)
    packed_y, want_state = theirs(packed)
    want, _ = pad_packed_sequence(packed_y, batch_first=batch_first)
    got, state = ours(x, lengths=LENGTHS)
    wanted, found = [want, *flat(want_state)], [got, *flat(state)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for one, other in zip(gradients(found, x, ours), gradients(wanted, x, theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_where_padding_is_nan(name):
    _, ours = pair(name, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    padding = torch.arange(T)[:, None] >= LENGTHS

    def second(x):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(ours(x, lengths=LENGTHS)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, *ours.parameters()])

    for one, other in zip(second(x.masked_fill(padding[..., None], torch.nan)), second(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_reset_begins_a_new_sequence_from_zero(name, batch_first):
    """Sequence 1 is reset before steps 2 and 5: torch's layer over its three parts gives the same."""
    theirs, ours = pair(name, batch_first=batch_first)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, 1] = resets[5, 1] = True
    turned = (x.transpose(0, 1), resets.T) if batch_first else (x, resets)
    got, _ = ours(turned[0], resets=turned[1])
    got = got.transpose(0, 1) if batch_first else got
    parts = []
    for b in range(B):
        one = x[:, b : b + 1]
        pieces = one.split([2, 3, 2]) if b == 1 else [one]
        turned_pieces = [piece.transpose(0, 1) if batch_first else piece for piece in pieces]
        ys = [theirs(piece)[0] for piece in turned_pieces]
        parts.append(torch.cat([y.transpose(0, 1) if batch_first else y for y in ys]))
    want = torch.cat(parts, 1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for one, other in zip(gradients([got], x, ours), gradients([want], x, theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_resets_and_lengths_together_with_a_state():
    _, ours = pair("GRU")
    x, h0 = torch.randn(T, B, I, dtype=torch.float64), torch.randn(1, B, H, dtype=torch.float64)
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[0] = True
    y, h_n = ours(x, h0, lengths=LENGTHS, resets=resets)
    want, h_want = ours(x, lengths=LENGTHS)  # a reset before the first step forgets the state that was given
    torch.testing.assert_close(y, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(h_n, h_want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lengths": LENGTHS[:3]}, r"lengths: expected torch.int64 \[5\] on cpu, got torch.int64 \[3\]"),
        ({"lengths": LENGTHS.float()}, r"lengths: expected torch.int64 \[5\] on cpu, got torch.float32"),
        ({"lengths": LENGTHS + 1}, r"lengths: expected values in \[0, 7\], the steps, got 8"),
        ({"resets": torch.zeros(B, T, dtype=torch.bool)}, r"resets: expected torch.bool \[7, 5\] on cpu"),
    ],
    ids=["few", "float", "long", "turned"],
)
def test_what_does_not_fit_is_named(given, said):
    with pytest.raises(ValueError, match=said):
        fusedrnn.GRU(I, H)(torch.randn(T, B, I), **given)


def test_one_sequence_and_packed_ones_take_neither():
    layer = fusedrnn.GRU(I, H)
    packed = pack_padded_sequence(torch.randn(T, B, I), LENGTHS, enforce_sorted=False)
    for x in (torch.randn(T, I), torch.zeros(T, dtype=torch.int64), packed):
        with pytest.raises(ValueError, match="lengths, resets: expected a batch of padded sequences"):
            layer(x, lengths=LENGTHS)


def test_tokens_have_lengths_too():
    layer = fusedrnn.LSTM(I, H, dtype=torch.float64)
    tokens = torch.randint(I, (T, B))
    rows = nn.functional.one_hot(tokens, I).double()
    torch.testing.assert_close(layer(tokens, lengths=LENGTHS)[0], layer(rows, lengths=LENGTHS)[0], rtol=0, atol=1e-12)


def anew(form, x, state, starts, weights, **options):
    """One sequence, begun from a state of zeros at each of `starts`."""
    ys = [x.new_empty(0, 1, H)]
    for k, (begin, end) in enumerate(pairwise([0, *starts, len(x)])):
        if k > 0:
            state = tuple(torch.zeros_like(s) for s in state) if form is functional.lstm else torch.zeros_like(state)
        if begin < end:
            y, state = form(x[begin:end], state, [weights], **options)
            ys.append(y)
    return torch.cat(ys), state


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("form", [functional.rnn, functional.gru, functional.lstm])
def test_both_directions_equal_pieces_that_begin_from_zero(form, memory, backend):
    """Over more steps than a chunk of lean memory has; in reverse a reset cuts behind its step."""
    if missing := REGISTRY[backend].unavailable_reason():
        pytest.skip(missing)
    steps, lengths = LEAN_CHUNK + 8, torch.tensor([3, LEAN_CHUNK + 8, LEAN_CHUNK, 1, 20])
    torch.manual_seed(3)
    gates = {functional.rnn: 1, functional.gru: 3, functional.lstm: 4}[form]
    normal = lambda *shape: torch.randn(shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    sizes = (gates * H, I), (gates * H, H), (gates * H,), (gates * H,)
    weights = [Weights(*(normal(*size) for size in sizes)) for _ in range(2)]
    x, states = normal(steps, B, I), [normal(2, B, H) for _ in range(2 if form is functional.lstm else 1)]
    resets, options = torch.rand(steps, B) < 0.2, {"memory": memory, "backend": backend}
    leaves = [x, *states, *weights[0][:4], *weights[1][:4]]

    def as_given(several):
        return tuple(several) if form is functional.lstm else several[0]

    y, after = form(x, as_given(states), weights, bidirectional=True, lengths=lengths, resets=resets, **options)
    found = [y, *flat(after)]
    wanted = [torch.zeros_like(out) for out in found]
    for b, length in enumerate(lengths.tolist()):
        one = slice(b, b + 1)
        for d in range(2):
            row, own = x[:length, one], resets[:length, b]
            row, own = (row.flip(0), own.flip(0)) if d else (row, own)
            state = as_given([s[d : d + 1, one] for s in states])
            part, after = anew(form, row, state, own.nonzero().flatten().tolist(), weights[d], **options)
            wanted[0][:length, one, d * H : (d + 1) * H] = part.flip(0) if d else part
            for to, s in zip(wanted[1:], flat(after), strict=True):
                to[d, one] = s[0]
    cotangents = [torch.randn_like(out) for out in found]
    got, want = (torch.autograd.grad(outputs, leaves, cotangents) for outputs in (found, wanted))
    for one, other in zip([*found, *got], [*wanted, *want], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


# The raw ops.

PLAIN = [Sample(cell, T=9, B=5, I=4, H=19) for cell in CELLS]
PLAIN += [Sample(cell, T=LEAN_CHUNK + 8, B=3, I=4, H=19, save="lean") for cell in ("gru", "lstm")]
CASES = cases(("cpu", "reference"), torch.float64, PLAIN)


def results(call: Call, backend: str, cotangents) -> dict[str, torch.Tensor]:
    outputs = forward(call, backend)
    grads = backward(call, backend, cotangents, outputs)
    return dict(zip(NAMES, (*outputs[:3], *grads), strict=True))


def call_and_cotangents(sample: Sample) -> tuple[Call, tuple[torch.Tensor, ...]]:
    call = sample.call(torch.float64)
    return call, sample.cotangents(forward(call, "reference")[:3])


@pytest.mark.parametrize(("sample", "backend"), CASES)
def test_resets_that_are_never_true_change_no_bit(sample, backend):
    call, cotangents = call_and_cotangents(sample)
    never = torch.zeros(sample.T, sample.B, dtype=torch.bool)
    assert_equal(results(call._replace(resets=never), backend, cotangents), results(call, backend, cotangents))


@pytest.mark.parametrize(("sample", "backend"), CASES)
def test_resets_that_are_always_true_leave_single_steps(sample, backend):
    """One step of T*B rows, each from zero; the cotangents of the last states belong to the last step."""
    call, (dy, dh_n, dc_n) = call_and_cotangents(sample)
    T, B, H = sample.T, sample.B, sample.H
    always = torch.ones(T, B, dtype=torch.bool)
    got = results(call._replace(resets=always), backend, (dy, dh_n, dc_n))
    state = torch.zeros(1, T * B, H, dtype=torch.float64)
    c0 = None if call.c0 is None else state
    at_last = [g if g.ndim == 1 else torch.cat((g.new_zeros(1, (T - 1) * B, H), g), 1) for g in (dh_n, dc_n)]
    single = call._replace(x=call.x.reshape(1, T * B, -1), h0=state, c0=c0)
    want = results(single, backend, (dy.reshape(1, T * B, H), *at_last))
    for name in ("y", "dx"):
        want[name] = want[name].view(T, B, -1)
    for name in ("h_n", "c_n"):
        want[name] = want[name] if want[name].ndim == 1 else want[name][:, -B:]
    for name in ("dh0", "dc0"):
        want[name] = torch.zeros_like(got[name])
    assert not got["dw_hh"].any()
    assert_equal(got, want, 1e-12)


@pytest.mark.parametrize(("sample", "backend"), CASES)
def test_not_a_number_does_not_pass_a_reset(sample, backend):
    """Nor a step later on, through the gradient."""
    call, (dy, *others) = call_and_cotangents(sample)
    resets = torch.zeros(sample.T, sample.B, dtype=torch.bool)
    resets[0] = resets[4] = True
    nan = torch.full_like(call.h0, torch.nan)
    call = call._replace(resets=resets)
    want = results(call, backend, (dy, *others))
    spoilt = call._replace(h0=nan, c0=None if call.c0 is None else nan)
    assert_equal(results(spoilt, backend, (dy, *others)), want)
    after = dy.clone()
    after[4:] = torch.nan
    got = results(call, backend, (after, *others))
    assert got["dx"][4].isnan().all()
    assert torch.equal(got["dx"][:4], want["dx"][:4])


THREADED = [Sample(cell, T=20, B=66, I=12, H=64, resets=True, reverse=True) for cell in ("rnn_tanh", "gru", "lstm")]


@pytest.mark.parametrize(("sample", "backend"), cases(("cpu",), torch.float64, THREADED))
def test_bits_do_not_depend_on_the_threads(sample, backend):
    call, cotangents = call_and_cotangents(sample)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append(results(call, backend, cotangents))
    finally:
        torch.set_num_threads(threads)
    for name in ("y", "h_n", "c_n", "dh0", "dc0"):  # what the kernels write; sums over rows are torch's products
        assert all(torch.equal(one[name], found[0][name]) for one in found), name


@pytest.mark.parametrize(("sample", "backend"), cases(("cpu",), torch.float64, PLAIN))
def test_any_byte_but_zero_is_true(sample, backend):
    call, cotangents = call_and_cotangents(sample)
    raw = torch.tensor([0, 1, 2, 128, 255], dtype=torch.uint8)[torch.randint(5, (sample.T, sample.B))]
    got, want = (results(call._replace(resets=t), backend, cotangents) for t in (raw.view(torch.bool), raw != 0))
    assert_equal(got, want)
