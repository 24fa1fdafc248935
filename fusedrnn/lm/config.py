"""The options of a training run. One table of them makes the constructor, its checks, the command line and its help,
and says which keys a TOML file may hold.
"""

import dataclasses
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fusedrnn.lm.batches import SAMPLINGS
from fusedrnn.lm.errors import ConfigError
from fusedrnn.lm.text import TOKENIZERS

# The name a user types -> the class of that name in `fusedrnn` and in `torch.nn`, and the options it takes.
CELLS: dict[str, tuple[str, dict[str, str]]] = {
    "rnn": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
LIBRARIES = ("fusedrnn", "torch")
INITS = ("torch", "normal")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "linear", "cosine")
AMP = ("none", "bf16", "fp16")


@dataclass(frozen=True)
class Values:
    """What an option may be: a type, a test, and the words for it."""

    type: type
    allowed: Callable[[Any], bool]
    words: str
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: object) -> Any:
        """value, an integer made a float where that is the type. Raises ConfigError."""
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not self.type or not self.allowed(value):
            raise ConfigError(f"{name} must be {self.words}, got {value!r}")
        return value


def integer(least: int, words: str = "") -> Values:
    return Values(int, lambda value: least <= value < 2**63, words or f"an integer of at least {least}, below 2**63")


def one_of(choices: tuple[str, ...]) -> Values:
    return Values(str, lambda value: value in choices, f"one of {', '.join(choices)}", choices)


