"""The losses of every step, utterance by utterance: zeros, missing ones, repeated ones, one that drowns the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.lengths import ctc_frames_needed
from sottovoce.diagnosis.monitor.hysteresis import Hysteresis
from sottovoce.diagnosis.monitor.plan import ObservedStep, Plan, monitored
from sottovoce.features.augmentation import Draws
from sottovoce.models.compose import Encoded
from sottovoce.training.balance import BALANCED
from sottovoce.training.branches import BRANCHES, TRANSDUCER, PartInputs
from sottovoce.training.step import StepComputer

ZERO_STEPS: Final = 20
"""Steps in a row with a loss of exactly 0 (row E5)."""
DOMINATES: Final = 0.95
"""Share of the gradient into the encoder (row E4)."""
MEASURE_EVERY: Final = 500
"""Steps between two measurements of the losses' gradients (row E4), fewer in short runs."""
REPEATED_STEPS: Final = 3
"""Steps in a row in which every loss is one and the same number."""


@dataclass
class Losses:
    """Rows A2, E5 and I1."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    zeros: dict[str, int] = field(default_factory=dict)
    """Steps in a row in which all of a term's losses were exactly 0."""
    positive: dict[str, int] = field(default_factory=dict)
    """Steps in which the term was not 0."""
    repeated: dict[str, list[float]] = field(default_factory=dict)
    """The one number that all of a term's losses were, and in how many steps in a row."""

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        by_term: dict[str, dict[str, float]] = {}
        for (name, trial), nats in now.view.record.losses.items():
            by_term.setdefault(name, {})[trial] = nats
        yield from self._missing(now, by_term)
        for name, losses in by_term.items():
            yield from self._term(now, name, losses)

    def _missing(self, now: ObservedStep, by_term: dict[str, dict[str, float]]) -> Iterator[Finding]:
        training = self.plan.config.training
        parts = now.view.record.parts
        drawn = {trial for part in parts for trial in part.batch.trial_ids}
        planned = training.batch_size * training.gradient_accumulation_steps
        present = sum(len(part.batch.trial_ids) for part in parts)
        if parts and present < planned:
            yield from self._swallowed(now, f"Step {now.step} holds {present} trials, its plan {planned}.", 1.0)
        for name in now.activity.weights:
            missing = drawn - by_term.get(name, {}).keys()
            if missing and drawn:
                some = ", ".join(sorted(missing)[:3])
                evidence = f"Step {now.step} has no {name} loss of {len(missing)} of its {len(drawn)} trials: {some}."
                yield from self._swallowed(now, evidence, 1.0)

    def _term(self, now: ObservedStep, name: str, losses: dict[str, float]) -> Iterator[Finding]:
        zero = [trial for trial, nats in losses.items() if nats == 0.0]
        if len(zero) == len(losses):
            self.zeros[name] = self.zeros.get(name, 0) + 1
            if self.zeros[name] > ZERO_STEPS and f"zero {name}" not in self.reported:
                self.reported.append(f"zero {name}")
                evidence = f"The loss {name} is exactly 0 for all trials, {self.zeros[name]} steps to {now.step}."
                yield monitored("zero_loss", evidence, now.step)
            elif self.positive.get(name, 0) > 2 and self._learnt(name, losses):
                evidence = f"All {len(losses)} losses {name} of step {now.step} are exactly 0, those before were not."
                yield from self._swallowed(now, evidence, 0.9)
            return
        self.zeros[name] = 0
        self.positive[name] = self.positive.get(name, 0) + 1
        yield from self._single_zeros(now, name, zero)
        yield from self._one_number(now, name, list(losses.values()))

    def _learnt(self, name: str, losses: dict[str, float]) -> bool:
        """A loss that can be 0 by merit is none: labels are there to be missed."""
        return not BRANCHES[name].is_likelihood or any(self._labels(trial) for trial in losses)

    def _single_zeros(self, now: ObservedStep, name: str, zero: list[str]) -> Iterator[Finding]:
        with_labels = [trial for trial in zero if self._labels(trial)]
        if not BRANCHES[name].is_likelihood or not with_labels:
            return
        tight = [trial for trial in with_labels if self._needs(trial) > self.plan.frames_of.get(trial, 0)]
        first = (tight or with_labels)[0]
        labels, frames = len(self._labels(first)), self.plan.frames_of.get(first, 0)
        evidence = (
            f"The loss {name} of {first} is exactly 0 at step {now.step}, beside others that are not; it has {labels} "
            f"labels in {frames} frames and needs {self._needs(first)}."
        )
        if tight or name == TRANSDUCER.name:
            if "zero_infinity" not in self.reported:
                self.reported.append("zero_infinity")
                yield monitored("zero_infinity", evidence, now.step)
        elif all(len(part.batch) > 1 for part in now.view.record.parts):
            yield from self._swallowed(now, evidence, 0.8)

    def _one_number(self, now: ObservedStep, name: str, values: list[float]) -> Iterator[Finding]:
        number, count = self.repeated.get(name, [math.nan, 0.0])
        if len(values) > 1 and len(set(values)) == 1:
            count = count + 1 if values[0] == number else 1.0
            self.repeated[name] = [values[0], count]
            if count >= REPEATED_STEPS:
                evidence = f"Every loss {name} of {count:.0f} steps to {now.step} is exactly {values[0]:g}."
                yield from self._swallowed(now, evidence, 0.95)
        else:
            self.repeated.pop(name, None)

    def _swallowed(self, now: ObservedStep, evidence: str, support: float) -> Iterator[Finding]:
        if "swallowed_exception" not in self.reported:
            self.reported.append("swallowed_exception")
            yield monitored("swallowed_exception", evidence, now.step, support=support)

    def _labels(self, trial: str) -> tuple[int, ...]:
        known = self.plan.trials.get(trial)
        return (known.labels or ()) if known is not None else ()

    def _needs(self, trial: str) -> int:
        return ctc_frames_needed(self._labels(trial))


