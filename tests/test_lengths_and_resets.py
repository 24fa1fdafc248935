"""Two arguments that torch.nn's layers lack: lengths of padded sequences in any order, and resets of the state."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedrnn

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
