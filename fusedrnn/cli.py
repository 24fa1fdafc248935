"""The command line: `fusedrnn train | eval | sample | bench | info`, also as `python -m fusedrnn.cli`.

Whatever the user got wrong is said in one line on standard error, and the exit status is 2.
"""

import argparse
import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from fusedrnn import BackendError
from fusedrnn.lm.corpus import LANGUAGE_MODEL_CORPORA, Corpus, load_corpus, pydoc_in_place_of
from fusedrnn.lm.errors import BadInput, CorpusUnavailable
from fusedrnn.lm.sampling import continuation, generate
from fusedrnn.lm.text import UNKNOWN, normalize, normalize_prompt
from fusedrnn.lm.trainer import CHOICES, TrainConfig, Trainer

PROMPT = "time traveller"
LM_PACKAGES = {"matplotlib", "platformdirs", "rich", "safetensors"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. argparse's own errors and --help leave through SystemExit."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
        return status
    except (BadInput, BackendError) as error:
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'system'}: {error.strerror}")
    except ModuleNotFoundError as error:
        if error.name not in LM_PACKAGES:
            raise
        return _fail(f"the package {error.name} is missing: pip install 'fusedrnn[lm]'")
    except KeyboardInterrupt:
        print("fusedrnn: interrupted", file=sys.stderr)
        return 130


def train_command(arguments: argparse.Namespace) -> int:
    """Train, and leave a run folder."""
    from fusedrnn.lm.progress import Progress
    from fusedrnn.lm.run_folder import RunFolder, describe

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{name: value for name, value in vars(arguments).items() if name in names})
    corpus = _corpus(arguments)
    trainer = Trainer(config, corpus)
    folder = RunFolder(arguments.out or f"runs/{Path(corpus.name).stem}-{config.cell}-{config.hidden}", arguments.force)
    print(
        f"{describe(trainer.config, corpus.label)}: vocabulary {len(trainer.vocab)}, "
        f"{len(trainer.batches)} batches of {config.batch_size} x {config.steps}, threads {torch.get_num_threads()}"
    )
    with Progress(config.epochs, corpus.label) as progress:
        for epoch in trainer.run():
            if epoch.epoch == 1:
                folder.begin(trainer)
            progress(epoch)
            if progress.ends_stretch(epoch):
                folder.write_metrics(trainer)
    folder.finish(trainer)
    print(f"perplexity {epoch.perplexity:.3f} on {corpus.label} after {epoch.epoch} epochs, {epoch.seconds:.1f} s")
    print(continuation(trainer.model, trainer.vocab, _closing_prompt(trainer), num_chars=50))
    print(f"run folder {folder.path}")
    return 0


def eval_command(arguments: argparse.Namespace) -> int:
    """Print how well a trained model foretells a text."""
    from fusedrnn.lm.evaluation import evaluate
    from fusedrnn.lm.run_folder import describe, held_out, load_run

    run = load_run(arguments.run, arguments.library, arguments.backend)
    if arguments.text is None:
        text, label = held_out(arguments.run, run)
    else:
        corpus = load_corpus(arguments.text, arguments.data)
        text, label = normalize(corpus.text, run.config.tokens), corpus.label
    start = time.perf_counter()
    found = evaluate(run.model, run.vocab.encode(text))
    speed = f"{found.tokens / (time.perf_counter() - start):,.0f} tokens/s"
    print(
        f"perplexity {found.perplexity:.3f}, {found.nats:.4f} nats, {found.bits:.4f} bits a character "
        f"on {found.tokens:,} characters of {label}"
    )
    if found.unknown:
        print(f"{found.unknown:,} of them are not in its vocabulary and were scored as {UNKNOWN}")
    print(f"# {describe(run.config, run.label)}; {speed}", file=sys.stderr)
    return 0


def sample_command(arguments: argparse.Namespace) -> int:
    """Print a prompt and what a trained model goes on with; speed and origin go to standard error."""
    from fusedrnn.lm.run_folder import describe, load_run

    run = load_run(arguments.run, arguments.library, arguments.backend)
    prompt = normalize_prompt(arguments.prompt, run.config.tokens)
    generator = torch.Generator().manual_seed(arguments.seed)
    characters = generate(run.model, run.vocab, prompt, arguments.num_chars, arguments.temperature, generator)
    print(prompt, end="", flush=True)
    start = time.perf_counter()
    for character in characters:
        print(character, end="", flush=True)
    seconds = time.perf_counter() - start
    print()
    speed = f"{arguments.num_chars / seconds:,.0f} tokens/s"
    print(f"# {describe(run.config, run.label)}; {speed}", file=sys.stderr)
    return 0


