"""All that a run's rest depends on, in one safetensors file, so that it can be gone on with to the bit.

The file before it is kept beside it. At any moment one of the two is whole: a new one is written under a temporary name
and flushed to the disk, then the last is renamed to the file before, then the new one to the last.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch

from fusedrnn.lm.errors import RunFolderError
from fusedrnn.lm.files import write_atomically
from fusedrnn.lm.model import distinct, tensors_of, with_ties
from fusedrnn.lm.trainer import Epoch, Trainer, random_state

Tensors: TypeAlias = dict[str, torch.Tensor]

FORMAT = 1
LAST, BEFORE = "checkpoint.safetensors", "checkpoint-before.safetensors"
# What may differ between the run that left a checkpoint and the one that goes on from it.
FREE = ("epochs", "patience", "save_every", "backend", "compile", "graph")


def save(folder: Path, trainer: Trainer) -> None:
    """Leave the trainer's state in the folder; of several workers all have to call it, and the first writes.

    Raises OSError: then what was there is as it was, or the file before.
    """
    tensors, facts = state_of(trainer)
    if not trainer.workers.leads:
        return
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
            restore(trainer, *_read(folder / name, trainer))
            return "; ".join(wrong)
        except RunFolderError as error:
            wrong.append(str(error))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            wrong.append(f"{folder / name}: not what a run saves: {' '.join(str(error).split())}")
    raise RunFolderError("; ".join(wrong))


def state_of(trainer: Trainer) -> tuple[Tensors, dict[str, Any]]:
    """All that the rest of the run depends on, and JSON beside it; of several workers all have to ask."""
    tensors = {f"model.{name}": weight for name, weight in distinct(trainer.model.state_dict()).items()}
    tensors |= {f"best.{name}": weight for name, weight in distinct(trainer.best or {}).items()}
    for number, slots in trainer.optimizer.state_dict()["state"].items():
        named = {f"optimizer.{number}.{name}": slot for name, slot in slots.items()}
        tensors |= {name: slot for name, slot in named.items() if slot is not None}
    own = {f"random.{name}": numbers for name, numbers in (trainer.random or random_state(trainer.device)).items()}
    for part, state in enumerate(trainer.states):
        own |= {f"carried.{part}.{number}": tensor for number, tensor in enumerate(tensors_of(state))}
    if trainer.losses:
        own["losses"] = torch.stack(trainer.losses)
    for rank, of_worker in enumerate(trainer.workers.gather(own)):
        tensors |= {f"worker.{rank}.{name}": tensor for name, tensor in of_worker.items()}
    facts = {
        "step": trainer.step,
        "seconds": trainer.seconds,
        "best_epoch": trainer.best_epoch,
        "scaler": trainer.scaler.state_dict(),
        "history": [dataclasses.asdict(epoch) for epoch in trainer.history],
    }
    tensors["batches"] = trainer.batches_random
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, facts


def restore(trainer: Trainer, tensors: Tensors, facts: dict[str, Any]) -> None:
    """Let the trainer go on from what state_of gave, for the same config, corpus and number of workers."""
    of = _grouped(tensors)
    tied = trainer.config.tied
    trainer.model.load_state_dict(with_ties(of["model"], tied))
    optimizer = trainer.optimizer.state_dict()
    slots = _grouped(of.get("optimizer", {}))
    optimizer["state"] = {int(number): named for number, named in slots.items()}
    trainer.optimizer.load_state_dict(optimizer)
    trainer.scaler.load_state_dict(facts["scaler"])
    trainer.batches.generator.set_state(tensors["batches"])
    trainer.begin_epoch()
    own = _grouped(_grouped(of["worker"])[str(trainer.workers.rank)])
    trainer.random = own["random"]
    trainer.losses = list(own["losses"][""].to(trainer.device)) if "losses" in own else []
    for part, named in _grouped(own.get("carried", {})).items():
        carried = [named[number].to(trainer.device) for number in sorted(named)]
        trainer.states[int(part)] = tuple(carried) if len(carried) == 2 else carried[0]  # type: ignore[assignment]
    best = {name: weight.to(trainer.device) for name, weight in of.get("best", {}).items()}
    trainer.best = with_ties(best, tied) if best else None
    trainer.best_epoch, trainer.step, trainer.seconds = facts["best_epoch"], facts["step"], facts["seconds"]
    trainer.history = [Epoch(**epoch) for epoch in facts["history"]]


def _grouped(named: Tensors) -> dict[str, Tensors]:
    """Of the names a.b and a.c: b and c under a."""
    groups: dict[str, Tensors] = {}
    for name, tensor in named.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = tensor
    return groups


def _read(path: Path, trainer: Trainer) -> tuple[Tensors, dict[str, Any]]:
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
    config = {name: value for name, value in dataclasses.asdict(trainer.config).items() if name not in FREE}
    return config | {"corpus": trainer.corpus.sha1, "processes": trainer.workers.count}


def _sum(tensors: Tensors, metadata: str) -> str:
    digest = hashlib.blake2b(metadata.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
