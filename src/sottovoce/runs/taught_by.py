"""The runs that have taught a run, and with which weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sottovoce.core.errors import CheckpointError
from sottovoce.core.files import replace_text
from sottovoce.runs.directory import RunDirectory


@dataclass(frozen=True)
class TaughtBy:
    """One teacher."""

    run: str
    """Its directory, as the configuration calls it."""
    checkpoint_step: int
    weights_sha256: str


def write_taught_by(run_dir: Path, teachers: Sequence[TaughtBy]) -> None:
    """Keep with a run who teaches it; nothing of one that nobody teaches."""
    if teachers:
        replace_text(RunDirectory(run_dir).teachers, json.dumps([asdict(teacher) for teacher in teachers], indent=1))


def read_taught_by(run_dir: Path) -> tuple[TaughtBy, ...]:
    """What `write_taught_by` wrote; nothing where nobody taught.

    Raises:
        CheckpointError: the record is damaged.
    """
    path = RunDirectory(run_dir).teachers
    if not path.exists():
        return ()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            TaughtBy(str(entry["run"]), int(entry["checkpoint_step"]), str(entry["weights_sha256"]))
            for entry in entries
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the run directory is incomplete") from error
