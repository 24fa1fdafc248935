"""The course's first language model, run by the fused layer: the line that makes the layer is another.

A ReLU network of 64 units reads characters of The Time Machine as one-hot rows, 32 sequences of 35 steps at a time, and
is trained by SGD with a learning rate of 1, 2000 times through the first 10,000 characters, the state carried from
batch to batch and cut off from the batch before. Then it goes on from `time traveller`. One more line clips the
gradients, which the course does not do here: without it this run's loss is no number any more before its 2000th epoch.

A published run of this program prints 1.117 and calls it the perplexity. It is the mean cross-entropy in nats; the
perplexity is its exponential, exp(1.117) = 3.06: as unsure as of 3 characters that are equally likely, where the 28 of
the vocabulary would be 28. The course's later programs print the exponential.

Prints loss and perplexity now and then, and at the end what the network writes.
"""

import time

import torch
from command import run
from torch import nn
from torch.nn import functional as F

import fusedrnn
from fusedrnn.lm import grad_clipping, load_data_time_machine, perplexity, predict


class RNNModel(nn.Module):
    def __init__(self, rnn_layer, vocab_size):
        super().__init__()
        self.rnn, self.vocab_size = rnn_layer, vocab_size
        self.linear = nn.Linear(rnn_layer.hidden_size, vocab_size)

    def forward(self, inputs, state):
        X = F.one_hot(inputs.T.long(), self.vocab_size).float()  # [T, B, V]
        Y, state = self.rnn(X, state)
        return self.linear(Y.reshape(-1, Y.shape[-1])), state  # [T * B, V]

    def begin_state(self, device, batch_size=1):
        return torch.zeros(self.rnn.num_layers, batch_size, self.rnn.hidden_size, device=device)


def train_epoch(net, batches, optimizer):
    """The mean cross-entropy, in nats a character."""
    state, total, count = None, 0.0, 0
    for X, Y in batches:  # [B, T]
        state = net.begin_state(X.device, len(X)) if state is None else state.detach()
        scores, state = net(X, state)
        loss = F.cross_entropy(scores, Y.T.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        grad_clipping(net, 1)
        optimizer.step()
        total, count = total + loss.item() * Y.numel(), count + Y.numel()
    return total / count


def main(quick: bool = False, layer=fusedrnn.RNN) -> dict:
    """layer: torch.nn.RNN for the course's own run."""
    torch.manual_seed(0)
    epochs = 60 if quick else 2000
    batches, vocab = load_data_time_machine(batch_size=32, num_steps=35)
    net = RNNModel(layer(len(vocab), 64, nonlinearity="relu"), len(vocab))
    optimizer = torch.optim.SGD(net.parameters(), lr=1)
    losses, start = [], time.perf_counter()
    for epoch in range(1, epochs + 1):
        losses.append(train_epoch(net, batches, optimizer))
        if epoch % (epochs // 10) == 0:
            print(f"epoch {epoch:4}: loss {losses[-1]:.3f}, perplexity {perplexity(losses[-1]):.3f}")
    seconds = time.perf_counter() - start
    text = predict("time traveller", 50, net, vocab)
    print(f"{seconds:.1f} s; it writes: {text}")
    return {"losses": losses, "text": text, "seconds": seconds}


if __name__ == "__main__":
    run(main)
