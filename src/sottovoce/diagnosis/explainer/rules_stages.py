"""Rules about stages, unfreezing and continuation: what was planned, what happened, and what followed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.suspicion import Suspicion, jump_after, middle, suspect
from sottovoce.models.compose import DecoderModel
from sottovoce.runs.names import Event, Metric
from sottovoce.runs.record import Series
from sottovoce.training.branches import BRANCHES, CTC, TRANSDUCER

STILL: Final = 0.97
MOVES: Final = 0.8
"""A loss of which this much is left has not moved, or has: one that is not trained stays at (T + U) ln V
(docs/failures/stale_optimizer.md)."""
RELEASED_STEPS: Final = 50
"""Steps after its release in which a part's loss must have moved."""


def released_part_stands_still(record: DiagnosedRun) -> Iterator[Suspicion]:
    """B1: after a stage change or a release the new part's loss does not move while CTC's does."""
    for event in record.events_named(Event.UNFROZEN, Event.STAGE_STARTED):
        step = int(event["step"])
        for branch in BRANCHES.values():
            component = branch.component
            if component == CTC.component or component not in event["components"]:
                continue
            if step == 0 and not branch.held_back:
                continue
            last = min((b.first for b in record.stages if b.first > step), default=record.last_step)
            own, ctc = (record.metric(name).between(step, last) for name in (branch.metric, CTC.metric))
            if len(own) < 6 or len(ctc) < 6 or own.steps[-1] - own.steps[0] < RELEASED_STEPS:
                continue
            left, left_of_ctc = _share_left(own), _share_left(ctc)
            if left >= STILL and left_of_ctc <= MOVES:
                evidence = (
                    f"{component} was released at step {step}; its loss stays at {own.values[-1]:.4g} ({left:.0%} of "
                    f"{own.values[0]:.4g} after {own.steps[-1] - step} steps) while the CTC loss went to "
                    f"{left_of_ctc:.0%}."
                )
                yield suspect("stale_optimizer", evidence, step=step, support=0.85)
                return


