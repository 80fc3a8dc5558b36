"""One optimiser for the whole run, with named parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sottovoce.training.config import OptimizerConfig

SESSION_MODULE = "session_adapter"


def group_of(name: str) -> str:
    """Group of the parameter called `name`: `session`, `bias` (of the recurrence and the head) or `other`.

    The official T15 grouping (nejm-brain-to-text `rnn_trainer.py`): everything of the session adapters, then every
    bias, then all weights and the initial state.
    """
    path = name.split(".")
    if path[0] == SESSION_MODULE:
        return "session"
    return "bias" if path[-1].startswith("bias") else "other"


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over every trainable parameter of `model`, each in exactly one named group.

    Groups carry their peak rate as `peak_lr`; the schedule sets `lr` before each step. One fused pass updates all
    parameters, on CPUs too.
    """
    rates = {"bias": config.lr, "session": config.session_lr or config.lr, "other": config.lr}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[group_of(name)].append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "name": name,
            "params": parameters,
            "peak_lr": rates[name],
            "lr": rates[name],
            "weight_decay": config.weight_decay if name == "other" else 0.0,
        }
        for name, parameters in members.items()
        if parameters
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Give every group `factor` times its peak rate; returns the rates by group name."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
