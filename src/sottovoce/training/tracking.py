"""Weights & Biases beside the run's own files; off unless `wandb.enabled=true`.

Only the main process tracks. Without a network set WANDB_MODE=offline and upload later with `wandb sync`.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sottovoce.core.errors import ConfigurationError
from sottovoce.runs.directory import RunDirectory


@dataclass(frozen=True)
class WandbConfig:
    """Settings of the section `wandb`; needs the extra `sottovoce[wandb]`."""

    enabled: bool = False
    project: str = "sottovoce"
    entity: str | None = None
    """User or team; absent: your default one."""
    run_name: str | None = None
    """Absent: the name of the run's folder."""
    tags: tuple[str, ...] = ()
    notes: str | None = None


class Tracker:
    """One tracked run; a resumed run continues it."""

    def __init__(self, config: WandbConfig, run_dir: Path, settings: dict[str, Any], steps_per_epoch: int) -> None:
        """`settings` is the whole resolved configuration of the run.

        Raises:
            ConfigurationError: the package is not installed, or it cannot start (no login and no offline mode).
        """
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "wandb.enabled=true needs the package wandb: pip install 'sottovoce[wandb]', or leave it off"
            ) from error
        self._steps_per_epoch = steps_per_epoch
        id_file = RunDirectory(run_dir).wandb_id
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.run_name or run_dir.name,
                tags=list(config.tags),
                notes=config.notes,
                config=settings,
                dir=str(run_dir),
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            raise ConfigurationError(
                f"wandb cannot start ({error}); run `wandb login`, set WANDB_MODE=offline, or wandb.enabled=false"
            ) from error

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Values of one step; the step is the axis of every chart, epoch and batch are fields beside it."""
        self._run.log({"step": step, "batch": step, "epoch": step / self._steps_per_epoch, **values}, step=step)

    def close(self) -> None:
        """Write everything out."""
        self._run.finish()
