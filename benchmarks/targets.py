"""Train the recipes that come along, on both libraries and from several seeds, and compare.

python -m benchmarks.targets [--library fusedrnn torch] [--preset d2l-gru ...] [--seed 0 1 2 3 4] [--epochs N]
python -m benchmarks.targets --run runs/tinyshakespeare ...
python -m benchmarks.targets --readme

Keeps the rows in benchmarks/results/targets.json; one of the same recipe, library, epochs, seed and machine is
replaced.
--run trains nothing and takes the row from folders of runs of a recipe that have ended, on this machine.
--readme trains nothing and writes the tables of README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, describe_machine
from benchmarks.tables import markdown_heads, markdown_line
from fusedrnn.info import with_between
from fusedrnn.lm.config import LIBRARIES, TrainConfig, presets, read_preset
from fusedrnn.lm.corpus import Corpus, load_corpus
from fusedrnn.lm.dataset import Dataset, complete
from fusedrnn.lm.files import write_atomically
from fusedrnn.lm.model import LanguageModel
from fusedrnn.lm.run_folder import load_run, read_config, read_corpus, results_of
from fusedrnn.lm.sampling import PROMPT, continuation
from fusedrnn.lm.text import TOKENIZERS
from fusedrnn.lm.trainer import Trainer

FILE = RESULTS / "targets.json"
README = Path(__file__).parent.parent / "README.md"

# recipe: (perplexity published, perplexity to reach); the median of the seeds counts
PUBLISHED = {
    "d2l-rnn-512": ("1.0", 1.10),
    "d2l-rnn": ("1.3", 1.35),
    "d2l-gru-normal": ("1.1", 1.15),
    "d2l-gru": ("1.0", 1.10),
    "d2l-lstm-normal": ("1.1 to 1.3", 1.35),
    "d2l-lstm": ("1.0", 1.15),
    "d2l-deep-lstm": ("1.0", 1.05),
}
RECITER = "d2l-deep-lstm"  # knows the text by heart
# recipe of our own: nats a character of the validation to reach
OWN = {"timemachine": None, "tinyshakespeare": 1.55}
IDENTITY = ("preset", "library", "epochs", "seed", "machine")
NO_PART_OF_A_RECIPE = ("seed", "library", "epochs", "compile", "graph", "save_every", "backend")


def reach(preset: str, library: str, seed: int, epochs: int | None) -> dict:
    """The row of a new training."""
    options = read_preset(preset) | {"library": library, "seed": seed} | ({"epochs": epochs} if epochs else {})
    corpus = load_corpus(options.pop("corpus"))
    trainer = Trainer(TrainConfig(**options), corpus)
    for _ in trainer.run():
        pass
    return row(preset, trainer.config, results_of(trainer), trainer.best_model(), trainer.data, torch.get_num_threads())


def of_run(folder: Path) -> dict:
    """The row of a run that has ended."""
    content, run = read_config(folder), load_run(folder)
    corpus = read_corpus(folder, content)
    [preset] = [name for name in presets() if _recipe(name, corpus) == _without(content.train)] or [""]
    if not preset:
        raise SystemExit(f"{folder}: its options are those of no recipe that comes along")
    results = json.loads((folder / "results.json").read_text())
    return row(preset, content.train, results, run.model, Dataset.of(content.train, corpus), content.threads)


def _recipe(preset: str, corpus: Corpus) -> dict[str, Any] | None:
    options = read_preset(preset)
    if options.pop("corpus") != corpus.name:
        return None
    return _without(complete(TrainConfig(**options), corpus))


def _without(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in NO_PART_OF_A_RECIPE}


def row(
    preset: str, config: TrainConfig, results: dict[str, Any], model: LanguageModel, data: Dataset, threads: int
) -> dict:
    """What is kept of a training; validation and test are nats a token, where there are such parts."""
    tokenizer = TOKENIZERS[config.tokens]
    text = continuation(model, data.vocab, PROMPT, 50, tokenizer)
    return {
        "preset": preset,
        "library": config.library,
        "epochs": results["epochs"],
        "seed": config.seed,
        "perplexity": round(results["train"]["perplexity"], 4),
        **{part: round(results[part]["loss"], 4) for part in ("validation", "test") if part in results},
        "seconds": round(results["seconds"], 1),
        "continuation": text,
        "in_corpus": text in "".join(tokenizer.spell(data.tokens)),
        "threads": threads,
        "machine": describe_machine(),
    }


def tables(rows: list[dict]) -> list[str]:
    """Markdown: the recipes with a published perplexity, then our own; medians over the seeds, and what each library
    needed on the most threads that were measured.
    """
    ends = ["`fusedrnn`", "`torch.nn`", "seeds", "threads", "seconds", "`torch.nn`"]
    lines = markdown_heads(["recipe", "published", "to reach", *ends])
    for preset, (published, target) in PUBLISHED.items():
        lines.append(
            markdown_line([f"`{preset}`", published, f"{target:.2f}", *_measured(rows, preset, "perplexity", target)])
        )
    reached = [row for row in rows if row["preset"] == RECITER and row["perplexity"] <= PUBLISHED[RECITER][1]]
    recited = sum(row["in_corpus"] for row in reached)
    by_heart = f"{recited} go on from `{PROMPT}` with a passage of the text"
    lines += ["", f"Of {len(reached)} runs of `{RECITER}` that reach it, {by_heart}."]
    lines += ["", *markdown_heads(["recipe", "part", "to reach", *ends])]
    for preset, goal in OWN.items():
        for part in ("validation", "test"):
            if any(part in row for row in rows if row["preset"] == preset):
                target = goal if part == "validation" else None
                told = f"{target:.2f}" if target else ""
                lines.append(markdown_line([f"`{preset}`", part, told, *_measured(rows, preset, part, target)]))
    return lines


def _measured(rows: list[dict], preset: str, what: str, target: float | None) -> list[str]:
    """Both libraries' perplexity or nats, the seeds of them, the threads and seconds of a run."""
    rows = [row for row in rows if row["preset"] == preset]
    threads = max((row["threads"] for row in rows), default=0)
    cells, seconds, seeds = [], [], []
    for library in LIBRARIES:
        of = [row for row in rows if row["library"] == library]
        of = [row for row in of if row["epochs"] == max(other["epochs"] for other in of)]
        timed = [row["seconds"] for row in of if row["threads"] == threads]
        cells.append(_spread([row[what] for row in of], target) if of else "")
        seconds.append(f"{statistics.median(timed):.0f}" if timed else "")
        seeds.append(str(len(of)))
    return [*cells, seeds[0] if seeds[0] == seeds[1] else " and ".join(seeds), str(threads or ""), *seconds]


