"""Torch's own library as torch.nn calls it: all layers at once, and their gradients.

Between a layer and oneDNN or cuDNN there is then nothing that torch.nn does not have there too. The backend `torch`,
which is for an op of ours, runs one layer, copies the weights into a buffer for cuDNN in every call, and asks a GPU how
a sequence is packed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusedrnn import checks, dispatch, ops, stack
from fusedrnn.backends.torch import float32_precision
from fusedrnn.call import Weights
from fusedrnn.cells import CELLS
from fusedrnn.stack import Rows

FIELDS = len(Weights._fields)


def run(
    cell, x, h0, c0, weights, rows, D, batch_major, schedule, memory, backend
) -> tuple[Tensor, Tensor, Tensor] | None:
    """y, h_n and c_n, empty where the cell has none; None where the library is not to run all layers, or somebody is to
    see what they are made of. Arguments as those of `stack.run`."""
    named = dispatch.requested(backend)
    if not (named == "torch" or (named == "auto" and x.is_cuda)):
        return None
    flat = tuple(itertools.chain(*weights))
    given = (x, h0, c0, *flat)
    if ops.anything_listens() or not ops.are_plain(given) or torch._C._is_any_autocast_enabled():
        return None
    differentiate = torch.is_grad_enabled() and any([t.requires_grad for t in given if t is not None])
    batch_sizes, lengths, resets = rows
    places = (batch_sizes, lengths if batch_sizes is None else batch_sizes, resets)
    save, precision = memory if differentiate else "none", stack.precision_of(weights[0].w_ih)
    for w in weights[::D]:
        facts = stack.facts_of(cell, x, h0, w, places, D, batch_major, schedule, save, precision)
        if stack.select(named, *facts) != "torch":
            return None
    if not _fit(cell, x, h0, c0, weights, D):
        return None  # an op of ours says what does not
    layers = Layers(cell, rows, D, schedule, precision, differentiate)
    if batch_sizes is None and len(x) == 1 == len(weights) and weights[0].w_hr is None:
        y, h_n, *c_n = layers.by_cell(x, h0, c0, *flat[:4])
    elif x.is_cuda and len({w.untyped_storage().data_ptr() for w in flat if w is not None}) > 1:
        return None  # cuDNN wants them in one buffer, where a module keeps them: it would warn, and copy them
    elif not differentiate:
        y, h_n, *c_n = layers.by_library(x, h0, c0, *flat)
    elif _somebody_takes_what_is_saved():
        return None
    else:
        y, h_n, *c_n = _apply(layers, x, h0, c0, *flat)
    if batch_major:
        y = y.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    return y, h_n, c_n[0] if c_n else y.new_empty(0)


def _fit(cell: str, x: Tensor, h0: Tensor, c0: Tensor | None, weights: Sequence[Weights], D: int) -> bool:
    """Whether the sizes do, which oneDNN does not ask: a parameter may have other data since they were checked."""
    w = weights[0]
    H = w.w_ih.shape[0] // len(CELLS[cell].gates)
    states = h0.shape[2] == w.w_hh.shape[-1] and (c0 is None or c0.shape[2] == H)
    return states and x.shape[-1] == w.w_ih.shape[-1] and not checks.weights(cell, weights, D)


def _somebody_takes_what_is_saved() -> bool:
    """Whether there are hooks of torch.autograd.graph, which are to see it once, and in the order it is asked for."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None


class Layers(NamedTuple):
    """All layers as functions of x, h0, c0 and, one `Weights` after the other, all weights."""

    cell: str
    rows: Rows
    D: int
    schedule: str
    precision: str
    train: bool

    def by_cell(self, x: Tensor, h0: Tensor, c0: Tensor | None, *weights: Tensor | None) -> tuple[Tensor, ...]:
        """A single step of a layer by that of torch.nn's cells, whose gradients can be differentiated."""
        state = h0[0] if c0 is None else (h0[0], c0[0])
        after = getattr(torch._VF, f"{self.cell}_cell")(x[0], state, *weights)
        h_n, *c_n = (t.unsqueeze(0) for t in ((after,) if c0 is None else after))
        return h_n.clone(), h_n, *c_n

    def by_library(self, x: Tensor, h0: Tensor, c0: Tensor | None, *flat: Tensor | None) -> tuple[Tensor, ...]:
        """y, h_n and, where there is c0, c_n, by torch.nn's call."""
        state = h0.contiguous() if c0 is None else (h0.contiguous(), c0.contiguous())
        given = [w for w in flat if w is not None]
        how = (given, flat[2] is not None, len(flat) // (FIELDS * self.D), 0.0, self.train, self.D == 2)
        call, batch_sizes = getattr(torch._VF, self.cell), self.rows.batch_sizes
        return call(x, state, *how, False) if batch_sizes is None else call(x, batch_sizes, state, *how)

    def by_ops(self, x: Tensor, h0: Tensor, c0: Tensor | None, *flat: Tensor | None) -> tuple[Tensor, ...]:
        """The same by ops of ours, whose gradients can be differentiated, and seen."""
        weights = tuple(Weights._make(flat[k : k + FIELDS]) for k in range(0, len(flat), FIELDS))
        y, h_n, c_n = stack.run(self.cell, x, h0, c0, weights, self.rows, self.D, False, self.schedule, "full", "torch")
        return (y, h_n) if c0 is None else (y, h_n, c_n)


class LibraryFunction(torch.autograd.Function):
    """`Layers.by_library` with torch's own derivative, whose graph this node keeps.

    Where that derivative is to be differentiated, or seen, the layers are computed again, by ops of ours.
    """

    @staticmethod
    def forward(ctx, layers: Layers, *arguments: Any):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments)
        needed = ctx.needs_input_grad[1:]
        own: list[Any] = [
            t if t is None else t.detach().requires_grad_(n) for t, n in zip(arguments, needed, strict=True)
        ]
        with torch.enable_grad():
            outputs = layers.by_library(*own)
        ctx.layers, ctx.graph = layers, (own, outputs)
        return tuple([t.detach() for t in outputs])

    @staticmethod
    def backward(ctx, *cotangents: Tensor | None):
        needed, arguments = ctx.needs_input_grad[1:], ctx.saved_tensors  # torch refuses here what is over
        of = [k for k, cotangent in enumerate(cotangents) if cotangent is not None]
        if not of:
            return None, *(None for _ in needed)
        create, keep = torch.is_grad_enabled(), torch._C._autograd._get_current_graph_task_keep_graph()
        own, outputs = ctx.graph
        if create or ops.anything_listens():
            own = [t if t is None else t.view_as(t) for t in arguments]  # x may lead to h0, too
            with torch.enable_grad():
                outputs = ctx.layers.by_ops(*own)
        if not keep:
            ctx.graph = None
        wanted: list[Any] = [t for t, need in zip(own, needed, strict=True) if need]
        with float32_precision(outputs[0].dtype, ctx.layers.precision):
            found = torch.autograd.grad(
                [outputs[k] for k in of], wanted, [cotangents[k] for k in of],
                retain_graph=keep, create_graph=create, allow_unused=True,
            )  # fmt: skip
        grads = iter(found)
        return None, *(next(grads) if need else None for need in needed)


_apply = super(torch.autograd.Function, LibraryFunction).apply
