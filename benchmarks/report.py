"""Write the report, benchmarks/README.md and its plots, from the files in benchmarks/results. Nothing is measured.

python -m benchmarks.report [--results FOLDER] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import plots, speed_targets, tables
from benchmarks.record import RESULTS, Record, Row
from fusedrnn.lm.files import write_atomically

HEAD = """# Benchmarks

Written by `python -m benchmarks.report` from the files in `results/`, which `make bench` measures.

A ratio is the time of `torch.nn` over that of the side named, the median of paired rounds with the 20th and 80th
percentile; above 1 is faster. All sides of a problem take turns in the same rounds, each after its outputs and all its
gradients agreed with float64. A row is marked lost where even its 80th percentile is below 1. Sizes are T x B, inputs,
hidden units: {sizes}. GEMMs: the products of all steps as one `torch.mm` each. Tokens are int64, of which `torch.nn`
makes one-hot rows first.
"""


def cpu_files(folder: Path) -> dict[Path, dict[str, Any]]:
    """Those with rows of a CPU, the newest first."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        if (
            isinstance(kept, dict)
            and "rows" in kept
            and any(row.layer and row.layer.device == "cpu" for row in Record.load(path).rows)
        ):
            found[path] = kept
    return dict(sorted(found.items(), key=lambda item: item[1]["date"], reverse=True))


def caption(machine: dict[str, Any], date: str) -> str:
    versions = ", ".join((*machine["versions"], *machine.get("peers", ())))
    return f"{machine['processor']}, {machine['cores']} cores, {machine['instructions']}; {versions}; {date}"


def section(path: Path, kept: dict[str, Any], pictures: dict[str, str]) -> str:
    """Markdown for one machine. `pictures`: titles of plots and where they are."""
    rows = [row for row in Record.load(path).rows if row.layer is None or row.layer.device == "cpu"]
    lines = [f"## {caption(kept['machine'], kept['date'])}", "", "### Targets", ""]
    lines += tables.markdown_heads(["", "target", "measured", ""])
    lines += [tables.markdown_line([t.what, t.wanted, t.measured, t.verdict]) for t in speed_targets.targets(rows)]
    for title, place in pictures.items():
        lines += ["", f"### {title}", "", f"![{title}]({place})"]
    for title, own in _tables(rows).items():
        lines += ["", f"### {title}", "", *tables.layers(own)]
    return "\n".join(
        [*lines, "", "### Training steps, cold start, cuts of the time loop", "", *tables.others(rows), ""]
    )


def _tables(rows: list[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if problem := row.layer:
            dtype = "float32" if problem.precision == "ieee" else problem.precision
            groups.setdefault(f"All rows: {dtype}, {problem.work}", []).append(row)
    return dict(sorted(groups.items(), reverse=True))


def write(results: Path, out: Path) -> Path:
    """The report and its plots, in a folder for each file; returns the report's path."""
    files = cpu_files(results)
    sizes = "; ".join(f"{name} {s.T} x {s.B}, {s.I}, {s.H}" for name, s in tables.SIZES.items())
    parts = [HEAD.format(sizes=sizes)]
    for path, kept in files.items():
        folder = out / "plots" / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {}
        for name, (title, png) in plots.draw(Record.load(path).rows, caption(kept["machine"], kept["date"])).items():
            write_atomically(folder / f"{name}.png", png)
            pictures[title] = f"plots/{path.stem}/{name}.png"
        parts.append(section(path, kept, pictures))
    target = out / "README.md"
    write_atomically(target, "\n".join(parts).encode())
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the files")
    parser.add_argument("--out", type=Path, default=RESULTS.parent, help="folder for README.md and plots/")
    given = parser.parse_args()
    print(f"written: {write(given.results, given.out)}")


if __name__ == "__main__":
    main()
