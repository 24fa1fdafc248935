"""`fusedrnn train`: train a language model, or go on with one."""

import argparse
import contextlib
import dataclasses
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from fusedrnn.cli import output
from fusedrnn.cli.arguments import CORPUS, Commands, Help, add_data, add_device, add_threads, check_device, filled
from fusedrnn.lm.config import TrainConfig, presets, read_preset, read_toml
from fusedrnn.lm.corpus import Corpus, load_corpus, pydoc_in_place_of
from fusedrnn.lm.errors import ConfigError, CorpusUnavailable
from fusedrnn.lm.sampling import PROMPT, continuation
from fusedrnn.lm.text import TOKENIZERS
from fusedrnn.lm.trainer import Epoch, Trainer
from fusedrnn.lm.workers import Workers, started

if TYPE_CHECKING:
    from fusedrnn.lm.run_folder import RunFolder

SIGPIPE = 13  # Windows has none of this name


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "train",
        usage="%(prog)s [CORPUS] [options]",
        help="train a language model, or go on with one",
        description="Train a language model and leave a run folder: options, vocabulary, text, metrics, weights, "
        "results and curve. Options are taken from --preset, over them those of --config, over them the flags.",
        formatter_class=Help,
    )
    parser.set_defaults(command=run)
    parser.add_argument("corpus", type=filled, metavar="CORPUS", nargs="?", help=f"{CORPUS} (default: timemachine)")
    start = parser.add_argument_group("start")
    start.add_argument("--preset", choices=presets(), metavar="NAME", help=f"a recipe: {', '.join(presets())}")
    start.add_argument(
        "--config", type=filled, metavar="FILE", help="a TOML file of options, underscores for dashes, and corpus"
    )
    start.add_argument(
        "--resume", type=filled, metavar="DIR", help="go on with a run, to the bit, from its last checkpoint"
    )
    groups = {name: parser.add_argument_group(name) for name in ("text", "model", "optimization", "run")}
    for field in dataclasses.fields(TrainConfig):
        _add_option(groups[field.metadata["group"]], field)
    add_data(groups["text"])
    groups["text"].add_argument(
        "--strict-corpus", action="store_true", help="fail if the corpus cannot be had, do not use pydoc"
    )
    add_threads(groups["run"])
    add_device(groups["run"], "where to train")
    groups["run"].add_argument("--tensorboard", action="store_true", help="write event files into the run folder too")
    groups["run"].add_argument(
        "--out", type=filled, metavar="DIR", help="run folder (default: runs/CORPUS-CELL-HIDDEN)"
    )
    groups["run"].add_argument("--force", action="store_true", help="overwrite the run that is in the run folder")


