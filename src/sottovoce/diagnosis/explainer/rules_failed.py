"""Runs that ended by an error: what it said comes before anything else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sottovoce.diagnosis.causes import causes
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.suspicion import Suspicion, suspect
from sottovoce.runs.names import Event


def failure_of(record: DiagnosedRun) -> dict[str, Any] | None:
    """The event of the error that ended the run; None where it ended otherwise, or has been resumed since."""
    ends = record.events_named(Event.RUN_FAILED, Event.RESUMED, Event.RUN_ABORTED, Event.RUN_FINISHED)
    return ends[-1] if ends and ends[-1]["event"] == Event.RUN_FAILED else None


def run_failed(record: DiagnosedRun) -> Iterator[Suspicion]:
    """The error, as the cause that its message names, else as `ended_by_error`."""
    event = failure_of(record)
    if event is None:
        return
    code = event.get("code")
    evidence = f"The run failed after step {event['step']}: {event['message']}"
    yield suspect(code if code in causes() else "ended_by_error", evidence, severity="error")
