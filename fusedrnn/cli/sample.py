"""`fusedrnn sample`: let a trained model write."""

import argparse
import sys
import time

import torch

from fusedrnn.cli.arguments import Commands, Help, add_run, seed
from fusedrnn.lm.sampling import PROMPT, generate
from fusedrnn.lm.text import TOKENIZERS


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "sample",
        help="let a trained model write",
        description="Print a prompt and what the model of a run folder goes on with.",
        formatter_class=Help,
    )
    parser.set_defaults(command=run)
    add_run(parser)
    parser.add_argument("--prompt", default=PROMPT, help="text to go on from")
    parser.add_argument("--num-chars", type=int, default=200, metavar="N", help="characters to write")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest character")
    parser.add_argument("--seed", type=seed, default=0, help="of the draws, where the temperature is not 0")


def run(arguments: argparse.Namespace) -> int:
    from fusedrnn.lm.run_folder import describe, load_run

    trained = load_run(arguments.run, arguments.library, arguments.backend)
    tokenizer = TOKENIZERS[trained.config.tokens]
    prompt = tokenizer.split_prompt(arguments.prompt)
    generator = torch.Generator().manual_seed(arguments.seed)
    tokens = generate(trained.model, trained.vocab, prompt, arguments.num_chars, arguments.temperature, generator)
    print("".join(tokenizer.spell(prompt)), end="", flush=True)
    start = time.perf_counter()
    for piece in tokenizer.spell(tokens):
        print(piece, end="", flush=True)
    duration = time.perf_counter() - start
    print()
    speed = f"{arguments.num_chars / duration:,.0f} tokens/s"
    print(f"# {describe(trained.config, trained.label)}; {speed}", file=sys.stderr)
    return 0
