"""What one optimiser step did to the weights, measured on a bounded sample of them.

Every so many steps a few thousand scalars of the weights are copied before the update and compared after it. All that
leaves this page are numbers, so that what judges them can be tested without a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from sottovoce.models.compose import DecoderModel
from sottovoce.training.step import StepComputer

SCALARS_PER_PARAMETER: Final = 512
"""At most this many of each parameter are copied."""
FLOAT32_STEP: Final = 2.0**-22
"""A change of this share of a weight is seen in float32 for certain."""
FIRST_STEPS: Final = 3
"""Steps at the start of every process that are all sampled."""


@dataclass(frozen=True)
class Sample:
    """One sampled step."""

    step: int
    update_ratio: Mapping[str, float]
    """‖Δw‖/‖w‖ of each component's matrices."""
    moved: Mapping[str, bool]
    """For each component that has a gradient and a rate: did any of its weights change?"""
    size: Mapping[str, float] = field(default_factory=dict)
    """‖w‖ of each component's matrices before the step, as far as they were sampled."""
    sensitivity: float = 0.0
    """S_ε, the mean of ε/(√v̂+ε): 0 for true Adam, 1 for momentum SGD with rate η/ε."""
    below_eps: float = 0.0
    """Share of scalars with √v̂ < ε."""
    swallowed: float = 0.0
    """Share of scalars that stayed the same although float32 would have shown their update."""
    low_precision: bool = False
    """Every sampled weight is a bfloat16 number."""
    largest: tuple[str, float] = ("", 0.0)
    """The parameter with the largest gradient, and its share of the squared norm."""
    owned_norm: float = 0.0
    """Norm of the optimiser's gradients after the guard."""
    unowned: tuple[str, ...] = ()
    """Parameters with a gradient outside the optimiser."""
    unowned_norm: float = 0.0
    group_norms: Mapping[str, float] = field(default_factory=dict)
    """`owned_norm` by component."""
    head_bias: float = 0.0
    """L1 norm of the gradient of the CTC head's bias, after the guard."""
    nonfinite: tuple[str, ...] = ()
    """Parameters that are not finite after the step."""


@dataclass(frozen=True)
class _Before:
    weights: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    measured: dict[str, Any]


