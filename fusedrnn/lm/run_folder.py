"""The folder a training run leaves behind.

    config.json        the options, the corpus and its sha1, the versions of what it ran on
    vocab.json         the tokens in the order of their numbers
    text.txt           the text it was trained on, byte for byte
    metrics.csv        one row an epoch
    model.safetensors  the weights, under the names torch.nn uses
    curve.png          perplexity over epochs

Every file is written under a temporary name and renamed. Only the JSON and safetensors files are ever read back.
"""

import csv
import dataclasses
import io
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

import fusedrnn
from fusedrnn.lm.corpus import decode
from fusedrnn.lm.errors import RunFolderError
from fusedrnn.lm.files import write_atomically
from fusedrnn.lm.model import LanguageModel, build_model
from fusedrnn.lm.plots import draw_curve
from fusedrnn.lm.text import Vocab, normalize
from fusedrnn.lm.trainer import Epoch, TrainConfig, Trainer

FORMAT = 1
FILES = ("config.json", "vocab.json", "text.txt", "metrics.csv", "model.safetensors", "curve.png")


class RunFolder:
    """A folder to write one run into. It is made, or found to be free, at once; nothing in it changes before begin().

    Raises RunFolderError when path holds anything and force is not set, when it holds something else than a run, and
    when it cannot be made.
    """

    def __init__(self, path: str | Path, force: bool = False):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            present = {entry.name for entry in self.path.iterdir()}
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {str(self.path)!r}: {error.strerror}") from None
        if present and not force:
            raise RunFolderError(
                f"the folder {str(self.path)!r} is not empty: choose another, or overwrite with --force"
            )
        if present and "config.json" not in present:
            raise RunFolderError(f"the folder {str(self.path)!r} holds something that is no run; it is left alone")

    def begin(self, trainer: Trainer) -> None:
        """Remove an earlier run's files and write all that is known before training."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        corpus = trainer.corpus
        config = {
            "format": FORMAT,
            "corpus": {"label": corpus.label, "sha1": corpus.sha1, "bytes": len(corpus.data)},
            "train": dataclasses.asdict(trainer.config),
            "environment": {
                "python": platform.python_version(),
                "fusedrnn": fusedrnn.__version__,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            },
        }
        self._write("text.txt", corpus.data)
        self._write("vocab.json", trainer.vocab.to_json().encode())
        self._write("config.json", (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode())

    def write_metrics(self, trainer: Trainer) -> None:
        """One row for each epoch so far, labelled with the corpus."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["corpus", *(field.name for field in dataclasses.fields(Epoch))])
        writer.writerows([trainer.corpus.label, *dataclasses.astuple(epoch)] for epoch in trainer.history)
        self._write("metrics.csv", table.getvalue().encode())

    def finish(self, trainer: Trainer) -> None:
        """Write what training gave: the weights, the metrics and the curve."""
        weights = {name: tensor.contiguous() for name, tensor in trainer.model.state_dict().items()}
        self._write("model.safetensors", safetensors.torch.save(weights))
        self.write_metrics(trainer)
        self._write("curve.png", draw_curve(trainer.history, describe(trainer.config, trainer.corpus.label)))

    def _write(self, name: str, data: bytes) -> None:
        write_atomically(self.path / name, data)


@dataclass(frozen=True)
class Run:
    """A finished run, read back. label names the corpus."""

    config: TrainConfig
    label: str
    vocab: Vocab
    model: LanguageModel


def load_run(path: str | Path, library: str | None = None, backend: str = "auto") -> Run:
    """Read a run folder; library and backend say what runs the model now, by default the library it was trained with.

    Raises RunFolderError when a file is missing, damaged, or does not fit the others; ConfigError for backend.
    """
    folder = Path(path)
    config, label = _read_config(folder / "config.json")
    config = dataclasses.replace(config, library=library or config.library, backend=backend)
    vocab = _read_vocab(folder / "vocab.json")
    weights = _read_weights(folder / "model.safetensors")
    misfit = RunFolderError(f"{folder / 'model.safetensors'}: not the weights that config.json and vocab.json describe")
    last_layer = weights.get(f"rnn.weight_hh_l{config.layers - 1}")
    if last_layer is None or last_layer.shape[-1] != config.hidden:
        raise misfit
    model = build_model(len(vocab), config.cell, config.hidden, config.layers, library=config.library, backend=backend)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise misfit from None
    return Run(config, label, vocab, model)


def held_out(path: str | Path, run: Run) -> tuple[str, str]:
    """Of the text a run was trained on, what it was not trained on, and a label for it.

    Raises RunFolderError when that is nothing, and when text.txt is missing or damaged.
    """
    file = Path(path) / "text.txt"
    try:
        text = normalize(decode(_read(file)), run.config.tokens)
    except UnicodeDecodeError:
        raise RunFolderError(f"{file}: not the UTF-8 text of a run") from None
    if not run.config.max_tokens:
        raise RunFolderError(f"{str(path)!r} was trained on the whole of its text: name another one")
    return text[run.config.max_tokens :], f"{run.label} it was not trained on"


def describe(config: TrainConfig, label: str) -> str:
    """The run in a few words, for titles: 'gru 256, timemachine, first 10,000 tokens'."""
    size = f"{config.layers}x{config.hidden}" if config.layers > 1 else f"{config.hidden}"
    extent = f"first {config.max_tokens:,} tokens" if config.max_tokens else "whole text"
    return f"{config.cell} {size}, {label}, {extent}"


def _read_config(path: Path) -> tuple[TrainConfig, str]:
    try:
        content: Any = json.loads(_read(path))
        if content["format"] != FORMAT:
            raise RunFolderError(f"{path}: format {content['format']!r}, this version reads {FORMAT}")
        return TrainConfig(**content["train"] | {"backend": "auto"}), str(content["corpus"]["label"])
    except RunFolderError:
        raise
    except KeyError as error:
        raise RunFolderError(f"{path}: no entry {error}") from None
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{path}: {error}") from None


def _read_vocab(path: Path) -> Vocab:
    try:
        return Vocab.from_json(_read(path).decode())
    except RunFolderError:
        raise
    except ValueError as error:
        raise RunFolderError(f"{path}: {error}") from None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        weights = safetensors.torch.load(_read(path))
    except safetensors.SafetensorError as error:
        raise RunFolderError(f"{path}: {error}") from None
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise RunFolderError(f"{path}: {name} holds numbers that are not finite")
    return weights


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"cannot read {str(path)!r} of a finished run: {error.strerror}") from None
