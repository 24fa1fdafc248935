"""`fusedrnn sample`: let a trained model write."""

import argparse
import itertools
import sys
import time
from pathlib import Path

import torch

from fusedrnn.cli.arguments import Commands, Help, add_run, check_device, count, filled, seed
from fusedrnn.lm.corpus import decode
from fusedrnn.lm.errors import ConfigError
from fusedrnn.lm.sampling import PROMPT, Choice, generate, generate_many
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
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default=PROMPT, help="text to go on from")
    prompt.add_argument(
        "--prompt-file", type=filled, metavar="FILE", help="a file with the text to go on from, - for standard input"
    )
    parser.add_argument("--length", type=int, default=200, metavar="N", help="tokens to write")
    parser.add_argument("--num", type=count, default=1, metavar="N", help="texts to write, side by side in one batch")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token; 1: as the model")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens, 0 for all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens of probability P together"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the draws, where the temperature is not 0")


def run(arguments: argparse.Namespace) -> int:
    from fusedrnn.lm.run_folder import describe, load_run

    check_device(arguments.device)
    choice = Choice(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
    trained = load_run(arguments.run, arguments.library, arguments.backend)
    tokenizer = TOKENIZERS[trained.config.tokens]
    prompt = tokenizer.split_prompt(_prompt(arguments))
    generator = torch.Generator(arguments.device).manual_seed(arguments.seed)
    given = (trained.model.to(arguments.device), trained.vocab, prompt, arguments.length)
    start = time.perf_counter()
    if arguments.num == 1:
        for piece in tokenizer.spell(itertools.chain(prompt, generate(*given, choice, generator))):
            print(piece, end="", flush=True)
        print()
    else:
        steps = list(generate_many(*given, arguments.num, choice, generator))
        texts = ([*prompt, *(step[number] for step in steps)] for number in range(arguments.num))
        print("\n\n".join("".join(tokenizer.spell(text)) for text in texts))
    speed = f"{arguments.num * arguments.length / (time.perf_counter() - start):,.0f} tokens/s"
    print(f"# {describe(trained.config, trained.label)}; {speed}", file=sys.stderr)
    return 0


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt_file is None:
        return str(arguments.prompt)
    origin = "standard input" if arguments.prompt_file == "-" else arguments.prompt_file
    if arguments.prompt_file == "-" and sys.stdin is None:
        raise ConfigError("cannot read standard input: it is closed")
    try:
        data = sys.stdin.buffer.read() if arguments.prompt_file == "-" else Path(arguments.prompt_file).read_bytes()
        return decode(data).removesuffix("\n")
    except OSError as error:
        raise ConfigError(f"cannot read {origin!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin} is not UTF-8: {error.reason} at byte {error.start}") from None
