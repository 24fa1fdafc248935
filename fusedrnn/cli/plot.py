"""`fusedrnn plot`: the curves of runs."""

import argparse
from pathlib import Path

from fusedrnn.cli.arguments import Commands, Help, filled
from fusedrnn.lm.errors import ConfigError
from fusedrnn.lm.files import write_atomically


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "plot",
        help="draw the curves of runs",
        description="Draw training and validation perplexity of a run, finished or not, or of several side by side.",
        formatter_class=Help,
    )
    parser.set_defaults(command=run)
    parser.add_argument("runs", type=filled, metavar="RUN", nargs="+", help="run folders that `fusedrnn train` left")
    parser.add_argument("--out", metavar="FILE", default="curves.png", help="a PNG file to write")
    parser.add_argument("--title", help="to write above it (default: what the run is)")


def run(arguments: argparse.Namespace) -> int:
    from fusedrnn.lm.plots import draw_curve, draw_runs
    from fusedrnn.lm.run_folder import describe, read_config, read_history

    out = Path(arguments.out)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must name a PNG file, got {arguments.out!r}")
    histories = {name: read_history(name) for name in arguments.runs}
    if len(histories) == 1:
        ((name, history),) = histories.items()
        content = read_config(name)
        title = describe(content.train, content.label) if arguments.title is None else arguments.title
        picture = draw_curve(history, title)
    else:
        picture = draw_runs(histories, arguments.title or "")
    write_atomically(out, picture)
    print(f"curves {out}")
    return 0
