"""On how many threads the kernels run: as many as torch.set_num_threads says at the call, wherever the call is made."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fusedrnn
from fusedrnn import _extension

TASKS = Path("/proc/self/task")

pytestmark = [
    pytest.mark.skipif(not _extension.is_loaded(), reason=_extension.reason()),
    pytest.mark.skipif(not TASKS.is_dir(), reason="counts the threads in /proc"),
    # Python 3.12 and later warn of every fork beside threads.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def infer() -> None:
    """Work for four threads, in the kernels alone."""
    with torch.no_grad():
        fusedrnn.GRU(64, 96, backend="cpu")(torch.randn(16, 8, 64))


def train() -> None:
    """The same and a backward, in torch's products too; then a row that all threads share."""
    for B, H in ((8, 96), (1, 256)):
        fusedrnn.GRU(64, H, backend="cpu")(torch.randn(16, B, 64))[0].sum().backward()


def nanoseconds() -> dict[str, int]:
    """How long each thread of this process has run."""
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in TASKS.iterdir()}


def helpers(work: Callable[[], object]) -> int:
    """How many threads besides the caller run while it works, each of three times: others come and go."""
    always: set[str] = set()
    for turn in range(3):
        time.sleep(0.05)  # what ran before has gone to sleep
        before = nanoseconds()
        work()
        time.sleep(0.05)  # only a thread that has stopped is accounted for
        ran = {task for task, spent in nanoseconds().items() if spent > before.get(task, 0)}
        always = ran & always if turn else ran
    return len(always - {str(threading.get_native_id())})


def test_as_many_as_torch_is_told_at_the_call():
    for count in (1, 3, 2, 4, 1, 3):
        torch.set_num_threads(count)
        assert helpers(infer) == count - 1
        assert helpers(train) == count - 1


def test_a_thread_of_python_uses_as_many_as_torch_says_there():
    found = []

    def call(count: int | None) -> None:
        if count:
            torch.set_num_threads(count)
        found.append((helpers(infer) + 1, torch.get_num_threads()))

    for count in (None, 1, 3, 2, None):
        caller = threading.Thread(target=call, args=(count,))
        caller.start()
        caller.join(timeout=60)
    assert len(found) == 5
    assert all(used == told for used, told in found), found
    assert [told for _, told in found[1:4]] == [1, 3, 2]


class Workers(Dataset):
    """The number of threads that a worker uses."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return 1 + helpers(train)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_dataloaders_worker_uses_one(how):
    torch.set_num_threads(3)
    train()
    loader = DataLoader(Workers(), batch_size=None, num_workers=1, multiprocessing_context=how, timeout=60)
    assert list(loader) == [1, 1]


LAUNCHED = """
import os, torch, fusedrnn
layer, x = fusedrnn.LSTM(64, 128), torch.randn(16, 8, 64)
before = len(os.listdir("/proc/self/task"))
layer(x)[0].sum().backward()
print(torch.get_num_threads(), len(os.listdir("/proc/self/task")) - before)
"""


def test_a_process_of_torchrun_starts_no_thread():
    """torchrun sets OMP_NUM_THREADS=1."""
    command, environment = [sys.executable, "-c", LAUNCHED], os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    assert run.stdout.split() == ["1", "0"]


def in_a_forked_child(work) -> bytes:
    """What `work` returns there, within half a minute."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        with os.fdopen(sending, "wb") as pipe:
            pipe.write(work())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        got = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return got


@pytest.mark.parametrize("threads_there", [1, 3])
@pytest.mark.parametrize("size", [32, 520], ids=["own sums", "GEMMs"])
def test_a_forked_child_ends(size, threads_there):
    """OpenMP waits in the child for the threads of its parent, which were not forked: so torch.nn hangs there."""
    layer, x = fusedrnn.RNN(size, size), torch.randn(20, 8, size)
    rounding = 20 * 8 * 2**-24  # of sums over so many rows, in another order where the parent's are GEMMs
    parameters = list(layer.parameters())
    torch.set_num_threads(3)
    y = layer(x)[0]
    expected = [y, *torch.autograd.grad(y, parameters, torch.ones_like(y))]
    dy = torch.ones_like(y)

    def work() -> bytes:
        torch.set_num_threads(threads_there)
        y = layer(x)[0]
        results = [y, *torch.autograd.grad(y, parameters, dy)]
        return pickle.dumps([t.detach().numpy() for t in results])

    there = pickle.loads(in_a_forked_child(work))
    for got, result in zip(there, expected, strict=True):
        assert (torch.from_numpy(got) - result).norm() <= rounding * result.norm()


def test_forking_leaves_the_parent_its_threads():
    torch.set_num_threads(3)
    train()
    assert in_a_forked_child(lambda: b"there") == b"there"
    assert helpers(train) == 2
