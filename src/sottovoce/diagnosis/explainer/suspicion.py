"""What a rule of the explainer hands over: a finding, and which observation it explains."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sottovoce.core.findings import Finding, Severity
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.runs.record import Series

JUMP = 1.5
"""A loss that is this much above its recent median has jumped; noise of small batches stays below (chosen)."""


@dataclass(frozen=True)
class Suspicion:
    """A finding, and the observation it explains: suspicions of one observation rival each other."""

    finding: Finding
    about: str


class Rule(Protocol):
    """Looks at a run for one kind of trouble."""

    def __call__(self, record: DiagnosedRun) -> Iterable[Suspicion]:
        """What it suspects; nothing of a healthy run."""
        ...


def suspect(
    code: str,
    evidence: str,
    *,
    about: str = "",
    step: int | None = None,
    support: float = 1.0,
    override: str = "",
    fix: str = "",
    severity: Severity | None = None,
) -> Suspicion:
    """A suspicion of the explainer; `about` is the code itself where nothing else could explain the observation."""
    finding = found(
        code, evidence, "explainer", step=step, support=support, override=override, fix=fix, severity=severity
    )
    return Suspicion(finding, about or code)


def middle(values: Sequence[float]) -> float:
    """The median, for values of which there is at least one."""
    return statistics.median(values)


def jump_after(series: Series, step: int) -> tuple[float, float, int] | None:
    """(median of the five values up to `step`, the first one after, its step) where that is a jump; else None."""
    before, after = series.between(-1, step), series.between(step, float("inf"))
    if len(before) < 3 or not after:
        return None
    recent = before.values[-5:]
    usual, first = middle(recent), after.values[0]
    if usual > 0 and first > JUMP * usual and first > 1.2 * max(recent):
        return usual, first, after.steps[0]
    return None
