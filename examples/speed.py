"""The same models on torch.nn and on fusedrnn, live: training steps and the writing of text.

A character model of 64 or 256 units with the same weights on both sides. First it is checked that both have the same
loss, and write the same text. Then their training steps (T=35, B=32, SGD, clipping) and the characters they write, one
at a time, are timed by turns on the machine this runs on. The table fills as they are measured; a ratio is the median
of those of neighbouring turns.
"""

import torch
from command import run
from rich.live import Live
from rich.table import Table

from fusedrnn.bench import pairs
from fusedrnn.lm import Corpus, TrainConfig, Trainer, generate, load_corpus

LIBRARIES = {"torch.nn": "torch", "fusedrnn": "fusedrnn"}


def trainers(corpus: Corpus, cell: str, hidden: int) -> dict[str, Trainer]:
    made = {}
    for name, library in LIBRARIES.items():
        config = TrainConfig(cell=cell, hidden=hidden, library=library, tokens="course", max_tokens=10_000)
        made[name] = Trainer(config, corpus)
    return made


def steps(trainer: Trainer):
    """One epoch of training steps."""
    batches = list(trainer.batches)
    return lambda: [trainer.train_step(x, y) for x, y in batches]


def writing(trainer: Trainer, length: int):
    return lambda: "".join(generate(trainer.model, trainer.data.vocab, "time", length))


def main(quick: bool = False) -> dict:
    corpus = load_corpus("pydoc")
    models = [(cell, hidden) for hidden in ((64,) if quick else (64, 256)) for cell in ("rnn", "gru", "lstm")]
    budget, length = (0.3, 20) if quick else (4.0, 200)
    table = Table(title=f"{torch.get_num_threads()} threads; torch {torch.__version__}")
    for head in ("model", "work", *LIBRARIES, "times as fast"):
        table.add_column(head, justify="left" if head in ("model", "work") else "right")
    found = {}
    with Live(table, vertical_overflow="visible"):
        for cell, hidden in models:
            sides = trainers(corpus, cell, hidden)
            works = {
                "a training step, ms": (
                    {name: steps(side) for name, side in sides.items()},
                    len(sides["fusedrnn"].batches),
                ),
                "a character, ms": ({name: writing(side, length) for name, side in sides.items()}, length),
            }
            losses = [float(torch.stack(run()).mean()) for run in works["a training step, ms"][0].values()]
            texts = [run() for run in works["a character, ms"][0].values()]
            assert abs(losses[0] - losses[1]) < 1e-4 and texts[0] == texts[1], (losses, texts)
            for work, (runs, count) in works.items():
                times = pairs.paired(runs, budget)
                ratio = pairs.ratios(times["torch.nn"], times["fusedrnn"])
                found[cell, hidden, work] = ratio.median
                told = [f"{1e3 * pairs.Spread.of(times[name]).median / count:.3g}" for name in LIBRARIES]
                spread = f"{ratio.median:.2f} ({ratio.p20:.2f} to {ratio.p80:.2f})"
                table.add_row(f"{cell} {hidden}", work, *told, spread)
    return found


if __name__ == "__main__":
    run(main)
