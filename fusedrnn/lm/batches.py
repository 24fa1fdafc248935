"""Cut one long row of tokens into batches for truncated backpropagation through time.

sequential  the row is folded into B streams side by side; batch k+1 goes on where batch k stopped in every stream, so
            the state may be carried from one to the next.
random      the row is cut into pieces of T tokens and a batch is any B of them, so the state starts anew.

Each pass over the batches starts at a random offset below T (at T in the sequential case too), so that the cuts fall
elsewhere. The number of batches does not depend on that offset.
"""

from collections.abc import Iterator

import torch

from fusedrnn.lm.errors import CorpusError

SAMPLINGS = ("sequential", "random")


class Batches:
    """Iterate for one pass: pairs x, y of int64 [T, B], where y holds for every token of x the token that follows it.

    tokens: int64 [N]
    generator: where offsets and order are drawn from; torch's global one by default

    Raises CorpusError when tokens do not fill one batch and its last target: B * T + 1.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        batch_size: int,
        num_steps: int,
        sampling: str = "sequential",
        generator: torch.Generator | None = None,
    ):
        needed = batch_size * num_steps + 1
        if len(tokens) < needed:
            raise CorpusError(
                f"the text has {len(tokens):,} tokens and one batch takes {needed:,} "
                f"({batch_size} streams x {num_steps} steps, and the last target)"
            )
        self.tokens, self.batch_size, self.num_steps = tokens, batch_size, num_steps
        self.sampling, self.generator = sampling, generator or torch.default_generator
        self._last_offset = min(num_steps if sampling == "sequential" else num_steps - 1, len(tokens) - needed)

    def __len__(self) -> int:
        """Batches in one pass."""
        usable = len(self.tokens) - 1 - self._last_offset
        if self.sampling == "sequential":
            return usable // self.batch_size // self.num_steps
        return usable // self.num_steps // self.batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        offset = int(torch.randint(self._last_offset + 1, (), generator=self.generator))
        x, y = self.tokens[offset:-1], self.tokens[offset + 1 :]
        return self._sequential(x, y) if self.sampling == "sequential" else self._random(x, y)

    def _sequential(self, x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        length = len(x) // self.batch_size
        x, y = (row[: length * self.batch_size].view(self.batch_size, length).t().contiguous() for row in (x, y))
        for start in range(0, len(self) * self.num_steps, self.num_steps):  # x, y [length, B]
            yield x[start : start + self.num_steps], y[start : start + self.num_steps]

    def _random(self, x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        pieces = len(x) // self.num_steps
        x, y = (row[: pieces * self.num_steps].view(pieces, self.num_steps) for row in (x, y))
        order = torch.randperm(pieces, generator=self.generator).to(x.device)[: len(self) * self.batch_size]
        for chosen in order.view(-1, self.batch_size):
            yield x[chosen].t().contiguous(), y[chosen].t().contiguous()
