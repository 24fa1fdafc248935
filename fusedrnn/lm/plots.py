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
    """Training and, where there is one, validation perplexity over epochs, on a logarithmic scale, as a PNG. The legend
    has the last value of the training and the lowest of the validation, which is marked.
    """
    validation = _validation(history, "validation")
    axes, figure = _axes(title)
    _draw(axes, _training(history, "training"), "tab:blue", -1)
    if validation:
        _draw(axes, validation, "tab:orange", validation.best)
    return _png(figure, axes)


def draw_runs(histories: Mapping[str, Sequence[Epoch]], title: str) -> bytes:
    """Several runs by name, as a PNG: validation perplexities where all have one, training dotted beside them; else
    training alone. The legend has the lowest value of the validation, else the last of the training.
    """
    axes, figure = _axes(title)
    validated = all(_validation(history, "") for history in histories.values())
    for number, (name, history) in enumerate(histories.items()):
        color = f"C{number % 10}"
        line = _validation(history, name) if validated else _training(history, name)
        assert line
        _draw(axes, line, color, line.best if validated else -1)
        if validated:
            training = _training(history, "")
            axes.plot(training.epochs, training.perplexities, color=color, linewidth=1, linestyle="dotted")
    axes.set_ylabel("validation perplexity (training dotted)" if validated else "training perplexity")
    return _png(figure, axes)


def _training(history: Sequence[Epoch], name: str) -> Line:
    return Line(name, [epoch.epoch for epoch in history], [epoch.perplexity for epoch in history])


def _validation(history: Sequence[Epoch], name: str) -> Line | None:
    known = [(epoch.epoch, epoch.validation_perplexity) for epoch in history if epoch.validation_perplexity is not None]
    return Line(name, [number for number, _ in known], [value for _, value in known]) if known else None


def _axes(title: str) -> tuple[Axes, Figure]:
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(steps=(1, 2, 5, 10), integer=True))
    axes.set(xlabel="epoch", ylabel="perplexity")
    axes.set_title(_drawable(title), wrap=True)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return axes, figure


def _drawable(text: str) -> str:
    """What matplotlib draws as this text: its font has what is printable of Latin-1, and between two dollars it reads
    mathematics.
    """
    known = "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)
    return known.encode("latin-1", "backslashreplace").decode("latin-1").replace("$", r"\$")


def _draw(axes: Axes, line: Line, color: str, place: int) -> None:
    """A line, with the value at that place of it in the legend, and a mark there unless it is the last."""
    value = line.perplexities[place]
    label = _drawable(f"{line.name} {value:.2f}")
    if label.startswith("_"):  # which keeps it out of the legend
        label = f" {label}"
    axes.plot(line.epochs, line.perplexities, color=color, linewidth=1.6, label=label)
    if place >= 0 or len(line.epochs) == 1:
        axes.plot(line.epochs[place], value, color=color, marker="o", markersize=4)


def _png(figure: Figure, axes: Axes) -> bytes:
    low, _ = axes.get_ylim()
    axes.set_ylim(bottom=1 if low < 3 else low)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
