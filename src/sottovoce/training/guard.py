"""The guard: looks at every step's losses and gradients before the weights move, and decides.

| what it sees | what it does |
|---|---|
| a non-finite loss or gradient, losses that are all exactly 0, a gradient far beyond the usual (if asked to) | skip |
| a gradient of a parameter that the optimiser does not own | skip |
| the same, and the weights themselves are not finite any more | roll back to the last good copy |
| a norm above the fixed limit, or above a multiple of the running median | clip |
| too many skipped steps in a row, or in a window; nothing to roll back to | abort |
| anything else | step |

A skipped step reaches neither the weights nor the optimiser's moments: all gradients are dropped, those of parameters
that no optimiser owns too, and the optimiser then finds nothing to do. `clip_grad_norm_` alone is no protection: a NaN
norm turns every gradient into NaN. Setting only the bad parameters' gradients to None is none either: it changes the
direction of the step and hides the cause.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError, TrainingAborted

Action = Literal["step", "clip", "skip", "roll_back"]
Cause = Literal[
    "nonfinite_loss", "zero_loss", "nonfinite_gradient", "gradient_spike", "stale_optimizer", "poisoned_weights"
]
WINDOW: Final = 200
"""Steps that running medians and shares look back on."""
FEWEST_NORMS: Final = 20
"""Norms that a running median needs; before that, only the fixed limit holds."""
MOST_ROLL_BACKS: Final = 3
"""The same copy is not trained from more often than this."""


@dataclass(frozen=True)
class GuardConfig:
    """What the guard does beyond `training.max_grad_norm` and `training.max_bad_steps`."""

    clip_above_median: float = 0.0
    """Clip to this multiple of the running median of the norms too (icefall: 2); 0 switches it off."""
    skip_above_median: float = 0.0
    """Skip a step whose norm exceeds this multiple of the running median; 0 switches it off."""
    max_bad_share: float = 0.2
    """This share of skipped steps among the last 200 ends the run; 1 switches it off."""
    num_capsules: int = 5
    """At most this many bad steps are kept as `capsules/STEP/`, each as large as a checkpoint; 0: none."""

    def __post_init__(self) -> None:
        for name in ("clip_above_median", "skip_above_median"):
            value = getattr(self, name)
            if value and value <= 1:
                raise ConfigurationError(
                    f"training.guard.{name}={value}: must be above 1, or 0 to switch it off; half of all steps lie "
                    "above the median"
                )
        if not 0 < self.max_bad_share <= 1:
            raise ConfigurationError(f"training.guard.max_bad_share={self.max_bad_share}: must lie in (0, 1]")
        if self.num_capsules < 0:
            raise ConfigurationError(f"training.guard.num_capsules={self.num_capsules}: must be at least 0")


@dataclass(frozen=True)
class Verdict:
    """What the guard decided about one step."""

    gradient_norm: float
    """L2 norm over all gradients of the optimiser before clipping; NaN or infinite in a bad step."""
    action: Action = "step"
    cause: Cause | None = None
    """Why the step was skipped or undone; None for one that may be taken."""
    evidence: str = ""
    """The utterances whose loss, or the parameters whose gradient, was not finite, or the norm and its limit."""
    group_norms: Mapping[str, float] = field(default_factory=dict)
    """The norm's parts by group of parameters."""
    limit: float = math.inf
    """The norm that the step was clipped to, or would have been."""

    @property
    def skipped(self) -> bool:
        """True when the gradients were dropped."""
        return self.action in ("skip", "roll_back")

    @property
    def clipped(self) -> bool:
        """True when the gradients were scaled down."""
        return self.action == "clip"


