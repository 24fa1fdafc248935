"""`fusedrnn eval`: how well a trained model foretells a text."""

import argparse
import sys
import time

from fusedrnn.cli.arguments import CORPUS, Commands, Help, add_data, add_run, check_device, filled
from fusedrnn.lm.corpus import load_corpus
from fusedrnn.lm.text import TOKENIZERS, UNKNOWN


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="say how well a trained model foretells a text",
        description="Print the perplexity and nats a token and the bits a character of a text, read as one stream from "
        "a state of zeros. Without TEXT it is what the run was not trained on of its own text: its test part, else its "
        "validation part, else what lies beyond --max-tokens.",
        formatter_class=Help,
    )
    parser.set_defaults(command=run)
    add_run(parser)
    parser.add_argument("text", type=filled, metavar="TEXT", nargs="?", help=CORPUS)
    add_data(parser)


def run(arguments: argparse.Namespace) -> int:
    from fusedrnn.lm.evaluation import evaluate
    from fusedrnn.lm.run_folder import describe, held_out, load_run

    check_device(arguments.device)
    trained = load_run(arguments.run, arguments.library, arguments.backend)
    tokenizer = TOKENIZERS[trained.config.tokens]
    if arguments.text is None:
        tokens, label = held_out(arguments.run)
    else:
        corpus = load_corpus(arguments.text, arguments.data)
        tokens, label = tokenizer.split(corpus.text), corpus.label
    numbers = trained.vocab.encode(tokens).to(arguments.device)
    model = trained.model.to(arguments.device)
    start = time.perf_counter()
    found = evaluate(model, numbers)
    speed = f"{found.tokens / (time.perf_counter() - start):,.0f} tokens/s"
    characters = len("".join(tokenizer.spell(tokens[1:])))
    bits = found.bits * found.tokens / characters
    sizes = f"{found.tokens:,} {tokenizer.unit}s"
    if tokenizer.unit != "character":
        sizes += f", {characters:,} characters,"
    print(
        f"perplexity {found.perplexity:.3f} and {found.nats:.4f} nats a {tokenizer.unit}, {bits:.4f} bits a character "
        f"on {sizes} of {label}"
    )
    if unknown := sum(token not in trained.vocab for token in tokens[1:]):
        print(f"{unknown:,} of them are not in its vocabulary and were scored as {UNKNOWN}")
    print(f"# {describe(trained.config, trained.label)}; {speed}", file=sys.stderr)
    return 0
