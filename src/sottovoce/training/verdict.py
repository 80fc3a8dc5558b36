"""What the guard is told, what it decides, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError

Action = Literal["step", "clip", "skip", "roll_back"]
Cause = Literal[
    "nonfinite_loss",
    "zero_loss",
    "nonfinite_gradient",
    "fp16_overflow",
    "gradient_spike",
    "stale_optimizer",
    "poisoned_weights",
]
LossKey = str | tuple[str, str]
"""What a loss is of: a trial id, or (name of the loss, trial id) where a trial has several."""
Losses = Mapping[str, float] | Mapping[tuple[str, str], float]
"""Nats by trial id, or by (name of the loss, trial id)."""
MOST_NAMED: Final = 100
"""An event names at most this many losses and parameters, and says how many there are."""


@dataclass(frozen=True)
class GuardConfig:
    """What the guard does beyond `training.max_grad_norm` and `training.max_bad_steps`."""

    clip_above_median: float = 0.0
    """Clip to this multiple of the running median of the norms too (icefall: 2); 0 switches it off."""
    skip_above_median: float = 0.0
    """Skip a step whose norm exceeds this multiple of the running median; 0 switches it off."""
    max_bad_share: float = 0.2
    """A larger share of skipped steps among 200 ends the run, as soon as it is certain; 1 switches it off."""
    num_capsules: int = 5
    """At most this many bad steps are kept as `capsules/STEP/`, each as large as a checkpoint; 0: none."""

    def __post_init__(self) -> None:
        for name in ("clip_above_median", "skip_above_median"):
            value = getattr(self, name)
            if value and not value > 1:
                raise ConfigurationError(
                    f"training.guard.{name}={value}: must be above 1, or 0 to switch it off; half of all steps lie "
                    "above the median"
                )
        if not 0 < self.max_bad_share <= 1:
            raise ConfigurationError(f"training.guard.max_bad_share={self.max_bad_share}: must lie in (0, 1]")
        if self.num_capsules < 0:
            raise ConfigurationError(f"training.guard.num_capsules={self.num_capsules}: must be at least 0")


@dataclass(frozen=True)
class GradientSummary:
    """What one parameter's gradient looked like."""

    norm: float
    """L2 norm of its finite entries."""
    largest: float
    """Largest magnitude among them."""
    nonfinite: float
    """Share of its entries that are not finite."""

    @classmethod
    def of(cls, gradient: torch.Tensor) -> GradientSummary:
        """The summary of `gradient`, zeros of an empty one; one transfer from the device."""
        if not gradient.numel():
            return cls(0.0, 0.0, 0.0)
        finite = gradient.isfinite()
        kept = torch.where(finite, gradient, 0).double()
        parts = torch.stack([torch.linalg.vector_norm(kept), kept.abs().max(), 1 - finite.double().mean()])
        return cls(*parts.tolist())


@dataclass(frozen=True)
class KeptState:
    """Weights and moments of one moment, on the CPU."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, dict[str, Any]]
    """What the optimiser remembers of each parameter: tensors, and with some optimisers numbers and lists of them."""
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> KeptState:
        """A copy of what they are now."""
        weights = {name: p.detach().cpu().clone() for name, p in parameters.items()}
        cpu = torch.device("cpu")
        moments = {
            name: {key: _copied(value, cpu) for key, value in optimizer.state.get(p, {}).items()}
            for name, p in parameters.items()
        }
        return cls(weights, moments, optimizer)

    def put_back(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Give the parameters these weights, and their optimiser these moments."""
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.weights[name])
                now = self.optimizer.state.pop(parameter, {})
                if moments := self.moments[name]:
                    self.optimizer.state[parameter] = {
                        key: _put_into(now.get(key), value, parameter.device) for key, value in moments.items()
                    }


def _copied(value: Any, device: torch.device) -> Any:
    """`value` with tensors of its own on `device`, in lists and dictionaries too."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: _copied(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(part, device) for part in value)
    return value


def _put_into(now: Any, kept: Any, device: torch.device) -> Any:
    """`kept`, in the tensor `now` where it fits: some optimisers keep step counts on the CPU, others on the GPU."""
    if isinstance(now, torch.Tensor) and isinstance(kept, torch.Tensor) and now.shape == kept.shape:
        return now.copy_(kept)
    return _copied(kept, device)


@dataclass(frozen=True)
class Verdict:
    """What the guard decided about one step."""

    gradient_norm: float
    """L2 norm over all gradients of the optimiser before clipping; NaN or infinite where a gradient is."""
    action: Action = "step"
    cause: Cause | None = None
    """Why the step was skipped or undone; None for one that may be taken."""
    evidence: str = ""
    """A sentence for people: the first few of `losses` or `parameters`, or the norm and its limit."""
    group_norms: Mapping[str, float] = field(default_factory=dict)
    """The norm's parts by group of parameters."""
    limit: float = math.inf
    """The norm that the step was clipped to, or would have been."""
    gradients: Mapping[str, GradientSummary] = field(default_factory=dict)
    """What the gradients of a skipped step looked like before they were dropped, by parameter."""
    buffers: tuple[str, ...] = ()
    """Buffers of the model that were not finite and were put back."""
    lost: KeptState | None = None
    """The weights and moments that a roll-back has undone."""
    losses: Mapping[LossKey, float] = field(default_factory=dict)
    """This process's losses that were not finite, all of them."""
    parameters: tuple[str, ...] = ()
    """The parameters (and moments and buffers) that are at fault, all of them: not finite, or owned by no optimiser."""

    @property
    def skipped(self) -> bool:
        """True when the gradients were dropped."""
        return self.action in ("skip", "roll_back")

    @property
    def clipped(self) -> bool:
        """True when the gradients were scaled down."""
        return self.action == "clip"

    def as_event(self) -> dict[str, Any]:
        """What `events.jsonl` holds of a refused step, beside its step.

        `losses` are [name of the loss or "", trial id, `nan`, `inf` or `-inf`]; they and `parameters` are cut to
        `MOST_NAMED`. `num_trials` and `num_parameters` count all.
        """
        named = [(*(("", key) if isinstance(key, str) else key), f"{nats:g}") for key, nats in self.losses.items()]
        return {
            "code": self.cause,
            "evidence": self.evidence,
            "losses": [list(loss) for loss in named[:MOST_NAMED]],
            "num_trials": len({trial for _, trial, _ in named}),
            "parameters": list(self.parameters[:MOST_NAMED]),
            "num_parameters": len(self.parameters),
        }
