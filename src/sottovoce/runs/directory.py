"""The files of a run directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sottovoce.core.errors import CheckpointError

CONFIG_FILE = "config.yaml"
SESSIONS_FILE = "sessions.json"


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's configuration as plain values.

    Raises:
        CheckpointError: `run_dir` is not a run directory, or its configuration is damaged.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{run_dir} is not a run directory: it has no {CONFIG_FILE}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it") from error
    sections = {"seed", "data", "preprocessor", "model", "decoding"}
    if not isinstance(config, dict) or not sections <= config.keys() or "symbols" not in config["data"]:
        raise CheckpointError(f"{path} is not the configuration of a run; restore it")
    return config


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
