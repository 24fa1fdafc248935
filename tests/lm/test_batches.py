import itertools

import pytest
import torch

from fusedrnn.lm import Batches, CorpusError


def passes(batches, count):
    return [list(batches) for _ in range(count)]


@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_course_setting_gives_eight_batches_an_epoch(sampling):
    batches = Batches(torch.arange(10_000), 32, 35, sampling)
    assert len(batches) == 8
    offsets = set()
    for epoch in passes(batches, 50):
        assert len(epoch) == 8
        assert all(x.shape == y.shape == (35, 32) and x.dtype == torch.int64 for x, y in epoch)
        offsets.add(min(int(x.min()) for x, _ in epoch))
    assert len(offsets) > 10


@pytest.mark.parametrize("sampling", ["sequential", "random"])
@pytest.mark.parametrize(("tokens", "size", "steps"), [(35, 2, 5), (11, 2, 5), (11, 1, 1), (1000, 3, 7), (13, 2, 5)])
def test_targets_follow_and_no_token_is_read_twice(tokens, size, steps, sampling):
    batches = Batches(torch.arange(tokens), size, steps, sampling)
    for epoch in passes(batches, 20):
        assert len(epoch) == len(batches) >= 1
        assert all(torch.equal(y, x + 1) and x.is_contiguous() for x, y in epoch)
        assert all(torch.equal(x[1:], x[:-1] + 1) for x, _ in epoch)
        read = torch.cat([x.flatten() for x, _ in epoch])
        assert len(read.unique()) == len(read) == len(batches) * size * steps


def test_whole_text_is_read_where_it_fits_exactly():
    for sampling in ("sequential", "random"):
        (epoch,) = passes(Batches(torch.arange(11), 2, 5, sampling), 1)
        assert sorted(torch.cat([x.flatten() for x, _ in epoch]).tolist()) == list(range(10))


def test_sequential_batches_go_on_where_the_one_before_stopped():
    for epoch in passes(Batches(torch.arange(500), 4, 9, "sequential"), 5):
        for (_, y), (x, _) in itertools.pairwise(epoch):
            assert torch.equal(x[0], y[-1])


def test_random_batches_come_in_another_order_each_time():
    first, second = passes(Batches(torch.arange(2000), 4, 9, "random", torch.Generator().manual_seed(0)), 2)
    assert not torch.equal(first[0][0] % 9, second[0][0]) and not torch.equal(first[0][0], second[0][0])
    assert any((x[0].diff() != x[0].diff()[0]).any() for x, _ in first)


@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_seed_decides(sampling):
    epochs = [
        [x for x, _ in Batches(torch.arange(2000), 4, 9, sampling, torch.Generator().manual_seed(seed))]
        for seed in (1, 1, 2)
    ]
    assert all(map(torch.equal, epochs[0], epochs[1]))
    assert not all(map(torch.equal, epochs[0], epochs[2]))


@pytest.mark.parametrize("sampling", ["sequential", "random"])
def test_shorter_than_one_batch(sampling):
    with pytest.raises(CorpusError, match="has 10 tokens and one batch takes 11"):
        Batches(torch.arange(10), 2, 5, sampling)
