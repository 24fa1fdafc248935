"""Draw training curves: of one run, or of several side by side."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from fusedrnn.lm.trainer import Epoch


@dataclass(frozen=True)
class Line:
    """Perplexities over epochs, and what they are."""

    name: str
    epochs: list[int]
    perplexities: list[float]

    @property
    def best(self) -> int:
        """The place of the lowest."""
        return self.perplexities.index(min(self.perplexities))


def draw_curve(history: Sequence[Epoch], title: str) -> bytes:
    """Training and, where there is one, validation perplexity over epochs, on a logarithmic scale, as a PNG. The last
    value of the training and the lowest of the validation are written beside their lines.
    """
    lines = [_training(history, "training")]
    if validation := _validation(history, "validation"):
        lines.append(validation)
    axes, figure = _axes(title, "perplexity" if validation else "training perplexity")
    for line, color in zip(lines, ("tab:blue", "tab:orange"), strict=False):
        place = line.best if line is validation else -1
        _draw(axes, line, color, "solid", place)
    if validation:
        axes.legend(frameon=False)
    return _png(figure, axes)


def draw_runs(histories: Mapping[str, Sequence[Epoch]], title: str) -> bytes:
    """Several runs by name, as a PNG: validation perplexities where all have one, training dotted beside them; else
    training alone.
    """
    axes, figure = _axes(title, "perplexity")
    validated = all(_validation(history, "") for history in histories.values())
    for number, (name, history) in enumerate(histories.items()):
        color = f"C{number % 10}"
        line = _validation(history, name) if validated else _training(history, name)
        assert line
        _draw(axes, line, color, "solid", line.best if validated else -1)
        if validated:
            training = _training(history, "")
            axes.plot(training.epochs, training.perplexities, color=color, linewidth=1, linestyle="dotted")
    axes.set_ylabel("validation perplexity (training dotted)" if validated else "training perplexity")
    axes.legend(frameon=False)
    return _png(figure, axes)


def _training(history: Sequence[Epoch], name: str) -> Line:
    return Line(name, [epoch.epoch for epoch in history], [epoch.perplexity for epoch in history])


def _validation(history: Sequence[Epoch], name: str) -> Line | None:
    known = [(epoch.epoch, epoch.validation_perplexity) for epoch in history if epoch.validation_perplexity is not None]
    return Line(name, [number for number, _ in known], [value for _, value in known]) if known else None


def _axes(title: str, ylabel: str) -> tuple[Axes, Figure]:
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(steps=(1, 2, 5, 10), integer=True))
    axes.set(xlabel="epoch", ylabel=ylabel)
    drawable = title.encode("latin-1", "backslashreplace").decode("latin-1")
    axes.set_title(drawable, wrap=True, parse_math=False)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return axes, figure


def _draw(axes: Axes, line: Line, color: str, style: str, place: int) -> None:
    """A line, and the value at that place of it."""
    marker = "o" if len(line.epochs) == 1 else None
    axes.plot(
        line.epochs, line.perplexities, color=color, linewidth=1.6, linestyle=style, marker=marker, label=line.name
    )
    axes.annotate(
        f"{line.perplexities[place]:.2f}",
        (line.epochs[place], line.perplexities[place]),
        xytext=(6, 0) if place == -1 else (0, -10),
        textcoords="offset points",
        va="center",
        color=color,
        annotation_clip=False,
    )


def _png(figure: Figure, axes: Axes) -> bytes:
    axes.set_ylim(bottom=1)
    axes.set_xlim(left=0)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