@dataclass
class Balance:
    """Row E4: the share of each loss in the gradient that reaches the encoder, measured now and then."""

    plan: Plan
    reported: list[str] = field(default_factory=list)
    stage: str = ""
    dominated: Hysteresis = field(default_factory=lambda: Hysteresis(3, 1.0, 0.4))

    @property
    def every(self) -> int:
        """Steps between two measurements."""
        return min(MEASURE_EVERY, max(10, self.plan.total_steps // 20))

    def look(self, now: ObservedStep) -> Iterator[Finding]:
        """After every step."""
        if set(now.activity.weights) != set(self.stage.split()):
            self.stage = " ".join(sorted(now.activity.weights))
            self.dominated.forget()
        if (
            not all(name in now.activity.weights for name in BALANCED)
            or now.step % self.every
            or now.skipped
            or self.reported
        ):
            return
        norms = encoder_gradients(now.view.computer)
        total = sum(norms.values())
        if not total or not math.isfinite(total):
            return
        name = max(norms, key=lambda term: norms[term])
        if self.dominated.update(norms[name] / total > DOMINATES) == "raised":
            self.reported.append("loss_term_dominates")
            others = ", ".join(f"{term} {norm:.3g}" for term, norm in norms.items() if term != name)
            yield monitored(
                "loss_term_dominates",
                f"The loss {name}, weight {now.activity.weights[name]:g}, sends {norms[name] / total:.1%} of the "
                f"gradient into the encoder at step {now.step} ({name} {norms[name]:.3g}, {others}), as in the two "
                "measurements before.",
                now.step,
                support=0.9,
            )


def encoder_gradients(computer: StepComputer) -> dict[str, float]:
    """Norm of the gradient that the CTC and the transducer loss, weighted, send into the encoder's frames.

    For the step's last micro-batch, without dropout; changes nothing and draws nothing.
    """
    record, config = computer.current, computer.config
    weights = {name: record.activity.weights[name] for name in BALANCED if name in record.activity.weights}
    part = record.parts[-1]
    was_training = computer.model.training
    computer.model.eval()
    try:
        batch = computer.pipeline.evaluate(replace(part.batch, signal=part.batch.signal.clone()))
        with torch.no_grad():
            encoded = computer.model.encode(batch.signal, batch.lengths_B, batch.session_B, False)
        with torch.enable_grad():
            frames_BSE = encoded.frames_BSE.detach().requires_grad_()
            draws = Draws(config.seed, part.step, part.positions, batch.signal.device)
            detached = Encoded(frames_BSE, encoded.lengths_B)
            inputs = PartInputs(computer.model, batch, detached, computer.blank, part.positions, draws)
            norms = {}
            for name, weight in weights.items():
                branch = computer.branches[name]
                share = computer.share(name, branch.nats(inputs, computer.settings_of(branch)), inputs)
                (gradient,) = torch.autograd.grad(share, frames_BSE, retain_graph=True)
                norms[name] = weight * float(gradient.float().norm())
    finally:
        computer.model.train(was_training)
    if config.training.loss_scaling == "gradient_norm" and TRANSDUCER.name in norms:
        norms[TRANSDUCER.name] *= computer.balance.transducer_factor
    return norms
