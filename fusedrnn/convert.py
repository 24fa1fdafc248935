"""`convert`: every RNN, GRU, LSTM and cell of torch.nn in a model becomes one of this package, in place, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fusedrnn import modules
from fusedrnn.modules.base import Options, check_options

_OURS = {cls.stock: cls for cls in (getattr(modules, name) for name in modules.__all__)}


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    model      the model that was given; where it was itself a recurrent module, what stands in its place
    converted  by name in the model: the class of each module that was replaced
    kept       by name in the model: why a recurrent module was left as it is
    """

    model: nn.Module
    converted: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        done = ", ".join(f"{name or 'the model itself'} ({cls})" for name, cls in self.converted.items())
        lines = [f"converted {len(self.converted)}{': ' * bool(done)}{done}"]
        lines += [f"kept {name or 'the model itself'}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)


def convert(model: nn.Module, *, to: str = "fusedrnn", backend: str = "auto", schedule: str = "auto") -> Conversion:
    """Replace the recurrent modules in `model` by those of fusedrnn, or, with to="torch", these by torch.nn's.

    In place, at any depth. A module and its replacement share parameters, buffers, hooks and the training flag, so
    optimizers, handles of hooks and checkpoints go on as before; a module that stands in two places is replaced by one.
    Kept are subclasses, whose own code would be lost, layers that were compiled themselves, not as part of a model, and
    what the other library has no equal for; `print` the result to see which. `backend` and `schedule` are those of the
    new modules.

    ValueError for an unknown `to`, `backend` or `schedule`.
    """
    if to not in ("fusedrnn", "torch"):
        raise ValueError(f"to: expected 'fusedrnn' or 'torch', got {to!r}")
    check_options(backend, schedule)
    replaced: dict[nn.Module, nn.Module] = {}
    converted: dict[str, str] = {}
    kept: dict[str, str] = {}

    def replacement(name: str, module: nn.Module, compiled: bool = False) -> nn.Module:
        if not isinstance(module, nn.RNNBase | nn.RNNCellBase) or isinstance(module, Options) == (to == "fusedrnn"):
            return module
        if compiled:
            kept[name] = "it is what torch.compile was given, which holds it: convert it before that"
            return module
        if module not in replaced:
            try:
                replaced[module] = _other(module, to, backend, schedule)
            except (TypeError, ValueError) as reason:
                kept[name] = str(reason)
                return module
        converted[name] = type(module).__name__
        return replaced[module]

    for path, parent in list(model.named_modules(remove_duplicate=False)):
        for child_name, child in parent._modules.items():
            if child is not None:
                compiled = child_name == "_orig_mod" and "dynamo_ctx" in parent.__dict__
                parent._modules[child_name] = replacement(f"{path}.{child_name}".lstrip("."), child, compiled)
    return Conversion(replacement("", model), converted, kept)


def _other(module: nn.Module, to: str, backend: str, schedule: str) -> nn.Module:
    """TypeError or ValueError, with the reason, where there is none."""
    if "forward" in module.__dict__:
        raise TypeError("its forward was replaced on the module itself")
    if "parametrizations" in module._modules:
        raise TypeError("its weights are parametrized, which makes a class of its own: convert it before that")
    if isinstance(module, Options):
        return module.to_torch()
    if any(p.is_complex() for p in module.parameters()):
        raise TypeError("its numbers are complex, which no backend computes with")
    if type(module) not in _OURS:
        raise TypeError(f"{type(module).__qualname__} is a subclass, whose own code would be lost")
    return _OURS[type(module)].from_torch(module, backend=backend, schedule=schedule)
