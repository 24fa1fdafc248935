"""Train the models of the published table on The Time Machine and compare their perplexities with the targets.

python -m benchmarks.targets [--library fusedrnn|torch] [--epochs 500] [--seed 0]

Keeps the rows in benchmarks/results/targets.json; one of the same model, library, epochs and seed is replaced.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.record import RESULTS, describe_machine
from fusedrnn.lm.corpus import load_corpus
from fusedrnn.lm.files import write_atomically
from fusedrnn.lm.sampling import continuation
from fusedrnn.lm.trainer import TrainConfig, Trainer

FILE = RESULTS / "targets.json"

# (cell, init, perplexity to reach): one layer of 256, batches of 32 x 35, SGD lr 1, clip 1, sequential, 500 epochs.
TARGETS = [
    ("rnn", "torch", 1.35),
    ("gru", "torch", 1.10),
    ("gru", "normal", 1.15),
    ("lstm", "torch", 1.15),
    ("lstm", "normal", 1.35),
]
IDENTITY = ("cell", "init", "library", "epochs", "seed")


def reach(cell: str, init: str, target: float, library: str, epochs: int, seed: int) -> dict:
    config = TrainConfig(cell=cell, init=init, library=library, epochs=epochs, seed=seed)
    trainer = Trainer(config, load_corpus("timemachine"))
    *_, last = trainer.run()
    return {
        "cell": cell,
        "hidden": config.hidden,
        "init": init,
        "library": library,
        "epochs": epochs,
        "seed": seed,
        "perplexity": round(last.perplexity, 4),
        "target": target,
        "reached": last.perplexity <= target,
        "seconds": round(last.seconds, 1),
        "continuation": continuation(trainer.model, trainer.vocab, "time traveller", 50),
        "machine": describe_machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", default="fusedrnn", choices=("fusedrnn", "torch"))
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for cell, init, target in TARGETS:
        row = reach(cell, init, target, given.library, given.epochs, given.seed)
        rows = json.loads(FILE.read_text()) if FILE.exists() else []
        rows = [old for old in rows if any(old[name] != row[name] for name in IDENTITY)]
        write_atomically(FILE, json.dumps([*rows, row], indent=1).encode() + b"\n")
        verdict = "reached" if row["reached"] else "MISSED"
        print(
            f"{cell} {init}: perplexity {row['perplexity']}, target {target}: {verdict}, {row['seconds']} s", flush=True
        )
        print(f"  {row['continuation']}", flush=True)


if __name__ == "__main__":
    main()