@dataclass
class GradientGuard:
    """Guards one optimiser in any PyTorch loop.

    Call `inspect` after `backward` (and after un-scaling) and before `optimizer.step()`; always call the latter.
    `keep` now and then, so that there is something to roll back to. `GuardCallback` does both in Lightning.

    >>> weight = nn.Parameter(torch.ones(2)); optimizer = torch.optim.SGD([weight], lr=0.1)
    >>> guard = GradientGuard(max_norm=1.0)
    >>> (weight * torch.tensor([1.0, float("nan")])).sum().backward()
    >>> guard.inspect({"w": weight}, {}).cause
    'nonfinite_gradient'
    >>> optimizer.step(); weight.tolist()
    [1.0, 1.0]
    """

    max_norm: float = 0.0
    """Gradients of a larger global norm are scaled down to it; 0 switches clipping off."""
    max_bad_steps: int = 10
    """This many skipped steps in a row raise `TrainingAborted`."""
    config: GuardConfig = field(default_factory=GuardConfig)
    skipped: Counter[str] = field(default_factory=Counter)
    """Skipped steps of the run by cause."""
    in_a_row: int = 0
    norms: list[float] = field(default_factory=list)
    """Of the last good steps, before clipping."""
    recent: list[bool] = field(default_factory=list)
    """For each of the last steps: was it skipped?"""
    last_skip: Verdict | None = None
    """The most recent skipped step."""
    roll_backs: int = 0
    """To the copy at hand."""
    _copy: _Copy | None = None

    def inspect(
        self,
        parameters: Mapping[str, nn.Parameter],
        losses: Mapping[str, float],
        bad_elsewhere: bool = False,
        zero_elsewhere: bool = True,
        groups: Mapping[str, str] | None = None,
        model: nn.Module | None = None,
    ) -> Verdict:
        """Let the step pass, clip its gradients, or drop them all.

        Args:
            parameters: every parameter of the optimiser, by name.
            losses: each utterance's loss in this step (this process's part), by term and trial id.
            bad_elsewhere: another process saw a non-finite loss. Gradients are already summed over processes, so
                their norm is the same everywhere.
            zero_elsewhere: no other process saw a loss above 0. All processes must decide alike, so that zeros here
                alone are no reason.
            groups: the group of each parameter, for the norm's parts.
            model: where `parameters` come from; gradients of others of its parameters are refused.

        Raises:
            TrainingAborted: too many steps were skipped, or the weights are lost and nothing was kept.
        """
        names = [name for name, p in parameters.items() if p.grad is not None]
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        norm, group_norms, norm_tensor = _norms(names, gradients, groups or {})
        unowned = _unowned(parameters, model)
        for parameter in unowned.values():
            parameter.grad = None  # nobody else ever would
        bad_utterances = [f"{name} ({value})" for name, value in losses.items() if not math.isfinite(value)]
        limit = self._limit()
        verdict = Verdict(norm, "step", None, "", group_norms, limit)
        if bad_utterances or bad_elsewhere:
            return self._skip(verdict, parameters, "nonfinite_loss", bad_utterances or ["in another process"])
        if losses and zero_elsewhere and not any(losses.values()):
            # A probability of exactly 1 is no achievement but a loss that was never computed, or replaced by a number.
            return self._skip(verdict, parameters, "zero_loss", [f"{len(losses)} losses, all 0"])
        if not math.isfinite(norm):
            guilty = [name for name, g in zip(names, gradients, strict=True) if not bool(g.isfinite().all())] or [
                f"the norm overflows; largest: {_largest(parameters)}"
            ]
            return self._skip(verdict, parameters, "nonfinite_gradient", guilty)
        if unowned:
            return self._skip(verdict, parameters, "stale_optimizer", list(unowned))
        if self._is_spike(norm):
            times = norm / statistics.median(self.norms)
            return self._skip(verdict, parameters, "gradient_spike", [f"norm {norm:.3g}, {times:.1f} times the median"])
        self._passed(norm)
        if norm <= limit:
            return verdict
        nn.utils.clip_grads_with_norm_([p for p in parameters.values() if p.grad is not None], limit, norm_tensor)
        return Verdict(norm, "clip", None, "", group_norms, limit)

    def keep(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Verdict | None:
        """Copy weights and moments, to roll back to; where they are not finite, roll back instead and say so.

        Raises:
            TrainingAborted: the weights are lost and nothing was kept.
        """
        if bad := _nonfinite(parameters):
            self._count(Verdict(math.nan, "roll_back", "poisoned_weights", _shortened(bad)))
            self._roll_back(parameters)
            return self.last_skip
        weights = {name: p.detach().cpu().clone() for name, p in parameters.items()}
        moments = {
            name: {key: value.detach().cpu().clone() for key, value in optimizer.state.get(p, {}).items()}
            for name, p in parameters.items()
        }
        self._copy = _Copy(weights, moments, optimizer)
        self.roll_backs = 0
        return None

    @property
    def can_roll_back(self) -> bool:
        """A copy is at hand that has not failed too often."""
        return self._copy is not None and self.roll_backs < MOST_ROLL_BACKS

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know, as JSON values."""
        return {
            "skipped": dict(self.skipped),
            "in_a_row": self.in_a_row,
            "norms": self.norms,
            "recent": [int(bad) for bad in self.recent],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.skipped = Counter(state["skipped"])
        self.in_a_row = state["in_a_row"]
        self.norms = list(state["norms"])
        self.recent = [bool(bad) for bad in state["recent"]]

    def _limit(self) -> float:
        """The norm above which this step is clipped."""
        limits = [self.max_norm] if self.max_norm else []
        if self.config.clip_above_median and len(self.norms) >= FEWEST_NORMS:
            limits.append(self.config.clip_above_median * statistics.median(self.norms))
        return min(limits, default=math.inf)

    def _is_spike(self, norm: float) -> bool:
        multiple = self.config.skip_above_median
        return bool(multiple) and len(self.norms) >= FEWEST_NORMS and norm > multiple * statistics.median(self.norms)

    def _passed(self, norm: float) -> None:
        self.in_a_row = 0
        self.norms = [*self.norms[1 - WINDOW :], norm]
        self.recent = [*self.recent[1 - WINDOW :], False]

    def _skip(self, seen: Verdict, parameters: Mapping[str, nn.Parameter], cause: Cause, guilty: list[str]) -> Verdict:
        for parameter in parameters.values():
            parameter.grad = None
        action: Action = "skip"
        if bad := _nonfinite(parameters):  # a loss that is NaN with every batch: this one is innocent
            action, cause, guilty = "roll_back", "poisoned_weights", bad
        self._count(Verdict(seen.gradient_norm, action, cause, _shortened(guilty), seen.group_norms, seen.limit))
        if action == "roll_back":
            self._roll_back(parameters)
        self._abort_if_hopeless()
        assert self.last_skip is not None
        return self.last_skip

    def _count(self, verdict: Verdict) -> None:
        assert verdict.cause is not None
        self.skipped[verdict.cause] += 1
        self.in_a_row += 1
        self.recent = [*self.recent[1 - WINDOW :], True]
        self.last_skip = verdict

    def _roll_back(self, parameters: Mapping[str, nn.Parameter]) -> None:
        assert self.last_skip is not None
        if self._copy is None or not self.can_roll_back:
            why = "nothing was kept to roll back to" if self._copy is None else f"again after {self.roll_backs} returns"
            raise TrainingAborted(f"poisoned_weights: {self.last_skip.evidence}: the weights are not finite; {why}")
        self.roll_backs += 1
        self._copy.put_back(parameters)

    def _abort_if_hopeless(self) -> None:
        assert self.last_skip is not None
        share = sum(self.recent) / len(self.recent)
        if self.in_a_row >= self.max_bad_steps:
            how_many = f"in {self.in_a_row} steps in a row"
        elif len(self.recent) == WINDOW and share > self.config.max_bad_share:
            how_many = f"in {share:.0%} of the last {WINDOW} steps"
        else:
            return
        raise TrainingAborted(
            f"{self.last_skip.cause} {how_many} (last: {self.last_skip.evidence}); the weights are those of the last "
            "good step"
        )


@dataclass(frozen=True)
class _Copy:
    """Weights and moments of a good moment, on the CPU."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, dict[str, torch.Tensor]]
    optimizer: torch.optim.Optimizer

    def put_back(self, parameters: Mapping[str, nn.Parameter]) -> None:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.weights[name])
                if moments := self.moments[name]:
                    state = self.optimizer.state[parameter]
                    for key, value in moments.items():
                        state[key].copy_(value)
                else:
                    self.optimizer.state.pop(parameter, None)


