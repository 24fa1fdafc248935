"""How training scales over processes: two of them measured on this machine, many modelled.

python -m benchmarks.scaling [--preset d2l-gru tinyshakespeare] [--steps 30]
python -m benchmarks.scaling --page writes benchmarks/SCALING.md

The measurement. One process on one thread takes steps of the recipe's batch; two such processes take steps of twice the
batch, each its half, and average their gradients by gloo. The second is of use as far as a step takes no longer.

The model is SCALING.md's.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from benchmarks.tables import markdown_heads, markdown_line
from fusedrnn.bench import pairs
from fusedrnn.info import with_between
from fusedrnn.lm.config import TrainConfig, presets, read_preset
from fusedrnn.lm.corpus import load_corpus
from fusedrnn.lm.files import write_atomically
from fusedrnn.lm.trainer import Trainer
from fusedrnn.lm.workers import Workers

PAGE = Path(__file__).with_name("SCALING.md")


@dataclass(frozen=True)
class Network:
    """Between neighbours: seconds before the first byte, and bytes a second."""

    name: str
    latency: float
    bandwidth: float


NETWORKS = (
    Network("1 Gbit/s Ethernet", 50e-6, 0.125e9),
    Network("10 Gbit/s Ethernet", 20e-6, 1.25e9),
    Network("100 Gbit/s InfiniBand", 3e-6, 12.5e9),
    Network("400 Gbit/s InfiniBand", 3e-6, 50e9),
)
PROCESSES = (2, 8, 64)


def seconds_of_averaging(parameters: int, processes: int, network: Network) -> float:
    """t(n) of SCALING.md."""
    share = 2 * (processes - 1) / processes
    return 2 * (processes - 1) * network.latency + share * 4 * parameters / network.bandwidth


def efficiency(compute: float, parameters: int, processes: int, network: Network) -> float:
    """Of each process, beside one alone."""
    return compute / (compute + seconds_of_averaging(parameters, processes, network))


def most_processes(compute: float, parameters: int, network: Network, least: float = 0.5) -> int:
    """The largest power of two of processes whose efficiency is at least that; 1 where two are less."""
    counts = itertools.takewhile(
        lambda n: efficiency(compute, parameters, n, network) >= least, (2**k for k in range(1, 31))
    )
    return max(counts, default=1)


@dataclass(frozen=True)
class Steps:
    """Of one of `processes`: the parameters, the median seconds of a step, and of averaging as many float32 alone."""

    processes: int
    parameters: int
    seconds: float
    averaging: float = 0.0


def measured(preset: str, steps: int, processes: int = 1) -> Steps:
    """On one thread a process."""
    context = torch.multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(processes) as pool:
        meeting = f"file://{folder}/meeting"
        ranks = [(preset, steps, Workers(rank, processes), meeting) for rank in range(processes)]
        return pool.starmap(_steps_of_one, ranks, chunksize=1)[0]


def _steps_of_one(preset: str, steps: int, workers: Workers, meeting: str) -> Steps:
    torch.set_num_threads(1)
    if workers.count > 1:
        distributed.init_process_group("gloo", init_method=meeting, rank=workers.rank, world_size=workers.count)
    options = read_preset(preset)
    corpus = load_corpus(options.pop("corpus"))
    config = TrainConfig(**options)
    trainer = Trainer(
        dataclasses.replace(config, batch_size=workers.count * config.batch_size), corpus, workers=workers
    )
    batches = itertools.cycle(list(itertools.islice(trainer.batches, 4)))
    parameters = sum(parameter.numel() for parameter in trainer.parameters)
    gradients = torch.zeros(parameters)
    step = _median(lambda: trainer.train_step(*next(batches)), steps)
    averaging = _median(lambda: workers.mean(gradients), steps)
    if workers.count > 1:
        distributed.destroy_process_group()
    return Steps(workers.count, parameters, step, averaging)


def _median(run: Callable[[], object], times: int) -> float:
    """Seconds of a call, after three."""
    return statistics.median([pairs.seconds(run) for _ in range(times + 3)][3:])


def section(preset: str, alone: Steps, together: Steps) -> list[str]:
    """Markdown: what was measured, then the model's efficiency of each of so many processes."""
    P, compute = alone.parameters, alone.seconds
    lines = [
        f"## `{preset}`",
        "",
        f"{P:,} parameters, {4 * P / 1e6:.2f} MB of gradients. Measured: {1e3 * compute:.1f} ms a step alone; "
        f"{1e3 * together.seconds:.1f} ms of {together.processes} processes side by side, each of "
        f"{compute / together.seconds:.0%} use; averaging that many numbers alone {1e3 * together.averaging:.1f} ms.",
        "",
        "The model, not measured: the use of each of so many processes, and how many are of half their use or more.",
        "",
        *markdown_heads(["network", *(f"{n} processes" for n in PROCESSES), "half at"]),
    ]
    for network in NETWORKS:
        shares = [f"{efficiency(compute, P, n, network):.0%}" for n in PROCESSES]
        lines.append(markdown_line([network.name, *shares, f"{most_processes(compute, P, network):,}"]))
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["d2l-gru", "tinyshakespeare"], choices=list(presets()))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name} in place of printing")
    given = parser.parse_args()
    lines = []
    for preset in given.preset:
        lines += section(preset, *(measured(preset, given.steps, processes) for processes in (1, 2)))
    text = "\n".join(lines)
    if given.page:
        write_atomically(PAGE, with_between(PAGE.read_text(), "measured", text).encode())
    else:
        print(text)


if __name__ == "__main__":
    main()
