"""The guard: looks at every step's losses and gradients before the weights move, and decides.

| what it sees | what it does |
|---|---|
| a non-finite loss or gradient, likelihoods of exactly 1, a gradient far beyond the usual (if asked to) | skip |
| a gradient of a parameter that no optimiser owns | skip |
| the same, and the weights themselves are not finite any more | roll back to the last good copy |
| a norm above the fixed limit, or above a multiple of the running median | clip |
| too many skipped steps in a row, or in a window; nothing to roll back to | abort |
| anything else | step |

A skipped step reaches neither the weights nor the optimiser's moments: all gradients are dropped, those of parameters
that no optimiser owns too, and the optimiser then finds nothing to do. The forward pass has already written into the
model's buffers; where it has left them non-finite, they are put back (`buffers.py`).

`clip_grad_norm_` alone is no protection: a NaN norm turns every gradient into NaN. Setting only the bad parameters'
gradients to None is none either: it changes the direction of the step and hides the cause.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError, TrainingAborted
from sottovoce.training.buffers import KeptBuffers
from sottovoce.training.gradients import (
    entries,
    largest,
    nonfinite,
    nonfinite_moments,
    norms_of,
    unowned,
)
from sottovoce.training.gradients import owned_by as owned_by
from sottovoce.training.verdict import Cause as Cause
from sottovoce.training.verdict import GradientSummary as GradientSummary
from sottovoce.training.verdict import GuardConfig as GuardConfig
from sottovoce.training.verdict import KeptState as KeptState
from sottovoce.training.verdict import Losses as Losses
from sottovoce.training.verdict import LossKey as LossKey
from sottovoce.training.verdict import Verdict as Verdict

Agree = Callable[[Sequence[bool]], Sequence[bool]]
WINDOW: Final = 200
"""Steps that running medians and shares look back on."""
FEWEST_NORMS: Final = 20
"""Norms that a running median needs; before that, only the fixed limit holds."""
MOST_ROLL_BACKS: Final = 3
"""The same copy is not trained from more often than this."""
LEAST_SCALE: Final = 1.0
"""Below it a loss scale has nothing left to give: what is not finite then is not its doing."""


@dataclass
class GradientGuard:
    """Guards one optimiser in any PyTorch loop.

    Call `inspect` after `backward` (and after un-scaling) and before `optimizer.step()`; always call the latter.
    `keep` before the first step and now and then, so that there is something to roll back to. `GuardCallback` does both
    in Lightning.

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
    overflows: int = 0
    """Steps skipped besides, because gradients overflowed under the loss scale that a scaler tried."""
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
    _buffers: KeptBuffers = field(default_factory=KeptBuffers, compare=False)

    def __post_init__(self) -> None:
        if not self.max_norm >= 0:
            raise ConfigurationError(f"max_norm={self.max_norm}: must be at least 0; 0 switches clipping off")
        if self.max_bad_steps < 1:
            raise ConfigurationError(f"max_bad_steps={self.max_bad_steps}: must be at least 1")

    def inspect(
        self,
        parameters: Mapping[str, nn.Parameter],
        losses: Losses,
        agree: Agree = lambda flags: list(flags),
        groups: Mapping[str, str] | None = None,
        model: nn.Module | None = None,
        *,
        others: Iterable[torch.optim.Optimizer] = (),
        likelihoods: bool = False,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Verdict:
        """Let the step pass, clip its gradients, or drop them all.

        Args:
            parameters: every parameter of the optimiser, by any name. A sparse gradient is coalesced.
            losses: each utterance's loss in this step (this process's part), by trial id, or by (name of the loss,
                trial id).
            agree: which of these flags are true in any process, so that all processes decide alike. Called exactly
                once.
            groups: the group of each parameter, for the norm's parts; a parameter may have none.
            model: what is trained. Gradients of its parameters that no optimiser owns are refused and dropped, and its
                buffers are kept from a bad step.
            others: the other optimisers of `model`. What they own is theirs: neither looked at nor dropped.
            likelihoods: the losses are -log p of whole targets (CTC, transducer), which are never exactly 0: if all
                are, they were not computed. Other losses may be 0.
            scaler: has un-scaled these gradients. What overflows while it still has a scale above 1 to lower is its
                search: skipped (`fp16_overflow`), counted in `overflows`, and no bad step.

        Raises:
            TrainingAborted: too many steps were skipped, or the weights or buffers are lost and nothing was kept.
        """
        gradients = {name: entries(p) for name, p in parameters.items() if p.grad is not None}
        strays = unowned(parameters, model, others)
        norm, group_norms, norm_tensor = norms_of(gradients, groups or {})
        limit = self._limit()
        if reason := self._reason(norm, gradients, losses, likelihoods, strays, agree, scaler):
            summaries = {name: GradientSummary.of(g) for name, g in gradients.items()}
            summaries |= {name: GradientSummary.of(entries(stray)) for name, stray in strays.items()}
            for parameter in (*parameters.values(), *strays.values()):
                parameter.grad = None  # nobody else would ever drop the strays'
            mended = self._mended(model)
            verdict = replace(reason, group_norms=group_norms, limit=limit, gradients=summaries, buffers=mended)
            return self._skip(verdict, parameters)
        self._passed(norm)
        mended = tuple(self._buffers.after_good_step(model)) if model is not None else ()
        if norm <= limit:
            return Verdict(norm, "step", None, "", group_norms, limit, buffers=mended)
        nn.utils.clip_grads_with_norm_([p for p in parameters.values() if p.grad is not None], limit, norm_tensor)
        return Verdict(norm, "clip", None, "", group_norms, limit, buffers=mended)

    def _reason(
        self,
        norm: float,
        gradients: Mapping[str, torch.Tensor],
        losses: Losses,
        likelihoods: bool,
        strays: Mapping[str, nn.Parameter],
        agree: Agree,
        scaler: torch.amp.GradScaler | None,
    ) -> Verdict | None:
        """Why this step must not reach the weights, with what is at fault; None for a step that may."""
        skip = Verdict(norm, "skip")
        bad = {key: value for key, value in losses.items() if not math.isfinite(value)}
        zero_is_bad, above_0 = likelihoods and bool(losses), any(losses.values())
        bad_gradient, is_spike = not math.isfinite(norm), self._is_spike(norm)
        bad_loss, zero_is_bad, above_0, bad_gradient, stray, spike = agree(
            [bool(bad), zero_is_bad, above_0, bad_gradient, bool(strays), is_spike]
        )
        if bad_loss:
            evidence = _shortened([f"{_named(key)} ({value})" for key, value in bad.items()])
            return replace(skip, cause="nonfinite_loss", evidence=evidence, losses=bad)
        if zero_is_bad and not above_0:
            # A probability of exactly 1 is no achievement but a loss that was never computed, or replaced by a number.
            return replace(skip, cause="zero_loss", evidence=f"{len(losses)} losses, all 0")
        if bad_gradient:
            guilty = [name for name, g in gradients.items() if not bool(g.isfinite().all())]
            overflow = not guilty and not math.isfinite(norm)
            what = f"the norm overflows; largest: {largest(gradients)}" if overflow else _shortened(guilty)
            if scaler is not None and scaler.is_enabled() and scaler.get_scale() > LEAST_SCALE:
                what += f", under a loss scale of {scaler.get_scale():g}"
                return replace(skip, cause="fp16_overflow", evidence=what, parameters=tuple(guilty))
            return replace(skip, cause="nonfinite_gradient", evidence=what, parameters=tuple(guilty))
        if stray:
            return replace(skip, cause="stale_optimizer", evidence=_shortened(strays), parameters=tuple(strays))
        if spike:
            evidence = f"norm {norm:.3g}, {norm / statistics.median(self.norms):.1f} times the median"
            return replace(skip, cause="gradient_spike", evidence=evidence)
        return None

    def keep(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        model: nn.Module | None = None,
    ) -> Verdict | None:
        """Copy weights, moments and `model`'s buffers; what is not finite is rolled back instead, and told.

        Raises:
            TrainingAborted: the weights or moments are lost and nothing was kept.
        """
        if bad := [*nonfinite(parameters), *nonfinite_moments(parameters, optimizer)]:
            self._count(_poisoned(bad))
            self._roll_back(parameters)
        else:
            self._copy = KeptState.of(parameters, optimizer)
            self.roll_backs = 0
        mended = tuple(self._buffers.keep(model)) if model is not None else ()
        if mended and not bad:
            self._count(replace(_poisoned(mended), buffers=mended))
        return self.last_skip if bad or mended else None

    @property
    def can_roll_back(self) -> bool:
        """A copy is at hand that has not failed too often."""
        return self._copy is not None and self.roll_backs < MOST_ROLL_BACKS

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know, as JSON values."""
        return {
            "skipped": dict(self.skipped),
            "overflows": self.overflows,
            "in_a_row": self.in_a_row,
            "norms": self.norms,
            "recent": [int(bad) for bad in self.recent],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.skipped = Counter(state["skipped"])
        self.overflows = state.get("overflows", 0)  # not in states of before it was counted
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
        if bad := nonfinite(parameters):  # a loss that is NaN with every batch: this one is innocent
            lost = _poisoned(bad)
            verdict = replace(
                verdict, action=lost.action, cause=lost.cause, evidence=lost.evidence, parameters=lost.parameters
            )
        elif verdict.cause == "fp16_overflow":
            self.overflows += 1
            return verdict
        self._count(verdict)
        if verdict.action == "roll_back":
            self._roll_back(parameters)
        self._abort_if_hopeless()
        assert self.last_skip is not None
        return self.last_skip

    def _mended(self, model: nn.Module | None) -> tuple[str, ...]:
        """The buffers that a bad step has left non-finite, put back."""
        if model is None:
            return ()
        if lost := self._buffers.without_copy(model):
            raise TrainingAborted(
                f"{_shortened(lost)}: the buffers hold NaN after the first step seen and nothing "
                "was kept to roll back to; call keep(parameters, optimizer, model) before the first step",
                code="poisoned_weights",
            )
        return tuple(self._buffers.after_bad_step(model))

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
            raise TrainingAborted(f"{self.last_skip.evidence}: not finite; {why}", code="poisoned_weights")
        self.roll_backs += 1
        self.last_skip = replace(self.last_skip, lost=KeptState.of(parameters, self._copy.optimizer))
        self._copy.put_back(parameters)

    def _abort_if_hopeless(self) -> None:
        assert self.last_skip is not None
        most = self.config.max_bad_share * WINDOW
        if self.in_a_row >= self.max_bad_steps:
            how_many = f"in {self.in_a_row} steps in a row"
        elif sum(self.recent) > most:  # whatever the rest of the window brings
            how_many = f"in {sum(self.recent)} of the last {len(self.recent)} steps (allowed: {most:g} of {WINDOW})"
        else:
            return
        raise TrainingAborted(
            f"{self.last_skip.cause} {how_many} (last: {self.last_skip.evidence}); the weights are those of the last "
            "good step"
        )


def _poisoned(names: Iterable[str]) -> Verdict:
    """Weights, moments or buffers that hold numbers which are not finite."""
    lost = tuple(names)
    return Verdict(math.nan, "roll_back", "poisoned_weights", _shortened(lost), parameters=lost)


def _named(key: LossKey) -> str:
    return key if isinstance(key, str) else " ".join(reversed(key))


def _shortened(names: Iterable[str]) -> str:
    """The first three; none: another process has seen it."""
    some = list(names)
    return ", ".join(some[:3] or ["in another process"]) + (f" and {len(some) - 3} more" if len(some) > 3 else "")
