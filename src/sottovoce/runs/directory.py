"""Where each file of a run lies, and the small files that say how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from sottovoce.core.errors import CheckpointError
from sottovoce.core.files import replace_text

CONFIG_FILE = "config.yaml"
SESSIONS_FILE = "sessions.json"
SECTIONS: Final = frozenset({"seed", "data", "preprocessor", "model", "training", "decoding"})
"""Every configuration of a run has these keys."""
RUN_FILES: Final = ("environment.json", "lexicon.json", "sessions.json", "metrics.jsonl", "events.jsonl")
"""What shows that a folder without a configuration was meant to be a run."""


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run's files; whether there is such a file yet is another question.

    What is read and written by one module of `runs` alone (`trained_on`, `left_out`, `vocabulary`, `lock`) has its name
    there.
    """

    path: Path

    def __fspath__(self) -> str:
        """The directory itself, for whatever takes a path."""
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """The whole configuration as YAML; written last of a new run's files."""
        return self.path / CONFIG_FILE

    @property
    def sessions(self) -> Path:
        """Whose adapters the model has, in order."""
        return self.path / SESSIONS_FILE

    @property
    def environment(self) -> Path:
        """Versions, machine and seed at the beginning."""
        return self.path / "environment.json"

    @property
    def teachers(self) -> Path:
        """The runs that teach this one, with a digest of their weights."""
        return self.path / "teachers.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: step, split, name, value."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One JSON object a line: step, event, and what belongs to it."""
        return self.path / "events.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The metrics once more, for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def wandb_id(self) -> Path:
        """Under which a tracked run goes on when it is resumed."""
        return self.path / "wandb_id"

    @property
    def last(self) -> Path:
        """The checkpoint that a resumed run continues from."""
        return self.checkpoint("last")

    @property
    def best(self) -> Path:
        """The checkpoint that validation chose, to be evaluated."""
        return self.checkpoint("best")

    def checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint."""
        return self.path / "checkpoints" / name

    @property
    def capsules(self) -> Path:
        """Folder of the bad steps that were kept to be computed again."""
        return self.path / "capsules"

    @property
    def report(self) -> Path:
        """The page that sums it all up."""
        return self.path / "report.html"

    def evaluation(self, name: str) -> Path:
        """Rates of an evaluation; `name` is `SPLIT.DECODER`."""
        return self.path / "evaluation" / f"{name}.json"

    def hypotheses(self, name: str) -> Path:
        """One JSON object a line for each trial of an evaluation; `name` is `SPLIT.DECODER`."""
        return self.path / f"hypotheses.{name}.jsonl"

    def examples(self, split: str) -> Path:
        """Log-probabilities of some trials of a split."""
        return self.path / "evaluation" / f"examples.{split}.npz"

    @property
    def evaluations(self) -> list[Path]:
        """Those that have been written."""
        return sorted((self.path / "evaluation").glob("*.json"))

    @property
    def all_examples(self) -> list[Path]:
        """Those that have been written."""
        return sorted((self.path / "evaluation").glob("examples.*.npz"))


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's configuration as plain values.

    Raises:
        CheckpointError: `run_dir` is not a run directory, or its configuration is damaged.
    """
    path = RunDirectory(run_dir).config
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir} is no folder: give the run directory that `sottovoce train` printed")
    if not path.is_file():
        if not any(run_dir.iterdir()):
            raise CheckpointError(f"{run_dir} is empty: the run wrote nothing; start it again")
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
    if isinstance(values, dict) and "evaluation" in values and "decoding" not in values:
        raise CheckpointError(
            f"{path} was written before its section `evaluation` became `decoding`; rename it, and give beam_size and "
            "max_symbols_per_frame as keys of decoding.transducer"
        )
    if not isinstance(values, dict) or not values.keys() >= SECTIONS or "symbols" not in values["data"]:
        raise CheckpointError(f"{path} is not the configuration of a run of sottovoce; {run_dir} is not ours")
    return values


def write_config(run_dir: Path, values: Mapping[str, Any]) -> None:
    """The last of a new run's files: a folder with a configuration can be resumed."""
    replace_text(RunDirectory(run_dir).config, yaml.safe_dump(dict(values), sort_keys=False))


def write_environment(run_dir: Path, values: Mapping[str, Any]) -> None:
    """Keep what the run began on: versions, machine, seed."""
    replace_text(RunDirectory(run_dir).environment, json.dumps(values, indent=1))


def write_sessions(run_dir: Path, sessions: Sequence[str]) -> None:
    """Keep the order of the session adapters with the run: another data set may hold other sessions."""
    RunDirectory(run_dir).sessions.write_text(json.dumps(list(sessions)), encoding="utf-8")


def read_sessions(run_dir: Path) -> tuple[str, ...]:
    """What `write_sessions` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = RunDirectory(run_dir).sessions
    try:
        sessions = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(sessions, list) or not all(isinstance(name, str) for name in sessions):
            raise ValueError("no list of names")
        return tuple(sessions)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the run directory is incomplete") from error