def _add_option(group: "argparse._ArgumentGroup", field: "dataclasses.Field[Any]") -> None:
    values, about = field.metadata["values"], field.metadata["about"]
    flag = f"--{field.name.replace('_', '-')}"
    if values.type is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=about)
        return
    if field.default is not None:
        about += f" (default: {field.default})"
    group.add_argument(
        flag,
        type=values.type,
        choices=values.choices or None,
        metavar=field.metadata["metavar"] or None,
        default=argparse.SUPPRESS,
        help=about,
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, alone or beside the workers that torchrun started, and leave a run folder."""
    check_device(arguments.device)
    given = {field.name: getattr(arguments, field.name) for field in _given(arguments)}
    begin = _new if arguments.resume is None else _resumed
    with started(arguments.device) as (workers, device), _told_by(workers):
        trainer, folder, start = begin(arguments, given, device, workers)
        with contextlib.closing(folder):
            return _train(trainer, folder, start, arguments.tensorboard)


def _train(trainer: Trainer, folder: "RunFolder", start: Callable[[], None], tensorboard: bool) -> int:
    """start: to be called once a step has succeeded, before anything else is written into the folder."""
    from fusedrnn.lm import plots  # noqa: F401  # else it would be missing once the training has ended
    from fusedrnn.lm.progress import Progress
    from fusedrnn.lm.run_folder import describe

    config, label, data, workers = trainer.config, trainer.corpus.label, trainer.data, trainer.workers
    print(
        f"{describe(config, label)}: vocabulary {len(data.vocab)}, {len(trainer.batches)} batches of "
        f"{config.batch_size} x {config.steps}, threads {torch.get_num_threads()}"
        + (f", processes {workers.count}" if workers.count > 1 else "")
    )
    interruption, first = Interruption(), trainer.step + 1
    watch = _watch(folder.path) if tensorboard and workers.leads else None

    def after_step() -> None:
        due = config.save_every and trainer.step % config.save_every == 0
        if trainer.step == first:
            start()
        number = workers.largest(interruption.signal, trainer.device)
        if due or number:
            folder.save(trainer)
        if number:
            raise Interrupted(number)
        progress.advance(trainer.step)

    try:
        with interruption, Progress(config.epochs, len(trainer.batches), label) as progress:
            for epoch in trainer.run(after_step):
                try:
                    progress(epoch)
                except BrokenPipeError:
                    output.discard()
                    interruption.signal = SIGPIPE
                if watch:
                    watch(epoch, trainer.step)
                if progress.ends_stretch(epoch):
                    folder.write_metrics(trainer)
    except Interrupted as interrupted:
        left = f"interrupted after step {trainer.step} of {trainer.steps}; go on: fusedrnn train --resume {folder.path}"
        print(left, file=sys.stderr if interrupted.number == SIGPIPE else sys.stdout)
        return 128 + interrupted.number
    results = folder.finish(trainer)
    _print_results(results)
    print(continuation(trainer.best_model(), data.vocab, _closing_prompt(trainer), 50, TOKENIZERS[config.tokens]))
    print(f"run folder {folder.path}")
    return 0


@contextlib.contextmanager
def _told_by(workers: Workers) -> Iterator[None]:
    """Only the one that leads has anything to print."""
    with contextlib.ExitStack() as stack:
        if not workers.leads:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield


def _given(arguments: argparse.Namespace) -> list["dataclasses.Field[Any]"]:
    return [field for field in dataclasses.fields(TrainConfig) if hasattr(arguments, field.name)]


def _new(
    arguments: argparse.Namespace, given: dict[str, Any], device: torch.device, workers: Workers
) -> "tuple[Trainer, RunFolder, Callable[[], None]]":
    from fusedrnn.lm.run_folder import RunFolder

    options = read_preset(arguments.preset) if arguments.preset else {}
    options |= read_toml(arguments.config) if arguments.config else {}
    name = arguments.corpus or options.pop("corpus", "timemachine")
    options.pop("corpus", None)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = TrainConfig(**options | given)
    corpus = _corpus(name, arguments)
    trainer = Trainer(config, corpus, device, workers)
    default = f"runs/{arguments.preset or f'{Path(corpus.name).stem}-{config.cell}-{config.hidden}'}"
    folder = RunFolder(arguments.out or default, arguments.force, workers.leads)
    return trainer, folder, lambda: folder.begin(trainer)


def _resumed(
    arguments: argparse.Namespace, given: dict[str, Any], device: torch.device, workers: Workers
) -> "tuple[Trainer, RunFolder, Callable[[], None]]":
    from fusedrnn.lm import checkpoint
    from fusedrnn.lm.run_folder import RunFolder, read_config, resume

    own = [name for name in ("corpus", "preset", "config", "data", "out") if getattr(arguments, name) is not None]
    own += [name for name in ("force", "strict_corpus") if getattr(arguments, name)]
    if refused := [*own, *(name for name in given if name not in checkpoint.FREE)]:
        free = ", ".join((*checkpoint.FREE, "threads", "device")).replace("_", "-")
        raise ConfigError(f"--resume goes on with the run's own {', '.join(refused)}: it takes {free}")
    threads = read_config(arguments.resume).threads
    torch.set_num_threads(arguments.threads or threads)
    folder = RunFolder.of(arguments.resume, workers.leads)
    trainer, warning = resume(arguments.resume, device, workers, **given)
    if warning:
        print(f"fusedrnn: {warning}; going on from the checkpoint before it", file=sys.stderr)
    if trainer.finished:
        raise ConfigError(
            f"the run in {arguments.resume!r} has ended; give it more --epochs than {trainer.config.epochs}"
        )
    if trainer.step == 0:
        return trainer, folder, lambda: folder.begin(trainer)
    return trainer, folder, lambda: folder.go_on(trainer, from_before=bool(warning))


def _corpus(name: str, arguments: argparse.Namespace) -> Corpus:
    """The corpus that was asked for, or pydoc in its place when it cannot be had and that is allowed."""
    try:
        return load_corpus(name, arguments.data)
    except CorpusUnavailable as error:
        if arguments.strict_corpus:
            raise
        print(f"fusedrnn: {error}; training on pydoc instead", file=sys.stderr)
        return pydoc_in_place_of(name)


def _closing_prompt(trainer: Trainer) -> str:
    """The usual prompt, or the text's first tokens that are known where the text lacks one of it."""
    tokenizer, vocab = TOKENIZERS[trainer.config.tokens], trainer.data.vocab
    if all(token in vocab for token in tokenizer.split_prompt(PROMPT)):
        return PROMPT
    known = (token for token in trainer.data.tokens if token in vocab)
    return "".join(tokenizer.spell(itertools.islice(known, len(PROMPT))))


def _print_results(results: dict[str, Any]) -> None:
    print(
        f"perplexity {results['train']['perplexity']:.3f} on {results['corpus']} after {results['epochs']} epochs, "
        f"{results['seconds']:.1f} s"
    )
    if best := results.get("validation"):
        print(f"best validation perplexity {best['perplexity']:.3f}, {best['loss']:.4f} nats, in epoch {best['epoch']}")
    if test := results.get("test"):
        print(f"test perplexity {test['perplexity']:.3f}, {test['loss']:.4f} nats on {test['tokens']:,} tokens")


def _watch(folder: Path) -> Callable[[Epoch, int], None]:
    """What writes an epoch's numbers, after so many steps, for TensorBoard."""
    import tensorboard  # noqa: F401  # else torch says in several lines that it is missing
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def write(epoch: Epoch, step: int) -> None:
        numbers: dict[str, float | None] = {"loss/training": epoch.loss, "perplexity/training": epoch.perplexity}
        numbers |= {"loss/validation": epoch.validation_loss, "perplexity/validation": epoch.validation_perplexity}
        numbers |= {"lr": epoch.lr, "tokens_per_second": epoch.tokens_per_second}
        for name, number in numbers.items():
            if number is not None:
                writer.add_scalar(name, number, step)
        writer.flush()

    return write


class Interrupted(Exception):
    """The run was left between two steps, because of a signal, or because nobody reads what it prints."""

    def __init__(self, number: int):
        self.number = number


class Interruption:
    """While it is entered, Ctrl-C and SIGTERM wait for the end of a step; a second one does not wait."""

    signal = 0

    def __enter__(self) -> "Interruption":
        numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