def _norms(
    names: list[str], gradients: list[torch.Tensor], groups: Mapping[str, str]
) -> tuple[float, dict[str, float], torch.Tensor]:
    """The global norm, as a number and a tensor, and its parts by group; one transfer from the device."""
    if not gradients:
        return 0.0, {}, torch.zeros(())
    each = torch.stack([norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)])
    total = torch.linalg.vector_norm(each)
    squares: dict[str, float] = {}
    for name, norm in zip(names, each.tolist() if groups else [], strict=bool(groups)):
        squares[groups[name]] = squares.get(groups[name], 0.0) + norm * norm
    return float(total), {group: math.sqrt(square) for group, square in squares.items()}, total


def _unowned(parameters: Mapping[str, nn.Parameter], model: nn.Module | None) -> dict[str, nn.Parameter]:
    if model is None:
        return {}
    return {name: p for name, p in model.named_parameters() if p.grad is not None and name not in parameters}


def _nonfinite(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    return [name for name, p in parameters.items() if not bool(p.detach().isfinite().all())]


def _largest(parameters: Mapping[str, nn.Parameter]) -> str:
    sizes = {name: float(p.grad.abs().max()) for name, p in parameters.items() if p.grad is not None}
    return max(sizes, key=lambda name: sizes[name])


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
