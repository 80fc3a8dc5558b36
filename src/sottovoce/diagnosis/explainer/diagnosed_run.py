"""The record of a run with its configuration checked by this version."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from sottovoce.core.configuration import build
from sottovoce.core.errors import CheckpointError, ConfigurationError, UnknownKeyError
from sottovoce.core.findings import SEVERITIES
from sottovoce.diagnosis.causes import causes
from sottovoce.runs.directory import CONFIG_FILE, RunDirectory
from sottovoce.runs.names import Event
from sottovoce.runs.reading import lines_left_out, read_run
from sottovoce.runs.record import RunRecord
from sottovoce.training.config import RunConfig

REFUSED: Final[dict[str, Any]] = {
    "code": str,
    "evidence": str,
    "losses": list,
    "num_trials": int,
    "parameters": list,
    "num_parameters": int,
}
"""Fields of the events of the guard."""
FIELDS_OF_EVENT: Final[dict[str, dict[str, Any]]] = {
    Event.STAGE_STARTED: {"stage": str, "num_steps": int, "loss_weights": dict, "components": list},
    Event.STAGE_FINISHED: {"stage": str, "complete": bool},
    Event.UNFROZEN: {"components": list, "trainable_parameters": int},
    Event.STEP_SKIPPED: REFUSED,
    Event.ROLLED_BACK: REFUSED,
    Event.RUN_FAILED: {"message": str},
    Event.TAUGHT_BY: {"per": list},
}
"""What a rule may rely on in an event, beside its step."""
FINDING_FIELDS: Final[dict[str, Any]] = {"severity": str, "evidence": str, "source": str, "support": (int, float)}
"""The same of the events that are findings: those with a code of the catalogue."""
OWN_FIELDS: Final[dict[str, Any]] = {"override": str, "advice": str, "trials": list}
"""What such an event may hold besides."""


@dataclass(frozen=True)
class DiagnosedRun(RunRecord):
    """What a run has left behind, for the rules."""

    config: RunConfig | None = field(kw_only=True)
    """The configuration checked; None where this version refuses a value that another accepted."""

    @property
    def log_every(self) -> int:
        """Steps between two lines of training metrics."""
        return self.config.training.log_every_steps if self.config else 1


def read_diagnosed(run_dir: Path) -> DiagnosedRun:
    """Everything in `run_dir` that a diagnosis reads; `damaged` says which files could not be.

    Raises:
        CheckpointError: it is no run directory, it was left half-written, or it comes from a newer version.
    """
    record = read_run(run_dir)
    odd = {number: what for number, event in enumerate(record.events, 1) if (what := _odd_event(event))}
    read = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    read["events"] = tuple(event for number, event in enumerate(record.events, 1) if number not in odd)
    read["damaged"] += tuple(lines_left_out(RunDirectory(run_dir).events, odd, len(record.events)))
    return DiagnosedRun(**read, config=_built(record))


def _built(record: RunRecord) -> RunConfig | None:
    try:
        return build(RunConfig, record.values)
    except UnknownKeyError as error:
        version = record.environment.get("sottovoce", "unknown")
        raise CheckpointError(
            f"{record.run_dir / CONFIG_FILE} is of another version of sottovoce ({version}): "
            f"unknown configuration key {error.key}; update sottovoce"
        ) from error
    except ConfigurationError:
        return None


def _odd_event(event: dict[str, Any]) -> str:
    """What keeps a rule from reading the event."""
    code = event["event"]
    wanted = FIELDS_OF_EVENT.get(code, FINDING_FIELDS if code in causes() else {})
    odd = [key for key, kind in wanted.items() if not isinstance(event.get(key), kind)]
    if wanted is FINDING_FIELDS:
        odd += [key for key, kind in OWN_FIELDS.items() if key in event and not isinstance(event[key], kind)]
    if odd or ("severity" in wanted and event["severity"] not in SEVERITIES):
        return f"is no event {code} of this version ({', '.join(odd or ['severity'])})"
    return ""
