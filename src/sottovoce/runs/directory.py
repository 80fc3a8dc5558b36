"""The files of a run directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from sottovoce.core.errors import CheckpointError

CONFIG_FILE = "config.yaml"
SESSIONS_FILE = "sessions.json"
SECTIONS: Final = frozenset({"seed", "data", "preprocessor", "model", "training", "decoding"})
"""Every configuration of a run has these keys."""
RUN_FILES: Final = ("environment.json", "lexicon.json", "sessions.json", "metrics.jsonl", "events.jsonl")
"""What shows that a folder without a configuration was meant to be a run."""


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's configuration as plain values.

    Raises:
        CheckpointError: `run_dir` is not a run directory, or its configuration is damaged.
    """
    path = run_dir / CONFIG_FILE
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir} is no folder: give the run directory that `sottovoce train` printed")
    if not path.is_file():
        if not any(run_dir.iterdir()):
            raise CheckpointError(f"{run_dir} is empty: the run wrote nothing, so there is nothing to diagnose")
        if any((run_dir / name).exists() for name in RUN_FILES):
            raise CheckpointError(
                f"{run_dir} is half-written: it has no {CONFIG_FILE}, which a run writes before its first step; "
                "start the run again"
            )
        raise CheckpointError(f"{run_dir} is not a run directory: it has no {CONFIG_FILE}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read ({reason}); restore it") from error
    if not isinstance(values, dict) or not values.keys() >= SECTIONS or "symbols" not in values["data"]:
        raise CheckpointError(f"{path} is not the configuration of a run of sottovoce; {run_dir} is not ours")
    return values


def write_sessions(run_dir: Path, sessions: Sequence[str]) -> None:
    """Keep the order of the session adapters with the run: another data set may hold other sessions."""
    (run_dir / SESSIONS_FILE).write_text(json.dumps(list(sessions)), encoding="utf-8")


def read_sessions(run_dir: Path) -> tuple[str, ...]:
    """What `write_sessions` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = run_dir / SESSIONS_FILE
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the run directory is incomplete") from error