def bench_command(arguments: argparse.Namespace) -> int:
    """Time one layer beside torch.nn; 1 where a check failed."""
    from fusedrnn.bench import command

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        return 0 if command.run(command.problem_of(arguments), arguments.seconds) else 1
    except BackendError:
        raise
    except RuntimeError as error:  # memory is short, or a size beyond what torch counts
        raise BadInput(str(error).splitlines()[0]) from error


def info_command(arguments: argparse.Namespace) -> int:
    """Say what is built, what is available, and why not."""
    from fusedrnn import info

    return info.main()


def _corpus(arguments: argparse.Namespace) -> Corpus:
    """The corpus that was asked for, or pydoc in its place when it cannot be had and that is allowed."""
    try:
        return load_corpus(arguments.corpus, arguments.data)
    except CorpusUnavailable as error:
        if arguments.strict_corpus:
            raise
        print(f"fusedrnn: {error}; training on pydoc instead", file=sys.stderr)
        return pydoc_in_place_of(arguments.corpus)


def _closing_prompt(trainer: Trainer) -> str:
    """The usual prompt, or the text's first characters where the text lacks a letter of it."""
    if all(character in trainer.vocab for character in PROMPT):
        return PROMPT
    return trainer.text[: len(PROMPT)]


def _fail(message: str) -> int:
    print(f"fusedrnn: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def _count(text: str) -> int:
    """An integer of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _seconds(text: str) -> float:
    """More than 0."""
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return number


def _seed(text: str) -> int:
    """An integer that torch takes as a seed."""
    if not 0 <= (number := int(text)) < 2**63:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2**63 - 1, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fusedrnn", description="Recurrent networks on fused kernels: train, evaluate, sample, time, inspect."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_train(commands)
    _add_eval(commands)
    _add_sample(commands)
    _add_bench(commands)
    info = commands.add_parser("info", help="versions, what is built, what is available and why not")
    info.set_defaults(command=info_command)
    return parser


def _add_train(commands: "argparse._SubParsersAction[_Parser]") -> None:
    train = commands.add_parser(
        "train",
        help="train a character language model",
        description="Train a character language model with SGD and leave a run folder with config.json, vocab.json, "
        "text.txt, metrics.csv, model.safetensors and curve.png.",
        formatter_class=_Help,
    )
    train.set_defaults(command=train_command)
    default = TrainConfig()
    train.add_argument(
        "corpus",
        metavar="CORPUS",
        nargs="?",
        default="timemachine",
        help=f"{', '.join(LANGUAGE_MODEL_CORPORA)}, or the path of a UTF-8 text file",
    )

    text = train.add_argument_group("text")
    text.add_argument(
        "--data", metavar="PATH", help="file or folder to take a named corpus from before any other place"
    )
    text.add_argument("--strict-corpus", action="store_true", help="fail if the corpus cannot be had, do not use pydoc")
    text.add_argument(
        "--tokens",
        choices=CHOICES["tokens"],
        default=default.tokens,
        help="course: lower-case letters and single spaces; char: every character as it is; "
        "auto: course for timemachine and pydoc, else char",
    )
    text.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="train on the first N tokens, 0 for all (default: 10000 for timemachine and pydoc, else 0)",
    )
    text.add_argument("--sampling", choices=CHOICES["sampling"], default=default.sampling, help="order of the batches")
    text.add_argument("--batch-size", type=int, default=default.batch_size, metavar="B", help="streams side by side")
    text.add_argument("--steps", type=int, default=default.steps, metavar="T", help="time steps gradients flow through")

    model = train.add_argument_group("model")
    model.add_argument("--cell", choices=CHOICES["cell"], default=default.cell, help="kind of recurrent layer")
    model.add_argument("--hidden", type=int, default=default.hidden, metavar="H", help="hidden units a layer")
    model.add_argument("--layers", type=int, default=default.layers, metavar="L", help="recurrent layers")
    model.add_argument(
        "--init", choices=CHOICES["init"], default=default.init, help="normal: weights from N(0, 0.01), biases zero"
    )

    optimization = train.add_argument_group("optimization")
    optimization.add_argument("--epochs", type=int, default=default.epochs, metavar="N", help="passes over the text")
    optimization.add_argument("--lr", type=float, default=default.lr, help="learning rate of SGD")
    optimization.add_argument(
        "--clip", type=float, default=default.clip, metavar="NORM", help="largest gradient norm, 0 for no clipping"
    )
    optimization.add_argument("--seed", type=_seed, default=default.seed, help="of the weights and the batches")

    run = train.add_argument_group("run")
    _add_library(run, default.library)
    run.add_argument("--threads", type=_count, metavar="N", help="CPU threads (default: torch's choice)")
    run.add_argument("--out", metavar="DIR", help="run folder (default: runs/CORPUS-CELL-HIDDEN)")
    run.add_argument("--force", action="store_true", help="overwrite the run that is in the run folder")


def _add_eval(commands: "argparse._SubParsersAction[_Parser]") -> None:
    evaluation = commands.add_parser(
        "eval",
        help="say how well a trained model foretells a text",
        description="Print the perplexity, nats and bits a character of a text, read as one stream from a state of "
        "zeros. Without TEXT it is what the run's own text has beyond the characters it was trained on.",
        formatter_class=_Help,
    )
    evaluation.set_defaults(command=eval_command)
    evaluation.add_argument("run", metavar="RUN", help="run folder that `fusedrnn train` left")
    evaluation.add_argument(
        "text",
        metavar="TEXT",
        nargs="?",
        help=f"{', '.join(LANGUAGE_MODEL_CORPORA)}, or the path of a UTF-8 text file",
    )
    evaluation.add_argument(
        "--data", metavar="PATH", help="file or folder to take a named corpus from before any other place"
    )
    _add_library(evaluation, None)


def _add_sample(commands: "argparse._SubParsersAction[_Parser]") -> None:
    sample = commands.add_parser(
        "sample",
        help="let a trained model write",
        description="Print a prompt and what the model of a run folder goes on with.",
        formatter_class=_Help,
    )
    sample.set_defaults(command=sample_command)
    sample.add_argument("run", metavar="RUN", help="run folder that `fusedrnn train` left")
    sample.add_argument("--prompt", default=PROMPT, help="text to go on from")
    sample.add_argument("--num-chars", type=int, default=200, metavar="N", help="characters to write")
    sample.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest character")
    sample.add_argument("--seed", type=_seed, default=0, help="of the draws, where the temperature is not 0")
    _add_library(sample, None)


def _add_bench(commands: "argparse._SubParsersAction[_Parser]") -> None:
    bench = commands.add_parser(
        "bench",
        help="time a layer of your sizes beside torch.nn",
        description="Time one layer on this CPU, forward and backward: torch.nn, what auto takes, every backend that "
        "can run it, and for float32 inference onnxruntime, where it and onnx are installed. All take turns, once "
        "their outputs and gradients agreed with float64: a side that did not has no time, and the exit status is 1. "
        "Ratios are medians of the time of torch.nn over that of the side in the same round: above 1 is faster.",
        formatter_class=_Help,
    )
    bench.set_defaults(command=bench_command)
    layer = bench.add_argument_group("layer")
    layer.add_argument("--cell", choices=("rnn", "gru", "lstm"), default="lstm", help="kind of layer; rnn: tanh")
    for name, default, what in (
        ("T", 35, "time steps"),
        ("B", 32, "sequences in the batch"),
        ("I", 28, "inputs"),
        ("H", 256, "hidden units"),
    ):
        layer.add_argument(f"--{name}", type=_count, default=default, metavar=name, help=what)
    layer.add_argument("--layers", type=_count, default=1, metavar="L", help="layers, one above the other")
    layer.add_argument("--bidirectional", action="store_true", help="both directions")
    layer.add_argument("--dtype", choices=("float32", "bfloat16", "float64"), default="float32", help="of all tensors")
    given = bench.add_argument_group("input")
    given.add_argument("--batch-first", action="store_true", help="[B, T, I] in place of [T, B, I]")
    given.add_argument("--packed", action="store_true", help="packed sequences of lengths drawn evenly from 1 to T")
    given.add_argument("--tokens", action="store_true", help="int64 tokens, of which torch.nn is given one-hot rows")
    run = bench.add_argument_group("run")
    run.add_argument("--inference", action="store_true", help="forward alone, without gradients")
    run.add_argument("--threads", type=_count, metavar="N", help="CPU threads (default: torch's choice)")
    run.add_argument("--seconds", type=_seconds, default=1.0, metavar="S", help="time for each side, beyond 5 rounds")


def _add_library(group: "argparse.ArgumentParser | argparse._ArgumentGroup", default: str | None) -> None:
    group.add_argument(
        "--library",
        choices=CHOICES["library"],
        default=default,
        help="torch: the control, torch.nn fed with one-hot rows" + ("" if default else " (default: as trained)"),
    )
    group.add_argument("--backend", default="auto", help="backend of the fused layers, see `fusedrnn info`")


if __name__ == "__main__":
    sys.exit(main())
