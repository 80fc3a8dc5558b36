"""What the guard asks of gradients: their entries and norms, whose they are, what is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import nn

HALVES: Final = (torch.float16, torch.bfloat16)
"""Formats whose norms are taken in float32: float16 ends at 65504, bfloat16 has three digits."""


def each_norm(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The L2 norm of each tensor, by name, on one device and in one format; nothing is copied that is not half."""
    by_dtype: dict[torch.dtype, list[str]] = {}
    for name, tensor in tensors.items():
        by_dtype.setdefault(tensor.dtype, []).append(name)
    found: dict[str, torch.Tensor] = {}
    for dtype, names in by_dtype.items():
        wide = torch.float32 if dtype in HALVES else None
        norms = torch._foreach_norm([tensors[name] for name in names], 2, dtype=wide)
        found.update(zip(names, norms, strict=True))
    device = next((tensor.device for tensor in tensors.values()), None)
    double = any(norm.dtype == torch.float64 for norm in found.values())
    return {name: found[name].to(device, torch.float64 if double else None) for name in tensors}


def norms_of(
    gradients: Mapping[str, torch.Tensor], groups: Mapping[str, str]
) -> tuple[float, dict[str, float], torch.Tensor]:
    """The global norm, as a number and a tensor, and its parts by group; one transfer from the device.

    A gradient without a group counts in the global norm alone.
    """
    if not gradients:
        return 0.0, {}, torch.zeros(())
    each = torch.stack(list(each_norm(gradients).values()))
    total = torch.linalg.vector_norm(each)
    squares: dict[str, float] = {}
    for name, norm in zip(gradients, each.tolist() if groups else [], strict=bool(groups)):
        if name in groups:
            squares[groups[name]] = squares.get(groups[name], 0.0) + norm * norm
    return float(total), {group: math.sqrt(square) for group, square in squares.items()}, total


def owned_by(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of `named` that `optimizer` steps."""
    members = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in named.items() if id(p) in members}


def entries(parameter: nn.Parameter) -> torch.Tensor:
    """The stored entries of the gradient; changing them changes it."""
    assert parameter.grad is not None
    if not parameter.grad.is_sparse:
        return parameter.grad
    parameter.grad = parameter.grad.coalesce()
    return parameter.grad._values()


def unowned(
    parameters: Mapping[str, nn.Parameter], model: nn.Module | None, others: Iterable[torch.optim.Optimizer]
) -> dict[str, nn.Parameter]:
    """Parameters of `model` that have a gradient and no owner, whatever anybody calls them."""
    if model is None:
        return {}
    owned = {id(p) for p in parameters.values()}
    owned |= {id(p) for optimizer in others for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in model.named_parameters() if p.grad is not None and id(p) not in owned}


def nonfinite(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the parameters that are not finite everywhere."""
    return [name for name, p in parameters.items() if not bool(p.detach().isfinite().all())]


def nonfinite_moments(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> list[str]:
    """What the optimiser remembers of them and is not finite, as `PARAMETER::KEY`."""
    states = ((name, optimizer.state.get(p, {})) for name, p in parameters.items())
    moments = ((f"{name}::{key}", value) for name, state in states for key, value in state.items())
    return [name for name, value in moments if isinstance(value, torch.Tensor) and not bool(value.isfinite().all())]


def largest(gradients: Mapping[str, torch.Tensor]) -> str:
    """Name of the gradient with the largest entry."""
    return max(gradients, key=lambda name: float(gradients[name].abs().amax()) if gradients[name].numel() else 0.0)
