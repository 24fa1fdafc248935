"""How training scales over processes: measured on this machine for two, modelled beyond it.

python -m benchmarks.scaling [--preset d2l-gru tinyshakespeare] [--steps 30]

The model. A step computes for c seconds and then averages the gradients of P float32 parameters among n processes in a
ring, which takes

    t(n) = 2 (n - 1) a + 2 (n - 1) / n * 4 P / b

seconds at a latency of a seconds and b bytes a second between neighbours (Patarasuk and Yuan, 2009,
doi:10.1016/j.jpdc.2008.09.002). Each process keeps its batch, so that n of them read n times as many tokens a step, and
each is of c / (c + t(n)) times the use it is alone (weak scaling). Nothing is taken to overlap: the gradient of a
recurrent layer's weights is there when its whole loop is done.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass

import torch

from fusedrnn.lm.config import TrainConfig, presets, read_preset
from fusedrnn.lm.corpus import load_corpus
from fusedrnn.lm.trainer import Trainer


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
    """t(n), see the module's docstring."""
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


def measured(preset: str, steps: int) -> tuple[int, float]:
    """Parameters, and the median seconds of a training step in this process."""
    options = read_preset(preset)
    corpus = load_corpus(options.pop("corpus"))
    trainer = Trainer(TrainConfig(**options), corpus)
    batches, seconds = itertools.cycle(itertools.islice(trainer.batches, 4)), []
    for _ in range(steps + 3):
        start = time.perf_counter()
        trainer.train_step(*next(batches))
        seconds.append(time.perf_counter() - start)
    return sum(parameter.numel() for parameter in trainer.parameters), statistics.median(seconds[3:])


def table(preset: str, parameters: int, compute: float) -> list[str]:
    """Markdown: the efficiency of each of so many processes, and how many keep half of it."""
    counts = " | ".join(f"{n} processes" for n in PROCESSES)
    lines = [
        f"`{preset}`: {parameters:,} parameters, {4 * parameters / 1e6:.2f} MB of gradients, "
        f"{1000 * compute:.1f} ms a step on {torch.get_num_threads()} threads of this machine.",
        "",
        f"| network | {counts} | half of it at |",
        "| --- |" + " --- |" * (len(PROCESSES) + 1),
    ]
    for network in NETWORKS:
        shares = " | ".join(f"{efficiency(compute, parameters, n, network):.0%}" for n in PROCESSES)
        lines.append(f"| {network.name} | {shares} | {most_processes(compute, parameters, network):,} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["d2l-gru", "tinyshakespeare"], choices=list(presets()))
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    for preset in given.preset:
        print("\n".join(table(preset, *measured(preset, given.steps))), flush=True)


if __name__ == "__main__":
    main()
