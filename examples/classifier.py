"""Many to one: from which topic of Python's own manual a passage comes.

Every CPython carries the texts that `help()` shows by topic. The longest topics are cut into passages of 15 to 60
words; a quarter of each topic's passages is held out. A bidirectional GRU reads a passage's words, packed, since they
differ in length, and its two last states, one from each end, choose the topic.

Beside it a baseline that knows nothing of order: counts of words and logistic regression, from scikit-learn. On some
thousand passages it is hard to beat: which words occur says nearly everything, and a network has to learn from the
same passages what each word means.

Prints the accuracy of both on what was held out, and that of always naming the longest topic.
"""

import re
import time
from collections import Counter
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from command import run
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fusedrnn
from fusedrnn.lm import Vocab

SHORTEST, LONGEST = 15, 60


@dataclass(frozen=True)
class Passages:
    words: list[list[str]]
    topics: torch.Tensor  # int64 [N]

    def of(self, numbers: list[int]) -> "Passages":
        return Passages([self.words[n] for n in numbers], self.topics[numbers])


def load(most: int) -> tuple[Passages, Passages]:
    """Passages of that many topics: to learn from, and held out."""
    draw = torch.Generator().manual_seed(0)
    texts: list[list[str]] = []
    for words in sorted((re.findall(r"[a-z_]+", text.lower()) for text in topics.values()), key=len, reverse=True):
        if not any(" ".join(words[20:50]) in " ".join(longer) for longer in texts):  # else a chapter of that one
            texts.append(words)
    texts = texts[:most]
    cut, number, held_out = [], [], []
    for topic, words in enumerate(texts):
        while len(words) >= SHORTEST:
            length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=draw))
            cut.append(words[:length])
            words = words[length:]
            number.append(topic)
            held_out.append(bool(torch.rand((), generator=draw) < 0.25))
    every = Passages(cut, torch.tensor(number))
    learnt = [n for n, held in enumerate(held_out) if not held]
    return every.of(learnt), every.of([n for n, held in enumerate(held_out) if held])


class Classifier(nn.Module):
    def __init__(self, vocab_size: int, topics: int, embed: int, hidden: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed)
        self.dropout = nn.Dropout(dropout)
        self.rnn = fusedrnn.GRU(embed, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, topics)

    def forward(self, packed: PackedSequence) -> torch.Tensor:
        """packed tokens; returns scores [B, topics]."""
        x = packed._replace(data=self.dropout(self.embedding(packed.data)))
        _, h_n = self.rnn(x)  # [2, B, H], each direction after its last word
        return self.head(self.dropout(torch.cat([*h_n], 1)))


def pack(words: list[list[str]], vocab: Vocab) -> PackedSequence:
    return pack_sequence([vocab.encode(passage) for passage in words], enforce_sorted=False)


def train(model: nn.Module, learnt: Passages, vocab: Vocab, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(epochs):
        model.train()
        for numbers in torch.randperm(len(learnt.words)).split(32):
            batch = learnt.of(numbers.tolist())
            # words that are not known will come too: some of the known are taken for such
            known = pack(batch.words, vocab)
            known = known._replace(data=known.data.masked_fill(torch.rand(known.data.shape) < 0.1, 0))
            optimizer.zero_grad()
            F.cross_entropy(model(known), batch.topics).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, passages: Passages, vocab: Vocab) -> float:
    model.eval()
    return (model(pack(passages.words, vocab)).argmax(1) == passages.topics).float().mean().item()


def bag_of_words(learnt: Passages, held_out: Passages) -> float:
    counts = CountVectorizer(analyzer=lambda words: words, min_df=2)
    regression = LogisticRegression(max_iter=1000)
    regression.fit(counts.fit_transform(learnt.words), learnt.topics)
    return float(regression.score(counts.transform(held_out.words), held_out.topics))


def main(quick: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    most, embed, hidden, epochs = (4, 64, 64, 12) if quick else (15, 128, 128, 40)
    learnt, held_out = load(most)
    counted = Counter(word for passage in learnt.words for word in passage)
    vocab = Vocab(word for passage in learnt.words for word in passage if counted[word] > 1)
    print(f"{most} topics, {len(learnt.words)} passages to learn from, {len(held_out.words)} held out, "
          f"{len(vocab)} words")  # fmt: skip
    model, start = Classifier(len(vocab), most, embed, hidden, dropout=0.5), time.perf_counter()
    train(model, learnt, vocab, epochs)
    found = {
        "the longest topic": (held_out.topics == learnt.topics.mode().values).float().mean().item(),
        "bag of words": bag_of_words(learnt, held_out),
        "GRU": accuracy(model, held_out, vocab),
    }
    for name, value in found.items():
        print(f"{name:18} {value:.1%}")
    print(f"{time.perf_counter() - start:.0f} s")
    return found


if __name__ == "__main__":
    run(main)
