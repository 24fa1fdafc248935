"""Train the recipes whose perplexity is published, on both libraries and from several seeds, and compare.

python -m benchmarks.targets [--library fusedrnn torch] [--preset d2l-gru ...] [--seed 0 1 2 3 4] [--epochs N]
python -m benchmarks.targets --readme

Keeps the rows in benchmarks/results/targets.json; one of the same recipe, library, epochs, seed and machine is
replaced.
--readme trains nothing and writes the table of README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from benchmarks.record import RESULTS, describe_machine
from fusedrnn.info import with_between
from fusedrnn.lm.config import LIBRARIES, TrainConfig, read_preset
from fusedrnn.lm.corpus import load_corpus
from fusedrnn.lm.files import write_atomically
from fusedrnn.lm.sampling import PROMPT, continuation
from fusedrnn.lm.text import TOKENIZERS
from fusedrnn.lm.trainer import Trainer

FILE = RESULTS / "targets.json"
README = Path(__file__).parent.parent / "README.md"

# recipe: (perplexity published, perplexity to reach); the median of the seeds counts
TARGETS = {
    "d2l-rnn-512": ("1.0", 1.10),
    "d2l-rnn": ("1.3", 1.35),
    "d2l-gru-normal": ("1.1", 1.15),
    "d2l-gru": ("1.0", 1.10),
    "d2l-lstm-normal": ("1.1 to 1.3", 1.35),
    "d2l-lstm": ("1.0", 1.15),
    "d2l-deep-lstm": ("1.0", 1.05),
}
IDENTITY = ("preset", "library", "epochs", "seed", "machine")


def reach(preset: str, library: str, seed: int, epochs: int | None) -> dict:
    options = read_preset(preset) | {"library": library, "seed": seed} | ({"epochs": epochs} if epochs else {})
    corpus = load_corpus(options.pop("corpus"))
    trainer = Trainer(TrainConfig(**options), corpus)
    *_, last = trainer.run()
    tokenizer = TOKENIZERS[trainer.config.tokens]
    text = continuation(trainer.model, trainer.data.vocab, PROMPT, 50, tokenizer)
    return {
        "preset": preset,
        "library": library,
        "epochs": last.epoch,
        "seed": seed,
        "perplexity": round(last.perplexity, 4),
        "seconds": round(last.seconds, 1),
        "continuation": text,
        "in_corpus": text in "".join(tokenizer.spell(trainer.data.tokens)),
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
    }


def table(rows: list[dict]) -> list[str]:
    """A markdown table of all recipes: medians over the seeds, and what each library needed."""
    lines = [
        "| recipe | published | to reach | `fusedrnn` | `torch.nn` | seeds | seconds | `torch.nn` |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for preset, (published, target) in TARGETS.items():
        cells, seconds, seeds = [], [], []
        for library in LIBRARIES:
            of = [row for row in rows if (row["preset"], row["library"]) == (preset, library)]
            of = [row for row in of if row["epochs"] == max(other["epochs"] for other in of)]
            values = [row["perplexity"] for row in of]
            cells.append(_spread(values, target) if values else "")
            seconds.append(f"{statistics.median(row['seconds'] for row in of):.0f}" if of else "")
            seeds.append(str(len(of)))
        told = seeds[0] if seeds[0] == seeds[1] else " and ".join(seeds)
        lines.append(f"| `{preset}` | {published} | {target:.2f} | {' | '.join([*cells, told, *seconds])} |")
    return lines


def _spread(values: list[float], target: float) -> str:
    median = statistics.median(values)
    missed = "" if median <= target else " **missed**"
    return f"{median:.3f}{missed}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--preset", nargs="+", default=list(TARGETS), choices=list(TARGETS), metavar="NAME")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--readme", action="store_true", help="train nothing, write the table of README.md")
    given = parser.parse_args()
    if given.readme:
        lines = table(json.loads(FILE.read_text()))
        write_atomically(README, with_between(README.read_text(), "targets", "\n".join(lines)).encode())
        return
    for seed in given.seed:
        for preset in given.preset:
            for library in given.library:
                row = reach(preset, library, seed, given.epochs)
                rows = json.loads(FILE.read_text()) if FILE.exists() else []
                rows = [old for old in rows if any(old.get(name) != row[name] for name in IDENTITY)]
                write_atomically(FILE, json.dumps([*rows, row], indent=1).encode() + b"\n")
                told = f"{preset}, {library}, seed {seed}: perplexity {row['perplexity']}, {row['seconds']} s"
                print(f"{told}: {row['continuation']}{' (in the corpus)' if row['in_corpus'] else ''}", flush=True)


if __name__ == "__main__":
    main()
