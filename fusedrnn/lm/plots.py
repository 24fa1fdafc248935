"""Draw a run's training curve."""

import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from fusedrnn.lm.trainer import Epoch


def draw_curve(history: Sequence[Epoch], title: str) -> bytes:
    """Perplexity over epochs, on a logarithmic scale, as a PNG; the last value is written beside the curve's end."""
    epochs = [epoch.epoch for epoch in history]
    perplexities = [epoch.perplexity for epoch in history]
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(epochs, perplexities, color="tab:blue", linewidth=1.6, marker="o" if len(history) == 1 else None)
    axes.annotate(
        f"{perplexities[-1]:.2f}",
        (epochs[-1], perplexities[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        color="tab:blue",
        annotation_clip=False,
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(steps=(1, 2, 5, 10), integer=True))
    axes.set_ylim(bottom=1)
    axes.set_xlim(left=0, right=epochs[-1])
    axes.set(xlabel="epoch", ylabel="training perplexity")
    drawable = title.encode("latin-1", "backslashreplace").decode("latin-1")
    axes.set_title(drawable, wrap=True, parse_math=False)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
