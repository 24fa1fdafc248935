"""`fusedrnn bench`: one layer timed beside torch.nn."""

import argparse

import torch

from fusedrnn.cli.arguments import Commands, Help, add_threads, count, seconds


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="time a layer of your sizes beside torch.nn",
        description="Time one layer on this CPU, forward and backward: torch.nn, what auto takes, every backend that "
        "can run it, and for float32 inference onnxruntime, where it and onnx are installed. All take turns, once "
        "their outputs and gradients agreed with float64: a side that did not has no time, and the exit status is 1. "
        "Ratios are medians of the time of torch.nn over that of the side in the same round: above 1 is faster.",
        formatter_class=Help,
    )
    parser.set_defaults(command=run)
    layer = parser.add_argument_group("layer")
    layer.add_argument("--cell", choices=("rnn", "gru", "lstm"), default="lstm", help="kind of layer; rnn: tanh")
    for name, default, what in (
        ("T", 35, "time steps"),
        ("B", 32, "sequences in the batch"),
        ("I", 28, "inputs"),
        ("H", 256, "hidden units"),
    ):
        layer.add_argument(f"--{name}", type=count, default=default, metavar=name, help=what)
    layer.add_argument("--layers", type=count, default=1, metavar="L", help="layers, one above the other")
    layer.add_argument("--bidirectional", action="store_true", help="both directions")
    layer.add_argument("--dtype", choices=("float32", "bfloat16", "float64"), default="float32", help="of all tensors")
    given = parser.add_argument_group("input")
    given.add_argument("--batch-first", action="store_true", help="[B, T, I] in place of [T, B, I]")
    given.add_argument("--packed", action="store_true", help="packed sequences of lengths drawn evenly from 1 to T")
    given.add_argument("--tokens", action="store_true", help="int64 tokens, of which torch.nn is given one-hot rows")
    timing = parser.add_argument_group("run")
    timing.add_argument("--inference", action="store_true", help="forward alone, without gradients")
    add_threads(timing)
    timing.add_argument("--seconds", type=seconds, default=1.0, metavar="S", help="time for each side, beyond 5 rounds")


def run(arguments: argparse.Namespace) -> int:
    """Time one layer beside torch.nn; 1 where a check failed."""
    from fusedrnn.bench import command

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return 0 if command.run(command.problem_of(arguments), arguments.seconds) else 1
