"""A training step whose launches a GPU replays as one CUDA graph: Python and launches then cost the step nothing."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from fusedrnn.lm.errors import ConfigError
from fusedrnn.lm.model import State, each, tensors_of

WARM_UP = 3  # steps before the capture, in which libraries choose their kernels and optimizers make their slots

# x, y [T, B] and the carried state of each part of the streams; returns the loss and the states after.
Compute = Callable[[torch.Tensor, torch.Tensor, Sequence[State | None]], tuple[torch.Tensor, list[State]]]


class Recorder(Protocol):
    """What can record launches. `beside` is entered around steps that are run before."""

    def beside(self) -> contextlib.AbstractContextManager[object]: ...

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        """What launches the same again."""


class CudaGraphs:
    """CUDA's recorder. Steps before the capture run on a stream of their own, as torch.cuda.graph asks."""

    @contextlib.contextmanager
    def beside(self):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                launch()
        except RuntimeError as error:
            raise ConfigError(
                f"the step cannot be captured: {str(error).splitlines()[0]}; train with --no-graph"
            ) from None
        return graph.replay


class CapturedStep:
    """compute(x, y, states), all calls of which have the shapes of the first.

    The first WARM_UP calls run as they are. The next is recorded, on buffers that stay where they are, and launched, as
    it is by every later one: tokens are copied into the buffers, states stay in them, an absent state is zeros. The
    loss that is returned is a copy, the states are the buffers.
    """

    def __init__(self, compute: Compute, recorder: Recorder):
        self._compute, self._recorder = compute, recorder
        self._calls = 0
        self._launch: Callable[[], None] | None = None

    def __call__(
        self, x: torch.Tensor, y: torch.Tensor, states: Sequence[State | None]
    ) -> tuple[torch.Tensor, list[State]]:
        self._calls += 1
        if self._calls <= WARM_UP:
            with self._recorder.beside():
                loss, self._states = self._compute(x, y, states)
            return loss, self._states
        if self._launch is None:
            self._x, self._y = x.clone(), y.clone()
            self._states = [each(torch.Tensor.clone, state) for state in self._states]
        self._x.copy_(x)
        self._y.copy_(y)
        for buffer, state in zip(self._states, states, strict=True):
            _write(buffer, state)
        if self._launch is None:
            self._launch = self._recorder.record(self._run)
        self._launch()
        return self._loss.clone(), self._states

    def _run(self) -> None:
        self._loss, after = self._compute(self._x, self._y, self._states)
        for buffer, state in zip(self._states, after, strict=True):
            _write(buffer, state)


def _write(buffer: State, state: State | None) -> None:
    """Zeros where there is none."""
    given = tensors_of(state)
    for number, part in enumerate(tensors_of(buffer)):
        if not given:
            part.zero_()
        elif given[number] is not part:
            part.copy_(given[number])
