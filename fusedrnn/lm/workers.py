"""Several processes that train one model, as torchrun starts them: each has its own part of the streams, and the
gradients are averaged.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from fusedrnn.lm.errors import ConfigError

PATIENCE = timedelta(minutes=10)  # how long one waits for the others


@dataclass(frozen=True)
class Workers:
    """This process, number `rank` of `count`. One that is alone has nobody to ask, and nothing here costs it time."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes files and lines."""
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Over all processes, each of which has to ask."""
        if self.count == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.count

    def largest(self, number: int, device: torch.device) -> int:
        """Of all processes, each of which has to ask."""
        if self.count == 1:
            return number
        numbers = torch.tensor(number, device=device)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return int(numbers)

    def gather(self, tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Of all processes, by their number, for the one that leads; an empty list for the others."""
        if self.count == 1:
            return [tensors]
        gathered: list[Any] | None = [None] * self.count if self.leads else None
        distributed.gather_object(tensors, gathered)
        return gathered or []


ALONE = Workers()


@contextlib.contextmanager
def started(device: str) -> Iterator[tuple[Workers, torch.device]]:
    """The workers that torchrun started, this process among them, or this process alone; and the device it is to use:
    of GPUs one each. They speak gloo on CPUs, nccl on GPUs.

    Raises ConfigError for more of them than there are GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE, torch.device(device)
        return
    local, count = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"there are {torch.cuda.device_count()} GPUs here, and more processes: one takes one")
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield Workers(int(os.environ["RANK"]), count), torch.device(device)
    finally:
        distributed.destroy_process_group()
