"""The guard's own examination: gradients that nobody owns, and a clip over several groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.training.guard import GradientGuard

UNOWNED_GRADIENT: Final = 1e3
"""Far above the owned ones: a norm that counts it shrinks the step to nothing (catalogue row B2)."""
LIMIT: Final = 1.0
TOLERANCE: Final = 1e-4
"""Relative, of norms in float32; above 1 % is an error (catalogue row B2)."""


class _Toy(nn.Module):
    """Two parameters of 4 numbers that an optimiser owns, and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unowned = (nn.Parameter(torch.ones(4)) for _ in range(3))

    def owned(self) -> dict[str, nn.Parameter]:
        return {"first": self.first, "second": self.second}


def guard_answers(untrained: UntrainedRun) -> Iterator[Finding]:
    """What is wrong with the guard that the run will use, asked on three toy parameters."""
    made = type(untrained.computer.guard)
    yield from _unowned(made)
    yield from _clip(made)


def _unowned(made: type[GradientGuard]) -> Iterator[Finding]:
    toy = _Toy()
    _set(toy.first, 0.3)
    _set(toy.second, 0.4)
    _set(toy.unowned, UNOWNED_GRADIENT)
    owned_norm = 2 * (0.3**2 + 0.4**2) ** 0.5
    verdict = made(2 * owned_norm).inspect(toy.owned(), {"trial": 1.0}, model=toy)
    kept = toy.unowned.grad is not None and bool(toy.unowned.grad.any())
    shrunk = not verdict.skipped and toy.first.grad is not None and float(toy.first.grad[0]) < 0.3 * (1 - TOLERANCE)
    if kept or shrunk or abs(verdict.gradient_norm - owned_norm) > TOLERANCE * owned_norm:
        what = ", and leaves that gradient where it is" if kept else ""
        yield found(
            "unowned_gradients",
            f"With owned gradients of norm {owned_norm:.3g} and {UNOWNED_GRADIENT:g} in a parameter that nobody owns, "
            f"the guard counts a norm of {verdict.gradient_norm:.4g}{what}.",
            "preflight",
        )


def _clip(made: type[GradientGuard]) -> Iterator[Finding]:
    toy = _Toy()
    _set(toy.first, 3.0)
    _set(toy.second, 4.0)
    verdict = made(LIMIT).inspect(toy.owned(), {"trial": 1.0}, groups={"first": "a", "second": "b"}, model=toy)
    gradients = [p.grad for p in toy.owned().values() if p.grad is not None]
    norms = [float(gradient.norm()) for gradient in gradients]
    right = [LIMIT * 0.6, LIMIT * 0.8]
    if verdict.skipped or any(abs(norm - r) > TOLERANCE for norm, r in zip(norms, right, strict=True)):
        parts = " and ".join(f"{norm:.3g}" for norm in norms) or "nothing"
        yield found(
            "clip_before_unscale",
            f"Gradients of norms 6 and 8 in two groups, clipped to {LIMIT:g} together, come out as {parts}, not 0.6 "
            "and 0.8.",
            "preflight",
        )


def _set(parameter: nn.Parameter, value: float) -> None:
    parameter.grad = torch.full_like(parameter, value)
