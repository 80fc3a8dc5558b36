"""Has the student learnt what its teachers know? Asked of runs that no preflight has looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.rules_learnt import had_time
from sottovoce.diagnosis.explainer.suspicion import Suspicion, middle, suspect
from sottovoce.metrics import percent
from sottovoce.runs.names import Event, Metric

WORSE: Final = 0.3
"""A student may be worse than the mean teacher by this much PER."""
STANDS: Final = 0.8
"""Of a divergence that falls, the last third of the run is below this share of the second."""


def student_is_far_from_its_teachers(record: DiagnosedRun) -> Iterator[Suspicion]:
    """H5 in the records alone: good teachers, a divergence that falls no further, and a student that decodes little.

    A student that is too small for what it is taught looks alike. Preflight tells them apart; where it has run, nothing
    is said here.
    """
    if record.config is None or record.config.training.preflight:
        return
    rates, divergence = record.metric(Metric.VAL_PER), record.metric(Metric.DISTILLATION_LOSS)
    known = [
        float(per)
        for event in record.events_named(Event.TAUGHT_BY)[:1]
        for per in event["per"]
        if isinstance(per, float)
    ]
    if not known or not rates or len(divergence) < 6 or not had_time(record):
        return
    theirs, third = sum(known) / len(known), len(divergence) // 3
    now, before = middle(divergence.values[-third:]), middle(divergence.values[-2 * third : -third])
    if rates.values[-1] <= theirs + WORSE or now < STANDS * before:
        return
    yield suspect(
        "teacher_audio_mismatch",
        f"The teachers had a PER of {percent(theirs)} in their own validation, the student has "
        f"{percent(rates.values[-1])} at step {rates.steps[-1]}; the divergence from them was {before:.4g} and is "
        f"{now:.4g} nats. Preflight was switched off: training.preflight=true would tell this from a student that "
        "is too small.",
        step=rates.steps[-1],
        support=0.7,
        severity="warning",
    )
