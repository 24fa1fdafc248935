"""Numbers below the smallest normal one: they cost no time, and the kernels leave the processor's mode as it was."""

import time

import pytest
import torch

import fusedrnn
from fusedrnn import _extension
from fusedrnn.backends.cpu import INSTRUCTION_SETS, instruction_sets

pytestmark = pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason())

T, B, SIZE = 24, 16, 96
DENORMAL = 1e-40


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def fastest(*works, rounds: int = 7) -> list[float]:
    """The least seconds of processor time of each, by turns: other processes may be running."""
    least = [torch.inf] * len(works)
    for _ in range(rounds):
        for k, work in enumerate(works):
            start = time.process_time()
            work()
            least[k] = min(least[k], time.process_time() - start)
    return least


def step(cell: str, x: torch.Tensor, state: torch.Tensor, dy: torch.Tensor | None):
    """A forward call, and with dy a backward too, ready to run."""
    layer = getattr(fusedrnn, cell)(SIZE, SIZE, bias=False, backend="cpu")
    states = (state, state) if cell == "LSTM" else state

    def run() -> None:
        with torch.set_grad_enabled(dy is not None):
            y, _ = layer(x, states)
        if dy is not None:
            torch.autograd.grad(y, list(layer.parameters()), dy)

    return run


@pytest.mark.skipif("not __import__('platform').machine() in ('x86_64', 'AMD64')", reason="flushed on x86 alone")
@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_they_take_no_longer(cell):
    """16 to 130 times as long where the processor computes with them."""
    x, state, dy = torch.randn(T, B, SIZE), torch.randn(1, B, SIZE), torch.randn(T, B, SIZE)
    forward, tiny = fastest(step(cell, x, state, None), step(cell, x * DENORMAL, state * DENORMAL, None))
    assert tiny < 3 * forward
    both, tiny_state, tiny_dy = fastest(
        step(cell, x, state, dy), step(cell, x, state * DENORMAL, dy), step(cell, x, state, dy * DENORMAL)
    )
    assert max(tiny_state, tiny_dy) < 3 * both


@pytest.mark.skipif("not __import__('platform').machine() in ('x86_64', 'AMD64')", reason="flushed on x86 alone")
@pytest.mark.parametrize("instruction_set", ["avx2", "avx512"])  # on an AMD the latter sums without GEMMs
def test_they_take_no_longer_where_sums_over_rows_are_wide(instruction_set):
    if instruction_set not in instruction_sets():
        pytest.skip(f"no {instruction_set} in this processor or this build")
    usual_set = torch.ops.fusedrnn_cpu.isa()
    size = 520  # gates * H * inputs beyond 2^18, for every cell
    layer = fusedrnn.RNN(size, size, bias=False, backend="cpu")
    x, dy = torch.randn(T, B, size), torch.randn(T, B, size)

    def work(scale):
        tiny_x, state = x * scale, torch.randn(1, B, size) * scale
        return lambda: torch.autograd.grad(layer(tiny_x, state)[0], layer.weight_ih_l0, dy)

    torch.ops.fusedrnn_cpu.set_isa(INSTRUCTION_SETS.index(instruction_set))
    try:
        usual, tiny = fastest(work(1.0), work(DENORMAL))
    finally:
        torch.ops.fusedrnn_cpu.set_isa(usual_set)
    assert tiny < 2 * usual


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_torch_computes_with_them_afterwards(cell):
    step(cell, torch.randn(T, B, SIZE), torch.zeros(1, B, SIZE), torch.randn(T, B, SIZE))()
    assert (torch.full((200_000,), DENORMAL) * 0.5).all()  # on every thread
    torch.set_flush_denormal(True)
    try:
        step(cell, torch.randn(T, B, SIZE), torch.zeros(1, B, SIZE), None)()
        assert not (torch.full((1,), DENORMAL) * 0.5).any()
    finally:
        torch.set_flush_denormal(False)