def _spread(values: list[float], target: float | None) -> str:
    median = statistics.median(values)
    missed = " **missed**" if target is not None and median > target else ""
    return f"{median:.3f}{missed}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--preset", nargs="+", default=list(PUBLISHED), choices=[*PUBLISHED, *OWN], metavar="NAME")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--run", nargs="+", type=Path, metavar="DIR", help="train nothing, take runs that have ended")
    parser.add_argument("--readme", action="store_true", help="train nothing, write the tables of README.md")
    given = parser.parse_args()
    if given.readme:
        lines = tables(json.loads(FILE.read_text()))
        write_atomically(README, with_between(README.read_text(), "targets", "\n".join(lines)).encode())
        return
    for folder in given.run or ():
        keep(of_run(folder))
    for seed in () if given.run else given.seed:
        for preset in given.preset:
            for library in given.library:
                keep(reach(preset, library, seed, given.epochs))


def keep(row: dict) -> None:
    rows = json.loads(FILE.read_text()) if FILE.exists() else []
    rows = [old for old in rows if any(old.get(name) != row[name] for name in IDENTITY)]
    write_atomically(FILE, json.dumps([*rows, row], indent=1).encode() + b"\n")
    parts = "".join(f", {part} {row[part]} nats" for part in ("validation", "test") if part in row)
    told = f"{row['preset']}, {row['library']}, seed {row['seed']}: perplexity {row['perplexity']}{parts}"
    known = " (in the corpus)" if row["in_corpus"] else ""
    print(f"{told}, {row['seconds']} s: {row['continuation']}{known}", flush=True)


if __name__ == "__main__":
    main()
