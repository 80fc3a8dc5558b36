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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import nn

from sottovoce.core.errors import TrainingAborted
from sottovoce.training.verdict import Cause as Cause
from sottovoce.training.verdict import GradientSummary as GradientSummary
from sottovoce.training.verdict import GuardConfig as GuardConfig
from sottovoce.training.verdict import KeptState as KeptState
from sottovoce.training.verdict import Verdict as Verdict

Agree = Callable[[Sequence[bool]], Sequence[bool]]
WINDOW: Final = 200
"""Steps that running medians and shares look back on."""
FEWEST_NORMS: Final = 20
"""Norms that a running median needs; before that, only the fixed limit holds."""
MOST_ROLL_BACKS: Final = 3
"""The same copy is not trained from more often than this."""


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
    _copy: KeptState | None = None

    def inspect(
        self,
        parameters: Mapping[str, nn.Parameter],
        losses: Mapping[str, float],
        agree: Agree = lambda flags: list(flags),
        groups: Mapping[str, str] | None = None,
        model: nn.Module | None = None,
    ) -> Verdict:
        """Let the step pass, clip its gradients, or drop them all.

        Args:
            parameters: every parameter of the optimiser, by name.
            losses: each utterance's loss in this step (this process's part), by term and trial id.
            agree: which of these flags are true in any process, so that all processes decide alike. Called exactly
                once.
            groups: the group of each parameter, for the norm's parts.
            model: where `parameters` come from; gradients of others of its parameters are refused.

        Raises:
            TrainingAborted: too many steps were skipped, or the weights are lost and nothing was kept.
        """
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        strays = _unowned(parameters, model)
        norm, group_norms, norm_tensor = _norms(gradients, groups or {})
        limit = self._limit()
        if reason := self._reason(norm, gradients, losses, strays, agree):
            summaries = {name: GradientSummary.of(g) for name, g in gradients.items()}
            for name, stray in strays.items():
                assert stray.grad is not None
                summaries[name] = GradientSummary.of(stray.grad)
            for parameter in (*parameters.values(), *strays.values()):
                parameter.grad = None  # nobody else would ever drop the strays'
            cause, guilty = reason
            return self._skip(Verdict(norm, "skip", cause, guilty, group_norms, limit, summaries), parameters)
        self._passed(norm)
        if norm <= limit:
            return Verdict(norm, "step", None, "", group_norms, limit)
        nn.utils.clip_grads_with_norm_([p for p in parameters.values() if p.grad is not None], limit, norm_tensor)
        return Verdict(norm, "clip", None, "", group_norms, limit)

    def _reason(
        self,
        norm: float,
        gradients: Mapping[str, torch.Tensor],
        losses: Mapping[str, float],
        strays: Mapping[str, nn.Parameter],
        agree: Agree,
    ) -> tuple[Cause, str] | None:
        """Why this step must not reach the weights, with the evidence; None for a step that may."""
        bad = [f"{name} ({value})" for name, value in losses.items() if not math.isfinite(value)]
        bad_loss, some_loss, above_0, bad_gradient, stray, spike = agree(
            [bool(bad), bool(losses), any(losses.values()), not math.isfinite(norm), bool(strays), self._is_spike(norm)]
        )
        if bad_loss:
            return "nonfinite_loss", _shortened(bad)
        if some_loss and not above_0:
            # A probability of exactly 1 is no achievement but a loss that was never computed, or replaced by a number.
            return "zero_loss", f"{len(losses)} losses, all 0"
        if bad_gradient:
            guilty = [name for name, g in gradients.items() if not bool(g.isfinite().all())]
            overflow = not guilty and not math.isfinite(norm)
            return (
                "nonfinite_gradient",
                f"the norm overflows; largest: {_largest(gradients)}" if overflow else _shortened(guilty),
            )
        if stray:
            return "stale_optimizer", _shortened(list(strays))
        if spike:
            return "gradient_spike", f"norm {norm:.3g}, {norm / statistics.median(self.norms):.1f} times the median"
        return None

    def keep(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Verdict | None:
        """Copy weights and moments, to roll back to; where they are not finite, roll back instead and say so.

        Raises:
            TrainingAborted: the weights are lost and nothing was kept.
        """
        if bad := _nonfinite(parameters):
            self._count(Verdict(math.nan, "roll_back", "poisoned_weights", _shortened(bad)))
            self._roll_back(parameters)
            return self.last_skip
        self._copy = KeptState.of(parameters, optimizer)
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

    def _skip(self, verdict: Verdict, parameters: Mapping[str, nn.Parameter]) -> Verdict:
        if bad := _nonfinite(parameters):  # a loss that is NaN with every batch: this one is innocent
            verdict = replace(verdict, action="roll_back", cause="poisoned_weights", evidence=_shortened(bad))
        self._count(verdict)
        if verdict.action == "roll_back":
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
        self.last_skip = replace(self.last_skip, lost=KeptState.of(parameters, self._copy.optimizer))
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


def _norms(
    gradients: Mapping[str, torch.Tensor], groups: Mapping[str, str]
) -> tuple[float, dict[str, float], torch.Tensor]:
    """The global norm, as a number and a tensor, and its parts by group; one transfer from the device."""
    if not gradients:
        return 0.0, {}, torch.zeros(())
    device = next(iter(gradients.values())).device
    each = torch.stack([norm.to(device) for norm in torch._foreach_norm(list(gradients.values()))])
    total = torch.linalg.vector_norm(each)
    squares: dict[str, float] = {}
    for name, norm in zip(gradients, each.tolist() if groups else [], strict=bool(groups)):
        squares[groups[name]] = squares.get(groups[name], 0.0) + norm * norm
    return float(total), {group: math.sqrt(square) for group, square in squares.items()}, total


def owned_by(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those of `named` that `optimizer` steps."""
    members = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in named.items() if id(p) in members}


def _unowned(parameters: Mapping[str, nn.Parameter], model: nn.Module | None) -> dict[str, nn.Parameter]:
    if model is None:
        return {}
    return {name: p for name, p in model.named_parameters() if p.grad is not None and name not in parameters}


def _nonfinite(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    return [name for name, p in parameters.items() if not bool(p.detach().isfinite().all())]


def _largest(gradients: Mapping[str, torch.Tensor]) -> str:
    return max(gradients, key=lambda name: float(gradients[name].abs().max()))


def _shortened(names: list[str]) -> str:
    """The first three; none: another process has seen it."""
    return ", ".join(names[:3] or ["in another process"]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
