"""Tell how a training run is going: one line that rewrites itself on a terminal, plain lines anywhere else."""

from types import TracebackType
from typing import Self

import rich.console
import rich.progress
from rich.table import Column

from fusedrnn.lm.trainer import Epoch

STRETCHES = 20  # plain lines a run


class Progress:
    """A context manager to call with every epoch, and with every step. A plain line that cannot be written raises
    OSError: rich would end the process where a pipe is closed.

    batches: steps an epoch
    label: the corpus, named on every line
    console: where to write, standard output by default
    """

    def __init__(self, epochs: int, batches: int, label: str, console: rich.console.Console | None = None):
        self.epochs, self.label = epochs, label
        self.console = console or rich.console.Console(highlight=False, markup=False, soft_wrap=True)
        self._rewrites = self.console.is_terminal and not self.console.is_dumb_terminal
        self._line = rich.progress.Progress(
            rich.progress.TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True)),
            rich.progress.TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=self.console,
            expand=True,
        )
        self._task = self._line.add_task(label, total=epochs * batches, numbers="")

    def __enter__(self) -> Self:
        if self._rewrites:
            self._line.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rewrites:
            self._line.stop()

    def advance(self, step: int) -> None:
        """After so many steps."""
        if self._rewrites:
            self._line.update(self._task, completed=step)

    def __call__(self, epoch: Epoch) -> None:
        if self._rewrites:
            self._line.update(self._task, numbers=self._numbers(epoch))
        elif self.ends_stretch(epoch):
            print(f"{self.label}  {self._numbers(epoch)}", file=self.console.file, flush=True)

    def ends_stretch(self, epoch: Epoch) -> bool:
        """Whether a plain line is due: after the first epoch, the last, and about STRETCHES in between."""
        stretch = -(-self.epochs // STRETCHES)
        return epoch.epoch in (1, self.epochs) or epoch.epoch % stretch == 0

    def _numbers(self, epoch: Epoch) -> str:
        remaining = round(epoch.seconds / epoch.epoch * (self.epochs - epoch.epoch))
        validation = ""
        if epoch.validation_perplexity is not None:
            validation = f"validation {epoch.validation_perplexity:.3f}  "
        return (
            f"epoch {epoch.epoch:{len(str(self.epochs))}}/{self.epochs}  loss {epoch.loss:.4f}  "
            f"perplexity {epoch.perplexity:.3f}  {validation}{epoch.tokens_per_second:,.0f} tokens/s  "
            f"ETA {remaining // 60}:{remaining % 60:02}"
        )
