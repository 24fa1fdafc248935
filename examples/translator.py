"""An encoder and a decoder that translate English to French, by the course's recipe.

The encoder, a GRU of two levels, reads a sentence's embedded words, packed, since sentences differ in length. Its last
state is the context c: the decoder starts from it, and the top level's part of it stands beside the embedding of every
word the decoder reads. In training the decoder reads the right words one step late, from <bos> on (teacher forcing);
when it translates, its own, until it writes <eos>.

    c = h_T,    s_t = GRU([embedding(y_{t-1}), c], s_{t-1}),    p(y_t) = softmax(W s_t + b),    s_0 = c

The recipe: the first 600 pairs, words that occur twice, sentences cut or padded to 10 words, embeddings and states of
32, dropout 0.1 between levels, batches of 64, Adam at 0.005, gradients clipped at norm 1, Xavier's initial weights, 300
epochs. Padding is masked out of the loss. The published figure, 0.019, is the sum over sentences of the loss averaged
over all 10 places, over the number of words: a tenth of the nats a word. Both are printed.

Then translations: greedy, and by a beam search of width 3 that divides log-probabilities by length^0.75, each with its
BLEU (up to pairs of words, as the course counts; Papineni et al., 2002; from sacrebleu).
"""

import io
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from command import run
from sacrebleu.metrics import BLEU
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

import fusedrnn
from fusedrnn.lm import Vocab, grad_clipping
from fusedrnn.lm.corpus import find_corpus_file
from fusedrnn.lm.text import UNKNOWN

PAD, BOS, EOS = 1, 2, 3  # numbers of <pad>, <bos>, <eos>
LONGEST = 10
SENTENCES = {
    "go .": "va !",
    "i lost .": "j'ai perdu .",
    "he's calm .": "il est calme .",
    "i'm home .": "je suis chez moi .",
}


def vocabulary(sentences: Iterable[list[str]]) -> Vocab:
    """Those that occur at least twice, after the four that stand for something else."""
    counted = Counter(word for sentence in sentences for word in sentence)
    return Vocab.of([UNKNOWN, "<pad>", "<bos>", "<eos>", *sorted(word for word in counted if counted[word] > 1)])


def encode(vocab: Vocab, sentence: list[str]) -> torch.Tensor:
    """With <eos>, at most LONGEST."""
    return vocab.encode([*sentence, "<eos>"][:LONGEST])


def load_pairs(num: int) -> list[tuple[list[str], list[str]]]:
    with zipfile.ZipFile(io.BytesIO(find_corpus_file("fra-eng"))) as archive:
        text = archive.read("fra-eng/fra.txt").decode()
    text = text.replace("\u202f", " ").replace("\xa0", " ").lower()
    for mark in ",.!?":
        text = text.replace(mark, f" {mark}")
    pairs = (line.split("\t") for line in text.splitlines()[:num])
    return [(english.split(), french.split()) for english, french in pairs]


@dataclass(frozen=True)
class Batch:
    """Numbers of words, padded [T, B], and how many are words [B]."""

    source: torch.Tensor
    source_lengths: torch.Tensor
    target: torch.Tensor
    target_lengths: torch.Tensor


