"""All that a run's rest depends on, in one safetensors file, so that it can be gone on with to the bit.

The file before it is kept beside it. At any moment one of the two is whole: a new one is written under a temporary name
and flushed to the disk, then the last is renamed to the file before, then the new one to the last.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from fusedrnn.lm.errors import RunFolderError
from fusedrnn.lm.files import write_atomically
from fusedrnn.lm.trainer import Trainer

FORMAT = 1
LAST, BEFORE = "checkpoint.safetensors", "checkpoint-before.safetensors"
# What may differ between the run that left a checkpoint and the one that goes on from it.
FREE = ("epochs", "patience", "save_every", "backend", "compile")


def save(folder: Path, trainer: Trainer) -> None:
    """Leave the trainer's state in the folder. Raises OSError: then what was there is as it was, or the file before."""
    tensors, facts = trainer.state()
    metadata = json.dumps({"format": FORMAT, "run": _identity(trainer), "state": facts}, sort_keys=True)
    data = safetensors.torch.save(tensors, {"fusedrnn": metadata, "sum": _sum(tensors, metadata)})
    write_atomically(folder / LAST, data, keep=folder / BEFORE)


def load(folder: Path, trainer: Trainer) -> str:
    """Let the trainer go on from the folder's last checkpoint; where that cannot be, from the one before it; where
    there is none yet, from the start.

    Returns what was wrong with the last one, or nothing. Raises RunFolderError where neither serves.
    """
    wrong: list[str] = []
    if not any((folder / name).exists() for name in (LAST, BEFORE)):
        return ""
    for name in (LAST, BEFORE):
        try:
            tensors, facts = _read(folder / name, trainer)
        except RunFolderError as error:
            wrong.append(str(error))
            continue
        trainer.restore(tensors, facts)
        return "; ".join(wrong)
    raise RunFolderError("; ".join(wrong))


def _read(path: Path, trainer: Trainer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise RunFolderError(f"cannot read {str(path)!r}: {error.strerror or 'there is no such file'}") from None
    except safetensors.SafetensorError as error:
        raise RunFolderError(f"{path}: damaged: {error}") from None
    if "fusedrnn" not in metadata:
        raise RunFolderError(f"{path}: no checkpoint of fusedrnn")
    if metadata.get("sum") != _sum(tensors, metadata["fusedrnn"]):
        raise RunFolderError(f"{path}: damaged: its contents do not have the sum that was written with them")
    content = json.loads(metadata["fusedrnn"])
    if content["format"] != FORMAT:
        raise RunFolderError(f"{path}: format {content['format']!r}, this version reads {FORMAT}")
    here = _identity(trainer)
    if differing := [name for name in here if content["run"].get(name) != here[name]]:
        raise RunFolderError(f"{path}: of another run: {', '.join(differing)} differ")
    return tensors, content["state"]


def _identity(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint must agree in with the run that goes on from it."""
    config = dataclasses.asdict(trainer.config)
    return {name: value for name, value in config.items() if name not in FREE} | {"corpus": trainer.corpus.sha1}


def _sum(tensors: dict[str, torch.Tensor], metadata: str) -> str:
    digest = hashlib.blake2b(metadata.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
