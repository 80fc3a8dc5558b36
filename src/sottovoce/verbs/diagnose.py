"""What went wrong in a run, or in one bad step of it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from sottovoce.core.errors import CheckpointError, ConfigurationError
from sottovoce.core.findings import Finding
from sottovoce.diagnosis.capsules.capsule import capsules_of, is_capsule
from sottovoce.diagnosis.capsules.reading import read_capsule
from sottovoce.diagnosis.capsules.replay import Replayed, as_told, replay
from sottovoce.diagnosis.causes import causes
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun, read_diagnosed
from sottovoce.diagnosis.explainer.explainer import explain_record
from sottovoce.diagnosis.pages import pages
from sottovoce.runs.directory import RunDirectory


@dataclass(frozen=True)
class Diagnosis:
    """The causes of what went wrong, the likeliest first."""

    path: Path
    kind: Literal["run", "capsule"]
    findings: tuple[Finding, ...]
    replays: tuple[Replayed, ...] = ()
    """Bad steps computed again, where that was asked for."""
    damaged: tuple[str, ...] = ()
    """Why other bad steps could not be computed again."""
    record: DiagnosedRun | None = None
    """What the run recorded; None for a capsule."""

    @property
    def healthy(self) -> bool:
        """Nothing but notes."""
        return all(finding.severity == "note" for finding in self.findings)


def diagnose(path: str | PathLike[str], replay_steps: bool = False) -> Diagnosis:
    """Explain a run's directory, or one of its capsules; `replay_steps` computes its bad steps again.

    Raises:
        CheckpointError: the path is neither a run nor a capsule, cannot be read, or has recorded nothing yet.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; give the directory of a run, or a capsule in its folder capsules")
    return _capsule(path, replay_steps) if is_capsule(path) else _run(path, replay_steps)


def cause_page(code: str) -> str:
    """The page that explains a cause, as Markdown.

    Raises:
        ConfigurationError: the catalogue has no such code.
    """
    if code not in causes():
        near = difflib.get_close_matches(code, causes(), 3, 0.4)
        raise ConfigurationError(
            f"there is no cause {code!r}; " + (f"the nearest are {', '.join(near)}" if near else "no name is like it")
        )
    return pages()[f"{code}.md"]


def _capsule(path: Path, replay_steps: bool) -> Diagnosis:
    if not replay_steps:
        return Diagnosis(path, "capsule", (as_told(read_capsule(path)),))
    replayed = replay(path)
    return Diagnosis(path, "capsule", replayed.findings, (replayed,))


def _run(path: Path, replay_steps: bool) -> Diagnosis:
    record = read_diagnosed(path)
    findings = explain_record(record)
    if not record.metrics and not findings:
        raise CheckpointError(
            f"{path} has recorded nothing yet: metrics.jsonl has no line, so there is nothing to diagnose; "
            "look again after training.log_every_steps steps"
        )
    replays, damaged = _replay_all(path) if replay_steps else ([], [])
    of_steps = [finding for replayed in replays for finding in replayed.findings]
    return Diagnosis(path, "run", (*of_steps, *findings), tuple(replays), tuple(damaged), record)


def _replay_all(run_dir: Path) -> tuple[list[Replayed], list[str]]:
    """The capsules of a run computed again, and why others could not be."""
    replays, damaged = [], []
    for step in sorted(capsules_of(run_dir)):
        try:
            replays.append(replay(RunDirectory(run_dir).capsules / str(step)))
        except (CheckpointError, ConfigurationError) as error:
            damaged.append(" ".join(str(error).split()))
    return replays, damaged
