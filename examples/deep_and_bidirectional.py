"""Language models of two levels, and why one that reads both ways cannot say what comes next.

Both are LSTMs of two levels on characters of The Time Machine, trained alike. The deep one reads forward. The
bidirectional one has at every step also a state that comes from the end of the sequence: at step t it has read
x_{t+1}, and that is what it is asked for. It need only hand it on, so its training perplexity falls to almost 1 while
nothing of the language is learnt. When it writes, what comes next is not there to be read, and it fails.

To show it, the same characters are foretold twice: in the middle of a sequence, as in training, and at the end of one,
where only what came before is known, as in writing. Prints both perplexities for both models, and what each writes.
"""

import time

import torch
from command import run
from torch import nn
from torch.nn import functional as F

import fusedrnn
from fusedrnn.lm import grad_clipping, load_data_time_machine, perplexity

STEPS = 35


class Model(nn.Module):
    def __init__(self, vocab_size, hidden_size, bidirectional):
        super().__init__()
        self.rnn = fusedrnn.LSTM(vocab_size, hidden_size, num_layers=2, bidirectional=bidirectional)
        self.head = nn.Linear((2 if bidirectional else 1) * hidden_size, vocab_size)

    def forward(self, tokens):
        """tokens [T, B]; returns scores [T, B, V], from a state of zeros."""
        return self.head(self.rnn(tokens)[0])


def train(model, batches, epochs, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        for X, Y in batches:  # [B, T]
            scores = model(X.T)
            optimizer.zero_grad()
            F.cross_entropy(scores.flatten(0, 1), Y.T.flatten()).backward()
            grad_clipping(model, 1)
            optimizer.step()


@torch.no_grad()
def foretold(model, tokens):
    """Perplexity of characters in the middle of sequences that hold them, and at the end of what comes before them."""
    windows = tokens.unfold(0, 2 * STEPS, 7).T  # [2 T, N]
    wanted = windows[STEPS]
    in_the_middle = model(windows)[STEPS - 1]  # what follows is read as well
    at_the_end = model(windows[:STEPS])[-1]
    return [perplexity(F.cross_entropy(scores, wanted).item()) for scores in (in_the_middle, at_the_end)]


@torch.no_grad()
def write(model, vocab, prefix, num):
    tokens = vocab[list(prefix)]
    for _ in range(num):
        scores = model(torch.tensor(tokens[-STEPS:]).unsqueeze(1))
        tokens.append(int(scores[-1, 0].argmax()))
    return "".join(vocab.to_tokens(tokens))


def main(quick: bool = False) -> dict:
    batches, vocab = load_data_time_machine(batch_size=32, num_steps=STEPS)
    tokens = batches.batches.tokens
    hidden = 64 if quick else 256
    found = {}
    for name, bidirectional, epochs in (
        ("deep", False, 45 if quick else 500),
        ("bidirectional", True, 45 if quick else 100),
    ):
        torch.manual_seed(0)
        model, start = Model(len(vocab), hidden, bidirectional), time.perf_counter()
        train(model, batches, epochs, lr=2.0)
        seconds = time.perf_counter() - start
        middle, end = foretold(model, tokens)
        text = write(model, vocab, "time traveller", 50)
        found[name] = {"in the middle": middle, "at the end": end, "text": text, "seconds": seconds}
        print(f"{name}, {epochs} epochs, {seconds:.0f} s: perplexity {middle:.2f} in the middle of a sequence, "
              f"{end:.2f} at its end; it writes: {text}")  # fmt: skip
    return found


if __name__ == "__main__":
    run(main)