POSITIVE = Values(float, lambda value: 0 < value < math.inf, "a number above 0")
NOT_NEGATIVE = Values(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
FRACTION = Values(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
THREADS = Values(int, lambda value: 1 <= value <= 4096, "from 1 to 4096")
FLAG = Values(bool, lambda value: True, "true or false")


def option(default: object, values: Values, group: str, about: str, metavar: str = "") -> Any:
    """A field of TrainConfig; None as a default lets the corpus choose."""
    metadata = {"values": values, "group": group, "about": about, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What determines a training run, besides the text and the number of threads. `fusedrnn train --help` explains
    every option. Raises ConfigError for a value that makes no sense, alone or with the others.
    """

    tokens: str = option(
        "auto", one_of(("auto", *TOKENIZERS)), "text",
        "course: lower-case letters and single spaces; char: every character as it is; byte: of UTF-8; word: between "
        "spaces; auto: course for timemachine and pydoc, else char",
    )  # fmt: skip
    max_tokens: int | None = option(
        None, integer(0), "text", "use the first N tokens, 0 for all (default: 10000 of timemachine and pydoc, else "
        "0)", "N",
    )  # fmt: skip
    max_vocab: int = option(0, integer(0), "text", "of words: keep the N most frequent, 0 for all", "N")
    validation: float = option(0.0, FRACTION, "text", "share of the tokens to watch the training by", "SHARE")
    test: float = option(0.0, FRACTION, "text", "share of the tokens, the last, to score in the end", "SHARE")
    sampling: str = option(
        "sequential", one_of(SAMPLINGS), "text", "sequential: streams side by side, the state carried from batch to "
        "batch; random: pieces in random order, the state from zeros",
    )  # fmt: skip
    batch_size: int = option(32, integer(1), "text", "streams side by side", "B")
    steps: int = option(35, integer(1), "text", "time steps gradients flow through", "T")

    cell: str = option("gru", one_of(tuple(CELLS)), "model", "kind of recurrent layer")
    hidden: int = option(256, integer(1), "model", "hidden units a layer", "H")
    layers: int = option(1, integer(1), "model", "recurrent layers", "L")
    embed: int = option(0, integer(0), "model", "width of the embedding, 0 for one-hot rows", "E")
    tied: bool = option(False, FLAG, "model", "one matrix for the embedding and the head, of width H")
    dropout: float = option(0.0, FRACTION, "model", "of every value between layers and before the head", "P")
    locked_dropout: float = option(
        0.0, FRACTION, "model", "the same, and of the embedding, but alike in all steps of a batch", "P"
    )
    embed_dropout: float = option(0.0, FRACTION, "model", "of whole tokens' rows of the embedding", "P")
    weight_drop: float = option(0.0, FRACTION, "model", "of the recurrent weights, alike in all steps of a batch", "P")
    init: str = option("torch", one_of(INITS), "model", "normal: weights from N(0, 0.01), biases zero")

    epochs: int = option(500, integer(1), "optimization", "passes over the text", "N")
    optimizer: str = option("sgd", one_of(OPTIMIZERS), "optimization", "torch's")
    lr: float = option(1.0, POSITIVE, "optimization", "largest learning rate", "LR")
    min_lr: float = option(0.0, NOT_NEGATIVE, "optimization", "where linear and cosine schedules end", "LR")
    schedule: str = option("constant", one_of(SCHEDULES), "optimization", "of the learning rate, over all steps")
    warmup: int = option(0, integer(0), "optimization", "optimizer steps in which it rises from 0", "N")
    momentum: float = option(0.0, FRACTION, "optimization", "of SGD", "M")
    weight_decay: float = option(0.0, NOT_NEGATIVE, "optimization", "of the weights, not of the biases", "W")
    clip: float = option(1.0, NOT_NEGATIVE, "optimization", "largest gradient norm, 0 for no clipping", "NORM")
    accumulate: int = option(
        1, integer(1), "optimization", "parts a batch's streams are computed in, to save memory", "N"
    )
    patience: int = option(
        0, integer(0), "optimization", "epochs without a better validation, then stop; 0: never", "N"
    )
    amp: str = option("none", one_of(AMP), "optimization", "compute in 16 bits, the weights in float32")
    seed: int = option(0, integer(0, "from 0 to 2**63 - 1"), "optimization", "of weights, batches and dropout", "N")

    compile: bool = option(False, FLAG, "run", "compile the model by torch.compile")
    graph: bool = option(True, FLAG, "run", "on a GPU, capture a step as one CUDA graph where that can be")
    save_every: int = option(500, integer(0), "run", "optimizer steps between checkpoints, 0 for none", "N")
    library: str = option("fusedrnn", one_of(LIBRARIES), "run", "torch: the control, torch.nn fed with one-hot rows")
    backend: str = option("auto", Values(str, bool, "a name"), "run", "of the fused layers, see `fusedrnn info`")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                object.__setattr__(self, field.name, field.metadata["values"].check(field.name, value))
        for wrong, sentence in self._conflicts():
            if wrong:
                raise ConfigError(sentence)

    def _conflicts(self) -> list[tuple[bool, str]]:
        embedded, held_out = self.embed > 0 or self.tied, self.validation + self.test
        return [
            (held_out >= 1, f"validation and test leave nothing to train on: {self.validation:g} + {self.test:g}"),
            (self.patience > 0 and not self.validation, "patience watches the validation: give validation a share"),
            (self.tied and self.embed not in (0, self.hidden), f"tied takes an embedding of {self.hidden}, as hidden"),
            (self.embed_dropout > 0 and not embedded, "embed_dropout takes an embedding: embed or tied"),
            (self.dropout > 0 and self.locked_dropout > 0, "dropout and locked_dropout are one or the other"),
            (self.momentum > 0 and self.optimizer != "sgd", f"momentum is of sgd, not of {self.optimizer}"),
            (self.min_lr > self.lr, f"min_lr {self.min_lr:g} is above lr {self.lr:g}"),
            (self.max_vocab > 0 and self.tokens != "word", f"max_vocab is of words, and tokens are {self.tokens}"),
            (self.batch_size % self.accumulate > 0, f"accumulate must divide the {self.batch_size} streams"),
        ]

    @property
    def width(self) -> int:
        """Of the embedding; 0 where there is none."""
        return self.hidden if self.tied else self.embed


def presets() -> dict[str, str]:
    """The recipes that come along: what `--preset` takes, and the first line of each."""
    found = {}
    for file in sorted(_recipes().iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            found[file.name.removesuffix(".toml")] = file.read_text().splitlines()[0].lstrip("# ")
    return found


def read_preset(name: str) -> dict[str, Any]:
    """The corpus and the options of a recipe that comes along. Raises ConfigError."""
    if name not in presets():
        raise ConfigError(f"preset must be one of {', '.join(presets())}, got {name!r}")
    return _read(_recipes().joinpath(f"{name}.toml").read_bytes(), f"preset {name}")


def read_toml(path: str | Path) -> dict[str, Any]:
    """The options of a TOML file, under the names of TrainConfig's, and `corpus`. Raises ConfigError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return _read(data, str(path))


def _recipes() -> Any:
    return resources.files("fusedrnn.lm") / "presets"


def _read(data: bytes, origin: str) -> dict[str, Any]:
    try:
        options = tomllib.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deeply") from None
    check_options(options, origin)
    return options


def check_options(options: Mapping[str, Any], origin: str) -> None:
    """Raises ConfigError, which names origin, for what is no option of TrainConfig, or has no such value."""
    fields = {field.name: field.metadata["values"] for field in dataclasses.fields(TrainConfig)}
    fields["corpus"] = Values(str, bool, "a name or a path")
    for name, value in options.items():
        if name not in fields:
            raise ConfigError(f"{origin}: there is no option {name!r}")
        try:
            fields[name].check(name, value)
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None
