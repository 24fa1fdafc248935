"""What layers and cells share: the options that torch.nn does not have, its modules in and out, checks of states."""

from __future__ import annotations

import contextlib
import operator
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from fusedrnn import checks, dispatch, stack
from fusedrnn.call import Weights

NO_ROWS = stack.Rows()


class Kept(NamedTuple):
    """What was found out about a module, for as long as it holds the very same parameters and options."""

    parameters: list[Any]
    weights: tuple[Weights, ...]  # checked
    op: Callable | None = None  # this and what follows: shortcut.Plan, without another look for it
    operands: Sequence[Any] = ()
    lstm: bool = False
    step: bool = False
    hows: Mapping = {}
    with_gradients: Mapping = {}


class Options(nn.Module):
    """The options torch.nn does not have. A default is kept on the class, so that pickles of either kind fit.

    Subclasses implement what raises NotImplementedError.
    """

    backend = "auto"
    schedule = "auto"
    stock: type[nn.Module]  # the class of torch.nn that this one stands in for
    _kept = Kept([], ())

    @classmethod
    def from_torch(cls, module: nn.Module, *, backend: str = "auto", schedule: str = "auto") -> Self:
        """This class in place of a torch.nn module, sharing its parameters, hooks and every other attribute.

        TypeError unless it is one of `stock` itself: the code of a subclass would be lost. And where its `compile` was
        called: what that left would go on to run the old module.
        """
        if type(module) is not cls.stock:
            raise TypeError(f"module: expected a torch.nn.{cls.stock.__name__}, got {_full_name(type(module))}")
        made = _in_place_of(module, cls)
        made._set_options(backend=backend, schedule=schedule)
        return made

    def to_torch(self) -> Any:
        """The torch.nn module again, sharing the same. ValueError where torch.nn has no such cell, TypeError as
        `from_torch`."""
        if "stock" not in type(self).__dict__:
            raise TypeError(f"to_torch: {_full_name(type(self))} is a subclass, whose own code would be lost")
        if not getattr(self, "reset_after", True):
            raise ValueError(f"to_torch: torch.nn.{self.stock.__name__} has no reset_after=False")
        if getattr(self, "_apart", False):
            raise ValueError(f"to_torch: torch.nn.{self.stock.__name__} has one hidden size for both directions")
        return _in_place_of(self, self.stock, without=_OURS)

    def _kept_weights(self) -> tuple[Weights, ...]:
        """Those that were checked, where they still hold; else none."""
        if torch.compiler.is_compiling():  # a compiler would guard on what is kept
            return ()
        kept = self._kept
        return kept.weights if same(kept.parameters, self._parameters.values()) else ()

    def _keep(self) -> Kept:
        """What is kept from now on, nothing where the parameters do not fit together or are not the module's own.

        At the first call already: a checkpoint that calls again is to find the same tensors saved.
        """
        held = self._parameters
        if list(held) == self._names_of_weights() and all(w is None or type(w) is nn.Parameter for w in held.values()):
            with contextlib.suppress(RuntimeError):
                self._weights()
                return self._kept
        return Kept([], ())

    def _names_of_weights(self) -> list[str]:
        """Of all parameters of the module as it was made."""
        raise NotImplementedError

    def _weights(self) -> tuple[Weights, ...]:
        """The parameters, checked, and kept for as long as the very same are there.

        RuntimeError where they do not fit together.
        """
        raise NotImplementedError

    def _set_options(self, **options) -> None:
        check_options(options["backend"], options["schedule"], options.get("memory", "full"))
        for name, value in options.items():
            if value != getattr(self, name):
                setattr(self, name, value)

    def __setattr__(self, name: str, value) -> None:
        if name in ("backend", "schedule", "memory"):
            check_options(**{"backend": "auto", "schedule": "auto", name: value})
        super().__setattr__(name, value)
        if name in _DECIDING:
            self.__dict__.pop("_kept", None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_kept"}

    def extra_repr(self) -> str:
        shown = (f", {name}={getattr(self, name)}" for name in ("reset_after", "schedule", "memory", "backend")
                 if name in self.__dict__ and getattr(self, name) != getattr(type(self), name))  # fmt: skip
        return super().extra_repr() + "".join(shown)


def same(some: Collection[Any], others: Collection[Any]) -> bool:
    """Whether these are the very same objects, in order."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def check_options(backend: str, schedule: str, memory: str = "full") -> None:
    dispatch.check_backend(backend)
    if misfit := checks.options(0.0, schedule, memory):
        raise ValueError(misfit)


# What a plan depends on beside the parameters and their sizes.
_DECIDING = frozenset(
    ("backend", "schedule", "memory", "reset_after", "mode", "nonlinearity", "batch_first", "dropout", "training")
)
_OURS = ("backend", "schedule", "memory", "reset_after", "_kept")


def _in_place_of(module: nn.Module, cls: type[nn.Module], without: Collection[str] = ()) -> Any:
    """A module of another class with the same attributes. TypeError where `module.compile` was called."""
    if module._compiled_call_impl is not None:
        raise TypeError("its call was compiled, which holds the old module: convert it before that")
    made = cls.__new__(cls)
    made.__dict__.update((name, value) for name, value in module.__dict__.items() if name not in without)
    hooks: Mapping[int, Any] = made._load_state_dict_pre_hooks  # the only ones that torch binds to a module
    for hook in hooks.values():
        if hook.with_module:
            hook.module = _Living(weakref.ref(made), hook.module)
    return made


class _Living(NamedTuple):
    """In place of a weak reference: the newer of two modules, while there is one."""

    newer: Callable
    older: Callable

    def __call__(self) -> nn.Module | None:
        newer = self.newer()
        return self.older() if newer is None else newer


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def check_states(x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    for what, tensors in (("hidden", states), ("parameter", weights)):
        for tensor in tensors:
            if tensor.device != x.device:
                raise RuntimeError(
                    f"Input and {what} tensors are not at the same device, "
                    f"found input tensor at {x.device} and {what} tensor at {tensor.device}"
                )
    for state in states:
        check_dtype(state, weights[0])


def check_dtype(tensor: Tensor, weight: Tensor) -> None:
    """The dtypes are to be the same; under autocast float64, which it leaves alone, is to be met by float64."""
    pair = tensor.dtype, weight.dtype
    if pair[0] == pair[1] or (torch._C._is_any_autocast_enabled() and torch.float64 not in pair):
        return
    got, wanted = (t.type().rpartition(".")[2].removesuffix("Tensor") for t in (tensor, weight))
    raise RuntimeError(f"mat1 and mat2 must have the same dtype, but got {got} and {wanted}")
