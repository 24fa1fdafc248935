"""One to many: from a single character to a text, at several temperatures.

A GRU learns the characters of The Time Machine. It is given one letter and its own output from then on; each next
character is drawn from softmax(scores / temperature). At 0 that is the likeliest each time, and the text goes round in
circles; at 1 it is the model's own distribution; above, rare characters come more often than they should.

Prints a text for each temperature with two measures of it: the share of its words that the book has, and the share of
its runs of five characters that it has not had before itself. The first falls with the temperature, the second rises.
"""

import time

import torch
from command import run

from fusedrnn.lm import Choice, TrainConfig, Trainer, generate, load_corpus

TEMPERATURES = (0.0, 0.5, 1.0, 1.5)
LENGTH = 500


def known_words(text: str, book: set[str]) -> float:
    """The share of the words, without the last, which may be cut off."""
    words = text.split()[:-1]
    return sum(word in book for word in words) / max(1, len(words))


def new_runs(text: str, length: int = 5) -> float:
    runs = [text[k : k + length] for k in range(len(text) - length + 1)]
    return len(set(runs)) / len(runs)


def main(quick: bool = False) -> list[dict]:
    corpus = load_corpus("timemachine")
    sizes = {"hidden": 128, "epochs": 4} if quick else {"hidden": 512, "epochs": 15}
    config = TrainConfig(max_tokens=0, cell="gru", optimizer="adam", lr=0.005, schedule="cosine", steps=64, **sizes)
    trainer, start = Trainer(config, corpus), time.perf_counter()
    *_, last = trainer.run()
    print(f"perplexity {last.perplexity:.2f} after {last.epoch} epochs, {time.perf_counter() - start:.0f} s")
    book = set("".join(trainer.data.tokens).split())
    found = []
    for temperature in TEMPERATURES:
        generator = torch.Generator().manual_seed(0)
        choice = Choice(temperature=temperature)
        text = "t" + "".join(generate(trainer.model, trainer.data.vocab, "t", LENGTH, choice, generator))
        found.append({"temperature": temperature, "words": known_words(text, book), "new": new_runs(text)})
        print(f"\ntemperature {temperature}: {found[-1]['words']:.0%} of the words are the book's, "
              f"{found[-1]['new']:.0%} of the runs are new\n{text[:200]}")  # fmt: skip
    return found


if __name__ == "__main__":
    run(main)