def collate(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Batch:
    columns = []
    for sentences in zip(*pairs, strict=True):
        columns += [pad_sequence(list(sentences), padding_value=PAD), torch.tensor([len(s) for s in sentences])]
    return Batch(*columns)


def sequence_mask(x: torch.Tensor, lengths: torch.Tensor, value: float = 0) -> torch.Tensor:
    """x [B, T] with what lies beyond each row's length replaced."""
    return x.masked_fill(torch.arange(x.shape[1], device=x.device) >= lengths.unsqueeze(1), value)


class Translator(nn.Module):
    def __init__(self, english: int, french: int, embed: int = 32, hidden: int = 32, dropout: float = 0.1):
        super().__init__()
        self.read = nn.Embedding(english, embed)
        self.encoder = fusedrnn.GRU(embed, hidden, 2, dropout=dropout)
        self.heard = nn.Embedding(french, embed)
        self.decoder = fusedrnn.GRU(embed + hidden, hidden, 2, dropout=dropout)
        self.head = nn.Linear(hidden, french)
        for name, weight in self.named_parameters():
            if "weight" in name and name.split(".")[0] in ("encoder", "decoder", "head"):
                nn.init.xavier_uniform_(weight)

    def encode(self, source: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """source [T, B]; returns the context, the state of both levels after the last word [2, B, H]."""
        packed = pack_padded_sequence(self.read(source), lengths, enforce_sorted=False)
        return self.encoder(packed)[1]

    def decode(self, words: torch.Tensor, context: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """words [T, B], the ones before those that are asked for; returns scores [T, B, V] and the state."""
        beside = context[-1].expand(len(words), -1, -1)  # [T, B, H]
        y, state = self.decoder(torch.cat([self.heard(words), beside], 2), state)
        return self.head(y), state

    def loss(self, batch: Batch) -> torch.Tensor:
        """Nats of each place of the targets, zero beyond their ends: [B, T]."""
        context = self.encode(batch.source, batch.source_lengths)
        first = torch.full_like(batch.target[:1], BOS)
        scores, _ = self.decode(torch.cat([first, batch.target[:-1]]), context, context)
        nats = F.cross_entropy(scores.permute(1, 2, 0), batch.target.T, reduction="none")
        return sequence_mask(nats, batch.target_lengths)


def train(model: Translator, pairs: list, epochs: int) -> list[float]:
    """Nats a word, of each epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    batches = DataLoader(pairs, batch_size=64, shuffle=True, collate_fn=collate)
    history = []
    for _ in range(epochs):
        model.train()
        total, words = 0.0, 0
        for batch in batches:
            nats = model.loss(batch)
            optimizer.zero_grad()
            (nats.sum() / LONGEST).backward()
            grad_clipping(model, 1)
            optimizer.step()
            total, words = total + nats.sum().item(), words + int(batch.target_lengths.sum())
        history.append(total / words)
    return history


@torch.no_grad()
def translate(model: Translator, source: torch.Tensor, width: int = 1, alpha: float = 0.75) -> tuple[list[int], float]:
    """The best of `width` translations that were kept at each step, without <eos>, and its score: the log-probability
    over length^alpha. A width of 1 is greedy."""
    model.eval()
    context = model.encode(source.unsqueeze(1), torch.tensor([len(source)]))
    state, words, scores = context, torch.tensor([[BOS]]), torch.zeros(1)  # words [T, K], scores [K]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, LONGEST + 1):
        kept = len(scores)
        logits, state = model.decode(words[-1:], context.expand(-1, kept, -1).contiguous(), state)
        reached = scores.unsqueeze(1) + logits[0].log_softmax(1)  # [K, V]
        scores, places = reached.flatten().topk(width)
        parents, last = places // reached.shape[1], places % reached.shape[1]
        words, state = torch.cat([words[:, parents], last.unsqueeze(0)]), state[:, parents].contiguous()
        over = (last == EOS) | (length == LONGEST)
        for k in over.nonzero().flatten().tolist():
            found = [word for word in words[1:, k].tolist() if word != EOS]
            ended.append((scores[k].item() / length**alpha, found))
        words, state, scores = words[:, ~over], state[:, ~over].contiguous(), scores[~over]
        width -= int(over.sum())
        if not width:
            break
    score, best = max(ended)
    return best, score


def bleu(translation: str, reference: str) -> float:
    """From 0 to 1, of runs of one and two words."""
    counted = BLEU(max_ngram_order=2, effective_order=True, tokenize="none")
    return counted.sentence_score(translation, [reference]).score / 100


def main(quick: bool = False) -> dict:
    torch.manual_seed(0)
    pairs = load_pairs(600)
    english, french = (vocabulary(pair[side] for pair in pairs) for side in (0, 1))
    encoded = [(encode(english, source), encode(french, target)) for source, target in pairs]
    model, start = Translator(len(english), len(french)), time.perf_counter()
    history = train(model, encoded, 30 if quick else 300)
    print(f"{time.perf_counter() - start:.0f} s; {history[-1]:.3f} nats a word, {history[-1] / LONGEST:.4f} by the "
          f"course's count")  # fmt: skip
    found: dict = {"loss": history[-1] / LONGEST, "history": history}
    for sentence, reference in SENTENCES.items():
        told, source = [], encode(english, sentence.split())
        for name, width in (("greedy", 1), ("beam", 3)):
            numbers, score = translate(model, source, width)
            translation = " ".join(french.to_tokens(numbers))
            found[sentence, name] = (translation, bleu(translation, reference), score)
            told.append(f"{name}: {translation} (BLEU {found[sentence, name][1]:.2f})")
        print(f"{sentence} => {'; '.join(told)}")
    return found


if __name__ == "__main__":
    run(main)
