"""A run directory read once; a file that is damaged is left out and named, the others are read all the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from sottovoce.core.checkpoints import has_checkpoint, read_state
from sottovoce.core.errors import CheckpointError, NewerVersionError
from sottovoce.core.version import __version__
from sottovoce.runs.directory import RunDirectory, read_config, read_sessions
from sottovoce.runs.left_out import read_left_out
from sottovoce.runs.record import Evaluated, RunRecord, SavedState
from sottovoce.runs.taught_by import read_taught_by
from sottovoce.runs.trained_on import read_trained_on
from sottovoce.runs.vocabulary import read_vocabulary

METRIC_FIELDS: Final[dict[str, Any]] = {"step": int, "name": str, "value": (int, float)}
EVENT_FIELDS: Final[dict[str, Any]] = {"step": int, "event": str}


def read_run(run_dir: Path, checkpoints: bool = True) -> RunRecord:
    """Everything that a run has left in `run_dir`; `damaged` says which files could not be read.

    Without `checkpoints` these are left alone, whole or damaged.

    Raises:
        CheckpointError: it is no run directory, it was left half-written, or it comes from a newer version.
    """
    values = read_config(run_dir)
    directory, files = RunDirectory(run_dir), _Files()
    environment = files.object(directory.environment) or {}
    _refuse_newer(run_dir, str(environment.get("sottovoce", "")))
    names = [name for name in ("last", "best") if checkpoints and has_checkpoint(directory.checkpoint(name))]
    saved = {name: files.saved(directory.checkpoint(name)) for name in names}
    evaluations = [files.evaluated(run_dir, path) for path in directory.evaluations]
    for read in (read_sessions, read_vocabulary, read_left_out, read_trained_on, read_taught_by):
        files.tried(run_dir, read)
    return RunRecord(
        run_dir=run_dir,
        values=values,
        environment=environment,
        metrics=files.lines(directory.metrics, METRIC_FIELDS),
        events=files.lines(directory.events, EVENT_FIELDS),
        checkpoints={name: state for name, state in saved.items() if state is not None},
        capsules=tuple(sorted(directory.capsules.glob("*"))),
        evaluations=tuple(evaluation for evaluation in evaluations if evaluation is not None),
        damaged=tuple(files.damaged),
    )


def _refuse_newer(run_dir: Path, version: str) -> None:
    """A newer version may mean other things by the same words.

    Raises:
        CheckpointError: `run_dir` was written by one.
    """
    if _numbers(version) > _numbers(__version__):
        raise CheckpointError(f"{run_dir} was written by sottovoce {version}, this is {__version__}; update sottovoce")


def _numbers(version: str) -> list[int]:
    """The release as numbers: [1, 2, 0] of `1.2.0rc1`."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return [int(number) for number in release[0].split(".")] if release else []


class _Files:
    """Reads the files of a run and keeps a line about each that is damaged."""

    def __init__(self) -> None:
        self.damaged: list[str] = []

    def lines(self, path: Path, kinds: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """The lines that are records with these fields; a last one that was being written is no damage."""
        wrong: dict[int, str] = {}
        good: list[dict[str, Any]] = []
        texts = self._text(path).splitlines()
        for number, text in enumerate(texts, 1):
            record = _parsed(text)
            if record is None:
                if number < len(texts) or not good:
                    wrong[number] = "is no JSON object"
            elif odd := _not_a_record(record, kinds):
                wrong[number] = odd
            else:
                good.append(record)
        self.damaged += lines_left_out(path, wrong, len(texts))
        return tuple(good)

    def object(self, path: Path) -> dict[str, Any] | None:
        """The one JSON object in `path`; None where there is no such file, or none to be read."""
        if not path.exists():
            return None
        found = _parsed(self._text(path))
        if found is None:
            self.damaged.append(f"{path} holds no JSON object")
        return found

    def saved(self, folder: Path) -> SavedState | None:
        """The checkpoint in `folder` without its tensors.

        Raises:
            NewerVersionError: a newer version wrote it.
        """
        try:
            step, state = read_state(folder)
            return SavedState(step, state, _optimizer_steps(folder / f"optimizer-{step:08d}.safetensors"))
        except NewerVersionError:
            raise
        except CheckpointError as error:
            self.damaged.append(str(error))
            return None

    def tried(self, run_dir: Path, read: Callable[[Path], Any]) -> None:
        """Whether one of the files that a run keeps for its evaluation can be read, where it is there."""
        try:
            read(run_dir)
        except CheckpointError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                self.damaged.append(str(error))

    def evaluated(self, run_dir: Path, path: Path) -> Evaluated | None:
        """One evaluation, with the hypotheses that can be read."""
        result = self.object(path)
        if result is None:
            return None
        hypotheses = self.lines(RunDirectory(run_dir).hypotheses(path.stem), {"trial_id": str, "counts": dict})
        return Evaluated(path.stem, path, result, hypotheses)

    def _text(self, path: Path) -> str:
        if not path.exists():
            return ""
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self.damaged.append(f"{path} cannot be read ({error.strerror})")
            return ""


def lines_left_out(path: Path, wrong: dict[int, str], total: int) -> list[str]:
    """How `damaged` names the lines of `path` that are `wrong`, by number; nothing where none is."""
    if not wrong:
        return []
    first, what = next(iter(wrong.items()))
    return [f"{path}: {len(wrong)} of {total} lines left out; line {first} {what}"]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _not_a_record(record: dict[str, Any], kinds: dict[str, Any]) -> str:
    wrong = [key for key, kind in kinds.items() if not isinstance(record.get(key), kind)]
    return f"is no record of a run ({', '.join(wrong)})" if wrong else ""


def _optimizer_steps(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith("::step")]  # noqa: SIM118
            return {name.removesuffix("::step"): int(tensors.get_tensor(name)) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoint is damaged") from error
