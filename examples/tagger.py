"""Many to many, in step: capital letters and punctuation marks put back into a text that has lost them.

The Time Machine is stripped to lower-case letters, apostrophes and single spaces. Every character has a tag: a letter
may have been a capital, a space may have had a mark before it. A network of two levels reads the characters and gives
a tag to each in the same step. Reading both ways it sees the word that follows a space, and whether a sentence begins
there; reading forward alone it has to guess.

The last tenth of the book is held out. Prints for each tag how many there are in it and the F1 score of both networks
(the harmonic mean of precision and recall, from scikit-learn), and some restored lines.
"""

import re
import time
from dataclasses import dataclass

import torch
from command import run
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F

import fusedrnn
from fusedrnn.lm import load_corpus

LETTERS = " abcdefghijklmnopqrstuvwxyz'"
MARKS = ",.;:?!"
TAGS = ["as it is", "capital", *MARKS]
STREAMS, STEPS = 32, 50


@dataclass(frozen=True)
class Tagged:
    """Characters and their tags, int64 [N]."""

    characters: torch.Tensor
    tags: torch.Tensor

    def streams(self) -> "Tagged":
        """[T, B]: the text side by side."""
        length = len(self.tags) // STREAMS
        return Tagged(*(row[: STREAMS * length].view(STREAMS, length).T for row in (self.characters, self.tags)))


def strip(text: str) -> Tagged:
    """Of marks that stand together the first counts."""
    text = re.sub(rf"[^A-Za-z'{MARKS}]+", " ", text)
    characters, tags = [], []
    for letter, marks in re.findall(rf"([A-Za-z' ])([{MARKS}]*)", re.sub(r" +([,.;:?!])", r"\1", text)):
        characters.append(LETTERS.index(letter.lower()))
        tags.append(TAGS.index("capital") if letter.isupper() else 0)
        if marks:
            characters.append(0)
            tags.append(TAGS.index(marks[0]))
    twice = [k for k in range(1, len(characters)) if characters[k] == characters[k - 1] == 0 and not tags[k]]
    keep = sorted(set(range(len(characters))) - set(twice))
    return Tagged(torch.tensor(characters)[keep], torch.tensor(tags)[keep])


def spell(tagged: Tagged) -> str:
    pieces = []
    for number, tag in zip(tagged.characters.tolist(), tagged.tags.tolist(), strict=True):
        letter = LETTERS[number]
        pieces.append(letter.upper() if tag == 1 else TAGS[tag] * (tag > 1 and not number) + letter)
    return "".join(pieces)


class Tagger(nn.Module):
    def __init__(self, hidden: int, bidirectional: bool):
        super().__init__()
        self.rnn = fusedrnn.GRU(len(LETTERS), hidden, 2, bidirectional=bidirectional, dropout=0.3)
        self.head = nn.Linear((2 if bidirectional else 1) * hidden, len(TAGS))

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """characters [T, B]; returns scores [T, B, tags]."""
        return self.head(self.rnn(characters)[0])


def train(model: nn.Module, learnt: Tagged, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    streams = learnt.streams()
    for _ in range(epochs):
        model.train()
        offset = int(torch.randint(STEPS, ()))
        for x, y in zip(*(row[offset:].split(STEPS) for row in (streams.characters, streams.tags)), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


@torch.no_grad()
def tag(model: nn.Module, tagged: Tagged) -> Tagged:
    """The same characters, with the tags the model gives them."""
    model.eval()
    return Tagged(tagged.characters, model(tagged.characters.unsqueeze(1)).squeeze(1).argmax(1))


def main(quick: bool = False) -> dict[str, dict[str, float]]:
    tagged = strip(load_corpus("timemachine").text)
    cut = len(tagged.tags) * 9 // 10
    learnt, held_out = (Tagged(*(row[part] for row in (tagged.characters, tagged.tags)))
                        for part in (slice(0, cut), slice(cut, None)))  # fmt: skip
    found = {}
    for name, bidirectional in (("forward", False), ("both ways", True)):
        torch.manual_seed(0)
        model, start = Tagger(48 if quick else 256, bidirectional), time.perf_counter()
        train(model, learnt, 3 if quick else 20)
        guessed = tag(model, held_out)
        scores = f1_score(held_out.tags, guessed.tags, labels=range(len(TAGS)), average=None, zero_division=0)
        found[name] = dict(zip(TAGS, map(float, scores), strict=True))
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    print(f"{'F1 of':10}{'there are':>10}" + "".join(f"{name:>11}" for name in found))
    for number, one in enumerate(TAGS):
        count = int((held_out.tags == number).sum())
        print(f"{one:10}{count:10,}" + "".join(f"{scores[one]:11.2f}" for scores in found.values()))
    print("the book:  " + spell(Tagged(held_out.characters[:300], held_out.tags[:300])))
    print("restored:  " + spell(Tagged(guessed.characters[:300], guessed.tags[:300])))
    return found


if __name__ == "__main__":
    run(main)
