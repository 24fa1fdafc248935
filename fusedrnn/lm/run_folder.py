"""The folder a training run leaves behind.

    config.json                    the options, the corpus and its sha1, the versions of what it ran on
    vocab.json                     the tokens in the order of their numbers
    text.txt                       the text it was trained on, byte for byte
    metrics.csv                    one row an epoch
    model.safetensors              the weights, under the names torch.nn uses: the best by validation, or the last
    checkpoint.safetensors         what the run goes on from, and the one before it: see fusedrnn.lm.checkpoint
    checkpoint-before.safetensors
    results.json                   once it has ended: loss and perplexity of training, validation and test
    curve.png                      perplexity over epochs

Every file is written under a temporary name and renamed. None that is read back can hold anything but data.
"""

import csv
import dataclasses
import io
import json
import os
import platform
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

import fusedrnn
from fusedrnn.lm import checkpoint
from fusedrnn.lm.config import THREADS, TrainConfig
from fusedrnn.lm.corpus import Corpus
from fusedrnn.lm.dataset import Dataset
from fusedrnn.lm.errors import RunFolderError
from fusedrnn.lm.evaluation import evaluate
from fusedrnn.lm.files import lock, write_atomically
from fusedrnn.lm.model import LanguageModel, build_model, distinct, with_ties
from fusedrnn.lm.text import Vocab
from fusedrnn.lm.trainer import Epoch, Trainer
from fusedrnn.lm.workers import ALONE, Workers

FORMAT = 1
FILES = (
    "config.json",
    "vocab.json",
    "text.txt",
    "metrics.csv",
    "model.safetensors",
    checkpoint.LAST,
    checkpoint.BEFORE,
    "results.json",
    "curve.png",
)
GIVEN = ("metrics.csv", "model.safetensors", "results.json")


