"""Trials that a run leaves out because they cannot be used (`data.on_fault=skip`), kept with the run.

Training, a resumed training and every later evaluation leave out the same ones, and say how many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sottovoce.core.errors import CheckpointError
from sottovoce.core.faults import Fault

FILE_NAME = "left_out.json"


def write_left_out(run_dir: Path, faults: Mapping[str, Fault]) -> None:
    """Write the faults by trial id."""
    content = {trial_id: fault.as_dict() for trial_id, fault in faults.items()}
    (run_dir / FILE_NAME).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_left_out(run_dir: Path) -> dict[str, Fault]:
    """What `write_left_out` wrote; nothing where it was never called.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {trial_id: Fault(**fault) for trial_id, fault in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the run directory is incomplete") from error
