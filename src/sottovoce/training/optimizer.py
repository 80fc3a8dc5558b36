"""One optimiser for the whole run, with named parameter groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sottovoce.models.compose import DecoderModel
from sottovoce.models.ssm_parts import NEVER_DECAYED
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
    return "bias" if path[-1].startswith("bias") or path[-1] in NEVER_DECAYED else "other"


def build_optimizer(model: nn.Module, config: OptimizerConfig, by_component: bool = False) -> torch.optim.AdamW:
    """AdamW over every trainable parameter of `model`, each in exactly one named group.

    `by_component` divides the groups further, by the component of the model that a stage freezes or trains:
    `encoder.other`, `encoder.bias` and so on.

    Groups carry their peak rate as `peak_lr`; the schedule sets `lr` before each step. One fused pass updates all
    parameters, on CPUs too.
    """
    rates = {"bias": config.lr, "session": config.session_lr or config.lr, "other": config.lr}
    members: dict[tuple[str | None, str], list[nn.Parameter]] = {}
    if not by_component:
        members = {(None, kind): [] for kind in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            component = DecoderModel.component_of(name) if by_component else None
            members.setdefault((component, group_of(name)), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "name": f"{component}.{kind}" if component else kind,
            "component": component,
            "params": parameters,
            "peak_lr": rates[kind],
            "lr": rates[kind],
            "weight_decay": config.weight_decay if kind == "other" else 0.0,
        }
        for (component, kind), parameters in members.items()
        if parameters
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, factor: float, by_component: Mapping[str, float]
) -> dict[str, float]:
    """Give every group `factor` times its peak rate; returns the rates by group name.

    Groups of a component take its own factor too: 0 where `by_component` does not name it.
    """
    for group in optimizer.param_groups:
        component = group["component"]
        group["lr"] = group["peak_lr"] * factor * (1.0 if component is None else by_component.get(component, 0.0))
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
