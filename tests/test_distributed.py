"""Two CPU processes over gloo: DDP, FSDP2 and distributed checkpoints, each beside torch.nn in one process."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fusedrnn

WORLD, T, B = 2, 9, 6
SECONDS = 60  # about 4 are needed

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch was built without gloo"
)


class Model(nn.Module):
    """Layers of both kinds of state, whose first dimensions (28, 15) halve evenly and unevenly among two processes."""

    def __init__(self, library, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.lstm = library.LSTM(5, 7, num_layers=2, bidirectional=True, dtype=torch.float64)
        self.gru = library.GRU(14, 5, batch_first=True, dtype=torch.float64)
        self.head = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, B, 5] to [B, 3]; the last states take part, so that their gradients cross the layers' borders too."""
        y, (h_n, c_n) = self.lstm(x)
        y, last = self.gru(y.transpose(0, 1))
        return self.head(y.sum(1) + last[0]) + h_n.sum((0, 2))[:, None] * c_n.sum((0, 2))[:, None]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, 5, dtype=torch.float64, generator=random)
    return x, torch.randn(B, 3, dtype=torch.float64, generator=random)


def loss(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(x), target)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train_beside_torch(model: nn.Module, rank: int) -> nn.Module:
    """Three steps on this process's share of the batch, and on all of it in torch.nn; every gradient and weight equal.

    Three, because a weight that is remembered where it should be fetched again is right in the first.
    """
    theirs, (x, target) = Model(nn), batch()
    share = slice(rank * B // WORLD, (rank + 1) * B // WORLD)
    optimizers = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in (model, theirs)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(model, x[:, share], target[share]).backward()
        loss(theirs, x, target).backward()
        for ours, (name, parameter) in zip(model.parameters(), theirs.named_parameters(), strict=True):
            torch.testing.assert_close(
                whole(ours.grad), parameter.grad, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )
        for optimizer in optimizers:
            optimizer.step()
    for ours, parameter in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(whole(ours), parameter, rtol=1e-10, atol=1e-12)
    return theirs


def sharded(seed: int = 0) -> nn.Module:
    """FSDP2 around each layer and the rest; the model has run before, so what it kept of its weights is out of date."""
    model, mesh = Model(fusedrnn, seed), init_device_mesh("cpu", (WORLD,))
    model(batch()[0])
    for part in (model.lstm, model.gru, model):
        fully_shard(part, mesh=mesh)
    return model


def ddp(rank: int, folder: Path) -> None:
    model = Model(fusedrnn)
    model(batch()[0])
    train_beside_torch(DistributedDataParallel(model), rank)


def fsdp(rank: int, folder: Path) -> None:
    train_beside_torch(sharded(), rank)


def save_and_load(rank: int, folder: Path) -> None:
    saved, loaded, (x, _) = sharded(), sharded(seed=9), batch()
    theirs = train_beside_torch(saved, rank)
    checkpoint.save({"model": get_model_state_dict(saved)}, checkpoint_id=folder / "checkpoint")
    assert not torch.allclose(loaded(x), theirs(x))
    state = {"model": get_model_state_dict(loaded)}
    checkpoint.load(state, checkpoint_id=folder / "checkpoint")
    set_model_state_dict(loaded, state["model"])
    torch.testing.assert_close(loaded(x), theirs(x), rtol=1e-10, atol=1e-12)
    if rank == 0:
        torch.save(theirs.state_dict(), folder / "theirs.pt")


def member(rank: int, work, folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo looks the host's name up, which not every host knows
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=SECONDS / 2)
    )
    try:
        work(rank, folder)
    finally:
        distributed.destroy_process_group()
    # DTensor's caches hold the mesh and so gloo's threads, one of which may still be letting go of tensors. For that it
    # takes the GIL, and a thread that asks for it while Python is finalized aborts the process.
    os._exit(0)


def in_two_processes(work, folder: Path) -> None:
    """Runs work(rank, folder) in each; raises what one of them raised, and ends both when the time is over."""
    context = multiprocessing.spawn(member, (work, folder), nprocs=WORLD, join=False)
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            if time.monotonic() > end:
                pytest.fail(f"{work.__name__}: two processes have not finished within {SECONDS} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
                process.join()


def test_ddp_gradients_equal_those_of_torch_on_the_whole_batch(tmp_path):
    in_two_processes(ddp, tmp_path)


def test_fsdp2_gradients_equal_those_of_torch_on_the_whole_batch(tmp_path):
    in_two_processes(fsdp, tmp_path)


def test_a_sharded_checkpoint_loads_into_a_sharded_model_and_into_torchs(tmp_path):
    in_two_processes(save_and_load, tmp_path)
    model, expected = Model(nn, seed=5), torch.load(tmp_path / "theirs.pt")
    state = {"model": model.state_dict()}
    checkpoint.load(state, checkpoint_id=tmp_path / "checkpoint", no_dist=True)  # one process, no group
    for name, value in expected.items():
        torch.testing.assert_close(state["model"][name], value, rtol=1e-10, atol=1e-12)