class Sampler:
    """Takes a sample of every `every`-th step, and of the first ones of a process."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.first_step: int | None = None
        self._before: _Before | None = None

    def due(self, step: int) -> bool:
        """True for the step after `step` earlier ones."""
        self.first_step = step if self.first_step is None else self.first_step
        return step % self.every == 0 or step - self.first_step < FIRST_STEPS

    def before_update(self, computer: StepComputer, optimizer: torch.optim.Optimizer) -> None:
        """Copy what the step will change, if it is to be sampled."""
        self._before = None
        if not self.due(computer.progress.step):
            return
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        gradients = {name: p.grad for name, p in computer.model.named_parameters() if p.grad is not None}
        members = {name: p for name, p in computer.model.named_parameters() if id(p) in owned}
        measured = _gradient_facts(gradients, members)
        with torch.no_grad():
            self._before = _Before(
                {name: _some(p.detach()).clone() for name, p in members.items() if name in gradients},
                {name: _some(gradients[name]).float().clone() for name in members if name in gradients},
                measured,
            )

    def after_update(
        self, step: int, computer: StepComputer, optimizer: torch.optim.Optimizer, rates: Mapping[str, float]
    ) -> Sample | None:
        """The sample, if one was begun; `rates` are those of each component."""
        before, self._before = self._before, None
        if before is None:
            return None
        parameters = dict(computer.model.named_parameters())
        with torch.no_grad():
            now = {name: _some(parameters[name].detach()) for name in before.weights}
            return Sample(
                step=step,
                **_movement(before, now, parameters, rates),
                **_adam_facts(before, now, parameters, optimizer),
                **before.measured,
                nonfinite=tuple(name for name, p in parameters.items() if not bool(p.detach().isfinite().all())),
            )


def _some(tensor: torch.Tensor) -> torch.Tensor:
    """Up to 512 scalars, evenly spread."""
    flat = tensor.reshape(-1)
    return flat[:: max(1, -(-len(flat) // SCALARS_PER_PARAMETER))]


def _gradient_facts(gradients: Mapping[str, torch.Tensor], members: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    names = list(gradients)
    norms = torch.stack(torch._foreach_norm(list(gradients.values()))).tolist() if names else []
    squares = dict(zip(names, (norm * norm for norm in norms), strict=True))
    owned = {name: square for name, square in squares.items() if name in members}
    total = sum(owned.values())
    groups: dict[str, float] = {}
    for name, square in owned.items():
        component = DecoderModel.component_of(name)
        groups[component] = groups.get(component, 0.0) + square
    largest = max(owned, key=lambda name: owned[name], default="")
    unowned = tuple(name for name in names if name not in members)
    bias = gradients.get("head.bias")
    return {
        "owned_norm": math.sqrt(total),
        "group_norms": {component: math.sqrt(square) for component, square in groups.items()},
        "largest": (largest, owned[largest] / total if total else 0.0),
        "unowned": unowned,
        "unowned_norm": math.sqrt(sum(squares[name] for name in unowned)),
        "head_bias": float(bias.abs().sum()) if bias is not None else 0.0,
    }


def _movement(
    before: _Before,
    now: Mapping[str, torch.Tensor],
    parameters: Mapping[str, nn.Parameter],
    rates: Mapping[str, float],
) -> dict[str, Any]:
    change: dict[str, float] = {}
    size: dict[str, float] = {}
    moved: dict[str, bool] = {}
    for name, old in before.weights.items():
        component = DecoderModel.component_of(name)
        difference = now[name].float() - old.float()
        visible = rates.get(component, 0.0) > FLOAT32_STEP * float(old.float().abs().mean())  # else it is rounded away
        if visible and bool(before.gradients[name].any()):
            moved[component] = moved.get(component, False) or bool(difference.any())
        if parameters[name].dim() > 1:
            share = parameters[name].numel() / len(old)
            change[component] = change.get(component, 0.0) + share * float(difference.square().sum())
            size[component] = size.get(component, 0.0) + share * float(old.float().square().sum())
    ratios = {component: math.sqrt(change[component] / size[component]) for component in change if size[component] > 0}
    return {
        "update_ratio": ratios,
        "moved": moved,
        "size": {component: math.sqrt(square) for component, square in size.items()},
    }


def _adam_facts(
    before: _Before,
    now: Mapping[str, torch.Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    sensitivity = below = swallowed = expected = scalars = 0.0
    for name, old in before.weights.items():
        parameter = parameters[name]
        moments, group = optimizer.state.get(parameter), settings[id(parameter)]
        if not moments or "exp_avg_sq" not in moments or "betas" not in group:
            continue
        (beta1, beta2), eps, count = group["betas"], group["eps"], max(float(moments["step"]), 1.0)
        root = (_some(moments["exp_avg_sq"]).float() / (1 - beta2**count)).sqrt()
        step = group["lr"] * (_some(moments["exp_avg"]).float() / (1 - beta1**count)).abs() / (root + eps)
        visible = step > FLOAT32_STEP * old.float().abs()
        share = parameter.numel() / len(old)
        sensitivity += share * float((eps / (root + eps)).sum())
        below += share * float((root < eps).sum())
        expected += share * float(visible.sum())
        swallowed += share * float((visible & (now[name] == old)).sum())
        scalars += parameter.numel()
    low = all(bool((w.float().bfloat16().float() == w.float()).all()) for w in now.values() if len(w) > 1)
    return {
        "sensitivity": sensitivity / scalars if scalars else 0.0,
        "below_eps": below / scalars if scalars else 0.0,
        "swallowed": swallowed / expected if expected else 0.0,
        "low_precision": bool(now) and low,
    }