def _share_left(series: Series) -> float:
    third = max(2, len(series) // 3)
    return middle(series.values[-third:]) / max(middle(series.values[:third]), 1e-12)


def held_back_part_is_computed(record: DiagnosedRun) -> Iterator[Suspicion]:
    """B3: the loss of a part that is still frozen is recorded, so that its forward pass ran."""
    warmup = record.config.training.rnnt_warmup_batches if record.config else 0
    released = [int(e["step"]) for e in record.events_named(Event.UNFROZEN) if "rnnt_decoder" in e["components"]]
    holding = [b for b in record.stages if b.weights.get("rnnt")]
    if not warmup or not holding:
        return
    until = released[0] if released else min(holding[0].first + warmup, record.last_step)
    early = record.metric(TRANSDUCER.metric).between(holding[0].first, until)
    if early:
        evidence = (
            f"{TRANSDUCER.metric} is recorded from step {early.steps[0]} on, although the "
            "transducer is frozen until "
            f"step {until}: its random weights send gradient into the encoder."
        )
        yield suspect("frozen_branch_leaks", evidence, step=early.steps[0], support=0.9)


def moments_were_lost(record: DiagnosedRun) -> Iterator[Suspicion]:
    """B5: Adam has counted fewer steps than the weights have moved; or, without a checkpoint, the loss jumped."""
    changes = record.events_named(Event.STAGE_STARTED, Event.UNFROZEN, Event.RESUMED)
    saved = record.checkpoints.get("last")
    always = record.stages and all("encoder" in b.event["components"] and _recognises(b.weights) for b in record.stages)
    if saved and saved.optimizer_steps and always and not record.events_named(Event.ROLLED_BACK):
        counts = [n for name, n in saved.optimizer_steps.items() if DecoderModel.component_of(name) == "encoder"]
        counted = max(counts, default=0)
        updates = int(saved.progress.get("updates", counted))
        if counted >= updates:
            return
        near = [
            e for e in changes if abs(int(e["step"]) - (saved.step - counted)) <= record.log_every and e["step"] > 0
        ]
        what = f"; that is where {_called(near[-1])}" if near else ""
        evidence = (
            f"At step {saved.step} the weights have moved {updates} times, but the moments of "
            f"the encoder count {counted} "
            f"steps: they began anew at step {saved.step - counted}{what}."
        )
        yield suspect("optimizer_recreated", evidence, step=saved.step - counted, support=0.95, about="jump")
        return
    if saved and saved.optimizer_steps and always:
        return
    for event in changes:
        if event["event"] != Event.RESUMED and (jump := jump_after(record.metric(CTC.metric), int(event["step"]))):
            usual, first, step = jump
            evidence = (
                f"The CTC loss jumped from {usual:.4g} to {first:.4g} at step {step}, right after {_called(event)}."
            )
            yield suspect("optimizer_recreated", evidence, step=int(event["step"]), support=0.6, about="jump")


def _recognises(weights: dict[str, float]) -> bool:
    return bool(weights.get("ctc") or weights.get("rnnt"))


def _called(event: dict[str, Any]) -> str:
    names = {
        Event.RESUMED: "the run was resumed",
        Event.UNFROZEN: f"{', '.join(event.get('components', ()))} was released",
        Event.STAGE_STARTED: f"stage {event.get('stage')} began",
    }
    return names[event["event"]]


def continuation_is_complete(record: DiagnosedRun) -> Iterator[Suspicion]:
    """I2: the loss jumps, a stage begins again, or steps are missing or repeated where a run was resumed."""
    resumed = [int(event["step"]) for event in record.events_named(Event.RESUMED)]
    if not resumed:
        return
    for step in resumed:
        if jump := jump_after(record.metric(Metric.CTC_LOSS), step):
            evidence = (
                f"Resumed at step {step}: the CTC loss jumped from {jump[0]:.4g} to {jump[1]:.4g} at step {jump[2]}."
            )
            yield suspect("incomplete_resume", evidence, step=step, support=0.7, about="jump")
            break
    begun = [str(event["stage"]) for event in record.events_named(Event.STAGE_STARTED)]
    if again := [name for name in begun if begun.count(name) > 1]:
        evidence = f"Stage {again[0]} began {begun.count(again[0])} times; the run was resumed at step {resumed[-1]}."
        yield suspect("incomplete_resume", evidence, step=resumed[-1], support=0.95)
    steps = [int(line["step"]) for line in record.metrics if line["name"] == Metric.TRAIN_LOSS]
    counts = Counter(steps)
    if repeated := [s for s, count in counts.items() if count > 1]:
        evidence = f"Step {repeated[0]} is recorded {counts[repeated[0]]} times; resumed at step {resumed[-1]}."
        yield suspect("incomplete_resume", evidence, step=resumed[-1], support=0.9)
    skipped = {int(event["step"]) for event in record.events_named(Event.STEP_SKIPPED, Event.ROLLED_BACK)}
    for step in resumed:
        after = [s for s in steps if s > step]
        if after and after[0] - step > 2 * record.log_every and not skipped & set(range(step, after[0])):
            evidence = f"Resumed at step {step}, but the first record after it is of step {after[0]}."
            yield suspect("incomplete_resume", evidence, step=step, support=0.8)
            return


def stage_ended_at_once(record: DiagnosedRun) -> Iterator[Suspicion]:
    """E3: a stage ran out of patience before it had been validated often enough to lose any."""
    if record.config is None:
        return
    patience = {stage.canonical_name: stage.patience or 1 for stage in record.config.training.stages}
    for event in record.events_named(Event.STAGE_FINISHED):
        begun = [b for b in record.stages if b.name == event["stage"]]
        if not begun or event["complete"]:
            continue
        first, last = begun[-1].first, int(event["step"])
        validations = len(record.metric(Metric.VAL_LOSS).between(first, last))
        if validations <= patience.get(begun[-1].name, 1):
            evidence = (
                f"Stage {begun[-1].name} ended after {last - first} of "
                f"{begun[-1].event['num_steps']} steps for want of "
                f"improvement, with {validations} validation{'' if validations == 1 else 's'} of its own."
            )
            yield suspect("stage_one_epoch", evidence, step=last, support=0.95)


def planned_events_happened(record: DiagnosedRun) -> Iterator[Suspicion]:
    """I4: the transducer's release, and every stage, were planned; did they come?"""
    config = record.config
    if config is None or not record.stages:
        return
    training = config.training
    wanted = {stage.canonical_name for stage in training.stages if stage.weight_of(TRANSDUCER.name)}
    stages = [b for b in record.stages if b.name in wanted]
    done = sum(b.last - b.first for b in stages)
    bad = len(record.events_named(Event.STEP_SKIPPED, Event.ROLLED_BACK))
    released = any("rnnt_decoder" in event["components"] for event in record.events_named(Event.UNFROZEN))
    late = done - bad - training.rnnt_warmup_batches
    due = stages[0].first + training.rnnt_warmup_batches if stages else 0
    runs = bool(record.metric(TRANSDUCER.metric).between(due, float("inf")))
    if stages and training.rnnt_warmup_batches and late > record.log_every and not released and not runs:
        evidence = (
            f"The transducer was to be released after {training.rnnt_warmup_batches} steps of its stages; after "
            f"{done} of them (step {stages[-1].last}) it never was."
        )
        yield suspect("per_epoch_counter", evidence, step=stages[-1].last, support=0.95)
    planned = [s for s in training.stages if config.model.flow_bridge.enabled or "flow_bridge" not in s.components]
    if record.finished and len(record.stages) < len(planned):
        missing = next(s.canonical_name for s in planned if s.canonical_name not in {b.name for b in record.stages})
        evidence = f"The run finished at step {record.last_step}, but its stage {missing} never began."
        yield suspect("per_epoch_counter", evidence, step=record.last_step, support=0.9)
