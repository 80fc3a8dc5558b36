"""The published T15 baseline as a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from sottovoce.core.checkpoints import write_checkpoint
from sottovoce.core.configuration import plain
from sottovoce.core.errors import ConfigurationError
from sottovoce.models.official_t15 import load_official_t15
from sottovoce.runs.directory import RunDirectory, write_config, write_sessions
from sottovoce.runs.left_out import write_left_out
from sottovoce.runs.vocabulary import write_vocabulary
from sottovoce.training.composition import compose_config


@dataclass(frozen=True)
class Imported:
    """The run that was made."""

    run_dir: Path
    parameters: int
    sessions: tuple[str, ...]


def import_t15(folder: str | PathLike[str], data_root: str | PathLike[str], run_dir: str | PathLike[str]) -> Imported:
    """Write a run directory with the published weights, for evaluation on a data set in the T15 layout.

    `folder` holds `best_checkpoint` and `args.yaml`.

    Raises:
        CheckpointError: the published files cannot be read.
        ConfigurationError: `run_dir` exists already.
    """
    run_dir = Path(run_dir)
    model, sessions = load_official_t15(Path(folder))
    config = compose_config(["recipe=t15_gru", f"data.data_root={data_root}"])
    assert model.config.num_channels is not None
    preprocessor = replace(config.preprocessor, num_channels=model.config.num_channels)
    config = replace(config, model=model.config, preprocessor=preprocessor)
    try:
        run_dir.mkdir(parents=True)
    except FileExistsError:
        raise ConfigurationError(f"{run_dir} exists already; choose another --out") from None
    write_vocabulary(run_dir, None)
    write_left_out(run_dir, {})
    write_sessions(run_dir, sessions)
    write_config(run_dir, plain(config))
    write_checkpoint(RunDirectory(run_dir).best, 0, {"model": model.state_dict()}, {})
    return Imported(run_dir, sum(p.numel() for p in model.parameters()), tuple(sessions))
