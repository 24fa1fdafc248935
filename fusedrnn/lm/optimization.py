"""Optimizers, learning rates and clipping."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fusedrnn.lm.config import TrainConfig


def build_optimizer(config: TrainConfig, model: nn.Module, captured: bool = False) -> torch.optim.Optimizer:
    """torch's SGD, Adam or AdamW, each step of it one fused kernel. Weight decay is for matrices: biases have none.

    captured: a step of it is to be replayed by a CUDA graph, so that its rate is in the GPU's memory
    """
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "weight_decay": 0.0}]
    if config.weight_decay:
        matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    device = next(model.parameters()).device
    lr = torch.tensor(config.lr, device=device) if captured else config.lr
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, lr=lr, fused=True, capturable=captured)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Of optimizer step 0, 1, ... of a run of so many.

    Over the warmup's W steps it is lr (step + 1) / W. From there to the last step, with p from 0 to 1, it is lr
    (constant), lr + p (min_lr - lr) (linear), or min_lr + (lr - min_lr) (1 + cos(pi p)) / 2 (cosine; Loshchilov and
    Hutter, 2017, arXiv:1608.03983).
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    p = min(1.0, (step - config.warmup) / max(1, steps - 1 - config.warmup))
    share = 1 - p if config.schedule == "linear" else (1 + math.cos(math.pi * p)) / 2
    return config.min_lr + (config.lr - config.min_lr) * share


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def grad_clipping(net: nn.Module, theta: float) -> torch.Tensor:
    """Scale the gradients g of all of net's parameters by min(1, theta / |g|), |g| their global norm; returns |g|."""
    return clip(gradients_of(net.parameters()), theta)


def clip(gradients: list[torch.Tensor], theta: float) -> torch.Tensor:
    """Scale the gradients in place, as grad_clipping does; returns their global norm."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (theta / norm).clamp(max=1.0))
    return norm


def gradients_of(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The gradients that backward left; parameters that took no part have none."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
