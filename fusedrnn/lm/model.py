"""The language model: a recurrent layer that reads tokens, and a linear head that scores the next one.

There is no embedding: the first layer's W_ih multiplies one-hot rows, which the fused layer does by looking rows up.
"""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

import fusedrnn
from fusedrnn.dispatch import check_backend, requested
from fusedrnn.lm.errors import ConfigError

State: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

# The name a user types -> the class of that name in `fusedrnn` and in `torch.nn`, and the options it takes.
CELLS: dict[str, tuple[str, dict[str, str]]] = {
    "rnn": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
LIBRARIES = ("fusedrnn", "torch")
INITS = ("torch", "normal")


class LanguageModel(nn.Module):
    """Next-token scores from a recurrent layer.

    rnn: a layer of `fusedrnn`, which is handed the tokens, or of `torch.nn`, which is handed one-hot rows; not
         batch_first, one direction
    vocab_size: V, the layer's input size and the number of scores
    """

    def __init__(self, rnn: nn.RNNBase, vocab_size: int):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.proj_size or rnn.hidden_size, vocab_size)
        self.vocab_size = vocab_size

    def forward(self, tokens: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """tokens: int64 [T, B]; returns scores before the softmax [T, B, V] and the state after the last step."""
        x = tokens
        if isinstance(self.rnn, nn.RNN | nn.GRU | nn.LSTM):
            x = F.one_hot(tokens, self.vocab_size).to(self.head.weight.dtype)
        y, state = self.rnn(x, state)
        return self.head(y), state


def build_model(
    vocab_size: int,
    cell: str = "gru",
    hidden_size: int = 256,
    num_layers: int = 1,
    *,
    library: str = "fusedrnn",
    backend: str = "auto",
    init: str = "torch",
) -> LanguageModel:
    """A language model with new weights, drawn from torch's global generator in the same order for both libraries.

    library: 'fusedrnn', or 'torch' for the control. Parameter names are the same, so weights of one load into the other
    backend: handed to the fused layer
    init: 'torch' keeps what the layers draw themselves; 'normal' draws weights from N(0, 0.01) and zeroes the biases

    Raises ConfigError when backend, or what the environment names in its place, is unknown.
    """
    class_name, options = CELLS[cell]
    layer: Any
    if library == "torch":
        layer = getattr(nn, class_name)(vocab_size, hidden_size, num_layers, **options)
    else:
        try:
            check_backend(requested(backend))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        layer = getattr(fusedrnn, class_name)(vocab_size, hidden_size, num_layers, **options, backend=backend)
    model = LanguageModel(layer, vocab_size)
    if init == "normal":
        for name, parameter in model.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.01)
    return model


def detach(state: State) -> State:
    """The same numbers, cut off from the graph that made them."""
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()  # type: ignore[return-value]
