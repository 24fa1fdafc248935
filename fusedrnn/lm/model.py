"""The language model: a recurrent layer that reads tokens, and a linear head that scores the next one.

Without an embedding the first layer's W_ih multiplies one-hot rows, which the fused layer does by looking rows up.
"""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

import fusedrnn
from fusedrnn.dispatch import check_backend, requested
from fusedrnn.lm.config import CELLS, TrainConfig
from fusedrnn.lm.errors import ConfigError

State: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class LanguageModel(nn.Module):
    """Next-token scores from a recurrent layer.

    rnn: a layer of `fusedrnn`, which is handed the tokens, or of `torch.nn`, which is handed one-hot rows; not
         batch_first, one direction; or Levels of them
    vocab_size: V, the number of scores, and the layer's input size where there is no embedding
    embed: E, the width of the embedding, 0 for none
    tied: the embedding is the head's matrix [V, H] (Press and Wolf, 2017, arXiv:1608.05859)
    dropout: of every value of the last layer's output
    locked_dropout: of that and of the embedding, the same values in every step (Gal and Ghahramani, 2016,
        arXiv:1512.05287)
    embed_dropout: of whole rows of the embedding's matrix (ibid.)
    weight_drop: of the values of W_hh (Merity, Keskar and Socher, 2018, arXiv:1708.02182)

    All that are dropped are zeros, the others divided by 1 - P, in training alone.
    """

    def __init__(
        self,
        rnn: "nn.RNNBase | Levels",
        vocab_size: int,
        *,
        embed: int = 0,
        tied: bool = False,
        dropout: float = 0.0,
        locked_dropout: float = 0.0,
        embed_dropout: float = 0.0,
        weight_drop: float = 0.0,
    ):
        super().__init__()
        layer: Any = rnn[0] if isinstance(rnn, Levels) else rnn
        self.rnn, self.vocab_size = rnn, vocab_size
        self.head = nn.Linear(layer.proj_size or layer.hidden_size, vocab_size)
        self.embedding = nn.Embedding(vocab_size, embed) if embed else None
        if self.embedding is not None and tied:
            self.embedding.weight = self.head.weight
        self.one_hot = isinstance(layer, nn.RNN | nn.GRU | nn.LSTM)
        self.dropout, self.locked_dropout = dropout, locked_dropout
        self.embed_dropout, self.weight_drop = embed_dropout, weight_drop

    def forward(self, tokens: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """tokens: int64 [T, B]; returns scores before the softmax [T, B, V] and the state after the last step."""
        y, state = self.recur(self.embed(tokens), state)
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return self.head(drop_locked(y, self.locked_dropout, self.training)), state

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the layer reads: [T, B, E], or one-hot rows [T, B, V], or for a fused layer the tokens themselves."""
        if self.embedding is None:
            return F.one_hot(tokens, self.vocab_size).to(self.head.weight.dtype) if self.one_hot else tokens
        matrix = self.embedding.weight  # [V, E]
        if self.embed_dropout and self.training:
            matrix = matrix * F.dropout(matrix.new_ones(len(matrix), 1), self.embed_dropout)
        return drop_locked(F.embedding(tokens, matrix), self.locked_dropout, self.training)

    def recur(self, x: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """The recurrent layer's output [T, B, H] and last state."""
        if not (self.weight_drop and self.training):
            return self.rnn(x, state)
        weights = {name: weight for name, weight in self.rnn.named_parameters() if "weight_hh" in name}
        dropped = {name: F.dropout(weight, self.weight_drop) for name, weight in weights.items()}
        return torch.func.functional_call(self.rnn, dropped, (x, state))


class Levels(nn.ModuleList):
    """Layers of one level each, one above the other, with locked dropout between them: what one layer of as many levels
    has no argument for. Its parameters are saved under the names of that layer's.
    """

    def __init__(self, layers: list[nn.RNNBase], locked_dropout: float):
        super().__init__(layers)
        self.locked_dropout = locked_dropout
        self.register_state_dict_post_hook(_name_as_one_layer)
        self.register_load_state_dict_pre_hook(_name_as_levels)

    def forward(self, x: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """x [T, B, I] and state [L, B, H], for an LSTM a pair of them, as one layer of L levels takes them."""
        last = []
        for level, layer in enumerate(self):
            if level:
                x = drop_locked(x, self.locked_dropout, self.training)
            x, after = layer(x, None if state is None else each(lambda part: part[level : level + 1], state))  # noqa: B023
            last.append(after)
        if isinstance(last[0], tuple):
            return x, tuple(torch.cat(parts) for parts in zip(*last, strict=True))  # type: ignore[return-value]
        return x, torch.cat(last)


def build_model(vocab_size: int, config: TrainConfig) -> LanguageModel:
    """A language model with new weights, drawn from torch's global generator in the same order for both libraries.
    Parameter names are the same too, so weights of one load into the other.

    Raises ConfigError when the backend, or what the environment names in its place, is unknown.
    """
    class_name, options = CELLS[config.cell]
    library: Any = nn
    extras: dict[str, Any] = {}
    if config.library == "fusedrnn":
        try:
            check_backend(requested(config.backend))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        library, extras = fusedrnn, {"backend": config.backend}
    make = getattr(library, class_name)
    I, H, L = config.width or vocab_size, config.hidden, config.layers
    layer: nn.RNNBase | Levels
    if L > 1 and config.locked_dropout:
        layer = Levels([make(H if level else I, H, **options, **extras) for level in range(L)], config.locked_dropout)
    else:
        layer = make(I, H, L, dropout=config.dropout if L > 1 else 0.0, **options, **extras)
    model = LanguageModel(
        layer,
        vocab_size,
        embed=config.width,
        tied=config.tied,
        dropout=config.dropout,
        locked_dropout=config.locked_dropout,
        embed_dropout=config.embed_dropout,
        weight_drop=config.weight_drop,
    )
    if config.init == "normal":
        for name, parameter in model.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.01)
    return model


def distinct(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by name, without the head's where they are the embedding's."""
    tied = "embedding.weight" in weights and weights["embedding.weight"].data_ptr() == weights["head.weight"].data_ptr()
    return {name: weight for name, weight in weights.items() if not (tied and name == "head.weight")}


def with_ties(weights: dict[str, torch.Tensor], tied: bool) -> dict[str, torch.Tensor]:
    """What distinct left out is there again."""
    known = tied and "embedding.weight" in weights
    return weights | {"head.weight": weights["embedding.weight"]} if known else weights


def drop_locked(x: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """x [T, B, H] with the same values of every step dropped."""
    if not (probability and training):
        return x
    return x * F.dropout(x.new_ones(1, *x.shape[1:]), probability)


def detach(state: State) -> State:
    """The same numbers, cut off from the graph that made them."""
    return each(torch.Tensor.detach, state)


def tensors_of(state: State | None) -> tuple[torch.Tensor, ...]:
    """Those of a state: none, one, or two."""
    return state if isinstance(state, tuple) else () if state is None else (state,)


def each(change: Any, state: State) -> Any:
    """A state, each tensor of it changed."""
    return tuple(map(change, state)) if isinstance(state, tuple) else change(state)


def _name_as_one_layer(levels: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for level, name in _names(levels):
        state_dict[f"{prefix}{name}_l{level}"] = state_dict.pop(f"{prefix}{level}.{name}_l0")


def _name_as_levels(levels: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    for level, name in _names(levels):
        if (key := f"{prefix}{name}_l{level}") in state_dict:
            state_dict[f"{prefix}{level}.{name}_l0"] = state_dict.pop(key)


def _names(levels: nn.Module) -> list[tuple[str, str]]:
    """('1', 'weight_hh') and so on, of every parameter."""
    split = (name.removesuffix("_l0").split(".") for name, _ in levels.named_parameters())
    return [(level, name) for level, name in split]
