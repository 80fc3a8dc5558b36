"""Which part of a bad step is bad: loss term, trial, module, dtype, weights, or only these weights with this batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from sottovoce.diagnosis.capsules.capsule import Capsule
from sottovoce.diagnosis.capsules.recompute import (
    Item,
    Outcome,
    every_item,
    fresh_model,
    kept_model,
    recompute,
    trial_of,
)
from sottovoce.diagnosis.capsules.signals import Signal, look_at_signals
from sottovoce.diagnosis.capsules.tracing import Operation, Site, Tracer
from sottovoce.features.pipeline import FeaturePipeline


@dataclass(frozen=True)
class Utterance:
    """A trial of the step, as the losses saw it."""

    trial: str
    frames: int
    """Valid frames by the model's formula."""
    real_frames: int
    """Frames that its batch's tensor really has."""
    longest_frames: int
    """Valid frames of the longest trial of its batch, by the formula."""
    labels: tuple[int, ...]
    label_width: int
    """Width of its batch's tensor of labels."""
    signal: Signal

    @property
    def needed(self) -> int:
        """Frames that CTC needs: labels and adjacent repeats (docs/failures/ctc_infeasible.md)."""
        return len(self.labels) + sum(a == b for a, b in zip(self.labels, self.labels[1:], strict=False))


@dataclass(frozen=True)
class Isolation:
    """What was found by computing the step again in parts."""

    whole: Outcome
    bad_weights: tuple[str, ...] = ()
    """Tensors of the model that were not finite before the step."""
    terms: tuple[str, ...] = ()
    """Losses that are enough for the fault on their own."""
    trials: tuple[str, ...] = ()
    """Trials that are enough on their own; where none is, the smallest set that was found."""
    together: bool = False
    """No trial is bad alone; `trials` are bad together."""
    utterances: dict[str, Utterance] = field(default_factory=dict)
    operation: Operation | None = None
    forward: Site | None = None
    outlier: Site | None = None
    backward: Site | None = None
    module_source: str = ""
    """Python module that defines the module where it began."""
    by_dtype: dict[str, bool] = field(default_factory=dict)
    """Bad as computed in each precision."""
    fresh: Outcome | None = None
    """The same batch on the weights that the run began with."""


def isolate(capsule: Capsule) -> Isolation:
    """Compute the step of `capsule` again, whole and in parts.

    Raises:
        CheckpointError: the capsule's weights do not fit its configuration.
    """
    model = kept_model(capsule)
    bad_weights = tuple(n for n, t in model.state_dict().items() if t.is_floating_point() and not t.isfinite().all())
    tracer = Tracer(model)
    whole = recompute(capsule, model, watching=tracer)

    def is_bad(outcome: Outcome) -> bool:
        return same_fault(capsule, whole, outcome)

    terms = tuple(
        name
        for name in dict.fromkeys(loss for loss, _ in whole.losses)
        if is_bad(recompute(capsule, model, terms=[name]))
    )
    trials, together = _guilty_trials(capsule, lambda items: is_bad(recompute(capsule, model, items=items)))
    source = next((s for s in (tracer.forward, tracer.outlier) if s is not None), None)
    named = dict(model.named_modules())
    by_dtype = {
        "bfloat16": recompute(capsule, model, bfloat16=True).is_bad if capsule.bfloat16 else None,
        "float32": recompute(capsule, model, bfloat16=False).is_bad,
    }
    if whole.bad_gradients or whole.bad_losses:
        by_dtype["float64"] = recompute(capsule, kept_model(capsule), dtype=torch.float64).is_bad
    return Isolation(
        whole=whole,
        bad_weights=bad_weights,
        terms=terms,
        trials=trials,
        together=together,
        utterances=_utterances(capsule, whole),
        operation=tracer.operation,
        forward=tracer.forward,
        outlier=tracer.outlier,
        backward=tracer.backward,
        module_source=type(named[source.module]).__module__ if source else "",
        by_dtype={name: bad for name, bad in by_dtype.items() if bad is not None},
        fresh=recompute(capsule, fresh_model(capsule)),
    )


def same_fault(capsule: Capsule, whole: Outcome, part: Outcome) -> bool:
    """A part of the step shows what the whole step shows."""
    if whole.is_bad:
        return part.is_bad
    if capsule.verdict.cause == "gradient_spike":
        return part.norm > capsule.verdict.gradient_norm / 2
    return capsule.verdict.cause == "zero_loss" and not any(part.losses.values())


def _guilty_trials(capsule: Capsule, is_bad: Callable[[list[Item]], bool]) -> tuple[tuple[str, ...], bool]:
    """The trials that are bad alone, by bisection; else a set that is bad together while neither half of it is."""
    alone: list[Item] = []
    together: list[Item] = []

    def search(items: list[Item]) -> None:
        nonlocal together
        if len(items) == 1:
            alone.extend(items)
            return
        halves = [half for half in (items[: len(items) // 2], items[len(items) // 2 :]) if is_bad(half)]
        for half in halves:
            search(half)
        if not halves and (not together or len(items) < len(together)):
            together = items

    whole = every_item(capsule)
    if whole and is_bad(whole):
        search(whole)
    chosen = alone or together
    trials = dict.fromkeys(trial_of(capsule, item) for item in chosen)  # one that was drawn twice is one trial
    return tuple(trials), bool(together and not alone)


def _utterances(capsule: Capsule, whole: Outcome) -> dict[str, Utterance]:
    signals = look_at_signals(
        FeaturePipeline(capsule.config.preprocessor),
        (part.batch for process in capsule.processes for part in process.parts),
    )
    found = {}
    for computed in whole.parts:
        batch, encoded = computed.inputs.batch, computed.inputs.encoded
        frames_B = encoded.lengths_B.tolist()
        for row, trial in enumerate(batch.trial_ids):
            found[trial] = Utterance(
                trial=trial,
                frames=frames_B[row],
                real_frames=encoded.frames_BSE.shape[1],
                longest_frames=max(frames_B),
                labels=tuple(batch.labels_BU[row, : int(batch.label_lengths_B[row])].tolist()),
                label_width=batch.labels_BU.shape[1],
                signal=signals[trial],
            )
    return found