class RunFolder:
    """A folder to write one run into. It is made, or found to be free, at once; nothing in it changes before begin().
    Until close(), or as long as this object lives, no other process can have one of the same folder.

    leads: of several workers the one that writes; the others only take part where all have to

    Raises RunFolderError when path holds anything and force is not set, when it holds something else than a run, when
    another process is training in it, and when it cannot be made.
    """

    _held: Callable[[], object] | None = None

    def __init__(self, path: str | Path, force: bool = False, leads: bool = True):
        self.path, self.leads = Path(path), leads
        if not leads:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            present = {entry.name for entry in self.path.iterdir()}
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {str(self.path)!r}: {error.strerror}") from None
        if present and not force:
            raise RunFolderError(
                f"the folder {str(self.path)!r} is not empty: choose another, or overwrite with --force"
            )
        left_alone = f"the folder {str(self.path)!r} holds something that is no run; it is left alone"
        if "config.json" in present:
            try:
                read_config(self.path)
            except RunFolderError as error:
                raise RunFolderError(f"{left_alone}: {error}") from None
        elif any(name not in FILES and not _is_temporary(name) for name in present):
            raise RunFolderError(left_alone)

    @classmethod
    def of(cls, path: str | Path, leads: bool = True) -> "RunFolder":
        """The folder of a run that is to go on. Raises RunFolderError when another process is training in it."""
        folder = cls.__new__(cls)
        folder.path, folder.leads = Path(path), leads
        if leads:
            folder._lock()
            folder._remove_temporary()
        return folder

    def _lock(self) -> None:
        try:
            descriptor = lock(self.path)
        except BlockingIOError:
            raise RunFolderError(f"another process is training in {str(self.path)!r}") from None
        if descriptor is not None:
            self._held = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Let other processes have it."""
        if self._held:
            self._held()

    def begin(self, trainer: Trainer) -> None:
        """Remove an earlier run's files and write all that is known before training."""
        if self.leads:
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
        self._remove_temporary()
        corpus = trainer.corpus
        self._write("text.txt", corpus.data)
        self._write("vocab.json", trainer.data.vocab.to_json().encode())
        self._write_config(trainer)

    def go_on(self, trainer: Trainer, from_before: bool) -> None:
        """In place of begin for a run that has gone on from a checkpoint: write its options as they are now.

        from_before: it was the one before the last; the last is no good and is removed, else the next would take the
            place of the only good one
        """
        if self.leads and from_before:
            (self.path / checkpoint.LAST).unlink(missing_ok=True)
        self._write_config(trainer)

    def _write_config(self, trainer: Trainer) -> None:
        corpus = trainer.corpus
        self._write_json("config.json", {
            "format": FORMAT,
            "corpus": {
                "label": corpus.label,
                "name": corpus.name,
                "stands_in_for": corpus.stands_in_for,
                "sha1": corpus.sha1,
                "bytes": len(corpus.data),
            },
            "train": dataclasses.asdict(trainer.config),
            "environment": {
                "python": platform.python_version(),
                "fusedrnn": fusedrnn.__version__,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": trainer.device.type,
            },
        })  # fmt: skip

    def save(self, trainer: Trainer) -> None:
        """Write what the run can go on from, and what it has given so far. Raises TrainingDiverged, and writes nothing
        then.
        """
        trainer.check()
        checkpoint.save(self.path, trainer)
        self.write_weights(trainer)
        self.write_metrics(trainer)

    def write_metrics(self, trainer: Trainer) -> None:
        """One row for each epoch so far, labelled with the corpus."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["corpus", *(field.name for field in dataclasses.fields(Epoch))])
        writer.writerows([trainer.corpus.label, *dataclasses.astuple(epoch)] for epoch in trainer.history)
        self._write("metrics.csv", table.getvalue().encode())

    def write_weights(self, trainer: Trainer) -> None:
        weights = distinct(trainer.best or trainer.model.state_dict())
        named = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        self._write("model.safetensors", safetensors.torch.save(named))

    def finish(self, trainer: Trainer) -> dict[str, Any]:
        """Write what training gave, a checkpoint of its end, and the curve; returns what results.json holds. Raises
        TrainingDiverged, and writes nothing then.
        """
        trainer.check()
        self.write_weights(trainer)
        self.write_metrics(trainer)
        results = results_of(trainer)
        self._write_json("results.json", results)
        if trainer.config.save_every:
            checkpoint.save(self.path, trainer)
        if self.leads:
            from fusedrnn.lm.plots import draw_curve  # who reads a run needs no matplotlib

            self._write("curve.png", draw_curve(trainer.history, describe(trainer.config, trainer.corpus.label)))
        return results

    def _remove_temporary(self) -> None:
        """What processes that were killed had begun to write."""
        for entry in self.path.iterdir() if self.leads else ():
            if _is_temporary(entry.name):
                entry.unlink(missing_ok=True)

    def _write_json(self, name: str, content: object) -> None:
        self._write(name, (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode())

    def _write(self, name: str, data: bytes) -> None:
        if self.leads:
            write_atomically(self.path / name, data)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def results_of(trainer: Trainer) -> dict[str, Any]:
    """Loss and perplexity of the last epoch's training, of the best validation, and of the test by the weights of the
    best validation; the test is one stream with its state carried.
    """
    last = trainer.history[-1]
    results: dict[str, Any] = {
        "corpus": trainer.corpus.label,
        "epochs": last.epoch,
        "steps": trainer.step,
        "seconds": last.seconds,
        "train": {"loss": last.loss, "perplexity": last.perplexity},
    }
    if trainer.best is not None:
        best = trainer.history[trainer.best_epoch - 1]
        of_best = {"loss": best.validation_loss, "perplexity": best.validation_perplexity}
        results["validation"] = {"epoch": best.epoch, **of_best}
    if len(trainer.data.test) > 1:
        found = evaluate(trainer.best_model(), trainer.data.test.to(trainer.device))
        results["test"] = {"tokens": found.tokens, "loss": found.nats, "perplexity": found.perplexity}
    return results


@dataclass(frozen=True)
class Run:
    """A run, read back. label names the corpus."""

    config: TrainConfig
    label: str
    vocab: Vocab
    model: LanguageModel


def load_run(path: str | Path, library: str | None = None, backend: str = "auto") -> Run:
    """Read a run folder; library and backend say what runs the model now, by default the library it was trained with.

    Raises RunFolderError when a file is missing, damaged, or does not fit the others; ConfigError for backend.
    """
    folder = Path(path)
    content = read_config(folder)
    config = dataclasses.replace(content.train, library=library or content.train.library, backend=backend)
    vocab = _read_vocab(folder / "vocab.json")
    weights = _read_weights(folder / "model.safetensors")
    misfit = RunFolderError(f"{folder / 'model.safetensors'}: not the weights that config.json and vocab.json describe")
    last_layer = weights.get(f"rnn.weight_hh_l{config.layers - 1}")
    if last_layer is None or last_layer.shape[-1] != config.hidden:
        raise misfit
    model = build_model(len(vocab), config)
    try:
        model.load_state_dict(with_ties(weights, config.tied))
    except RuntimeError:
        raise misfit from None
    return Run(config, content.label, vocab, model)


def resume(
    path: str | Path, device: torch.device | str = "cpu", workers: Workers = ALONE, **changes: Any
) -> tuple[Trainer, str]:
    """The trainer of a run folder, to go on from its last checkpoint; changes are options of checkpoint.FREE.

    Returns it, and what was wrong with the last checkpoint where the one before was taken. Raises RunFolderError, also
    where there is no checkpoint and the start would take away what the run has given.
    """
    folder = Path(path)
    content = read_config(folder)
    present = {entry.name for entry in folder.iterdir()}
    if present.isdisjoint((checkpoint.LAST, checkpoint.BEFORE)) and not present.isdisjoint(GIVEN):
        raise RunFolderError(f"the run in {str(path)!r} has no checkpoint to go on from; train it anew with --force")
    trainer = Trainer(dataclasses.replace(content.train, **changes), read_corpus(folder, content), device, workers)
    return trainer, checkpoint.load(folder, trainer)


def read_history(path: str | Path) -> list[Epoch]:
    """What metrics.csv holds, at least one epoch. Raises RunFolderError."""
    file = Path(path) / "metrics.csv"
    numbers: dict[str, Any] = {"epoch": int, "validation_loss": _or_none, "validation_perplexity": _or_none}
    names = [field.name for field in dataclasses.fields(Epoch)]
    data = _read(file)
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        history = [Epoch(**{name: numbers.get(name, float)(row[name]) for name in names}) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{file}: not the metrics of a run: {error}") from None
    if not history:
        raise RunFolderError(f"{file}: no epoch has ended yet")
    return history


def _or_none(text: str) -> float | None:
    return float(text) if text else None


def held_out(path: str | Path) -> tuple[Sequence[str], str]:
    """What a run was not trained on of its text, and a label for it: see Dataset.held_out.

    Raises RunFolderError when that is nothing, and when a file is missing or damaged.
    """
    folder = Path(path)
    content = read_config(folder)
    tokens, part = Dataset.of(content.train, read_corpus(folder, content)).held_out
    if not len(tokens):
        raise RunFolderError(f"{str(path)!r} was trained on the whole of its text: name another one")
    return tokens, f"{content.label}, {part}"


@dataclass(frozen=True)
class Content:
    """Of a config.json."""

    train: TrainConfig
    label: str
    name: str
    stands_in_for: str
    sha1: str
    threads: int


def read_corpus(folder: Path, content: Content) -> Corpus:
    """The text a run was trained on. Raises RunFolderError."""
    file = folder / "text.txt"
    train = content.train
    corpus = Corpus(content.name, _read(file), train.tokens, train.max_tokens or 0, content.stands_in_for)
    if corpus.sha1 != content.sha1:
        raise RunFolderError(f"{file}: its sha1 is {corpus.sha1}, and config.json says {content.sha1}")
    return corpus


def describe(config: TrainConfig, label: str) -> str:
    """The run in a few words, for titles: 'gru 256, timemachine, first 10,000 tokens'."""
    size = f"{config.layers}x{config.hidden}" if config.layers > 1 else f"{config.hidden}"
    extent = f"first {config.max_tokens:,} tokens" if config.max_tokens else "whole text"
    return f"{config.cell} {size}, {label}, {extent}"


def read_config(folder: str | Path) -> Content:
    """The config.json of a run. Raises RunFolderError."""
    path = Path(folder) / "config.json"
    try:
        content: Any = json.loads(_read(path))
        if content["format"] != FORMAT:
            raise RunFolderError(f"{path}: format {content['format']!r}, this version reads {FORMAT}")
        corpus, threads = content["corpus"], THREADS.check("threads", content["environment"]["threads"])
        train = TrainConfig(**content["train"])
        words = {key: str(corpus[key]) for key in ("label", "name", "stands_in_for", "sha1")}
        return Content(train, threads=threads, **words)
    except RunFolderError:
        raise
    except KeyError as error:
        raise RunFolderError(f"{path}: no entry {error}") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path}: {error}") from None


def _read_vocab(path: Path) -> Vocab:
    try:
        return Vocab.from_json(_read(path).decode())
    except RunFolderError:
        raise
    except (RecursionError, ValueError) as error:
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
        raise RunFolderError(f"cannot read {str(path)!r} of a run: {error.strerror}") from None
