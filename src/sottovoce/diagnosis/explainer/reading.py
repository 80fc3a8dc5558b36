"""A run directory read once; a file that is damaged is left out and named, the others are read all the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import yaml
from safetensors import SafetensorError, safe_open

import sottovoce
from sottovoce.core.checkpoints import has_checkpoint, read_state
from sottovoce.core.configuration import build
from sottovoce.core.errors import CheckpointError, ConfigurationError, NewerVersionError, UnknownKeyError
from sottovoce.core.findings import SEVERITIES
from sottovoce.diagnosis.causes import causes
from sottovoce.diagnosis.explainer.run_record import Evaluated, RunRecord, SavedState
from sottovoce.runs.directory import CONFIG_FILE
from sottovoce.training.config import RunConfig

SECTIONS: Final = frozenset({"seed", "data", "preprocessor", "model", "training", "decoding"})
"""Every configuration of a run has these keys."""
RUN_FILES: Final = ("environment.json", "lexicon.json", "sessions.json", "metrics.jsonl", "events.jsonl")
"""What shows that a folder without a configuration was meant to be a run."""
_NUMBER: Final = (int, float)
METRIC_FIELDS: Final[dict[str, Any]] = {"step": int, "name": str, "value": _NUMBER}
REFUSED: Final[dict[str, Any]] = {
    "code": str,
    "evidence": str,
    "losses": list,
    "num_trials": int,
    "parameters": list,
    "num_parameters": int,
}
"""Fields of the events of the guard."""
EVENT_FIELDS: Final[dict[str, dict[str, Any]]] = {
    "stage_started": {"stage": str, "num_steps": int, "loss_weights": dict, "components": list},
    "stage_finished": {"stage": str, "complete": bool},
    "unfrozen": {"components": list, "trainable_parameters": int},
    "step_skipped": REFUSED,
    "rolled_back": REFUSED,
    "run_failed": {"message": str},
    "taught_by": {"per": list},
}
"""What a rule may rely on in an event, beside its step."""
FINDING_FIELDS: Final[dict[str, Any]] = {"severity": str, "evidence": str, "source": str, "support": _NUMBER}
"""The same of the events that are findings: those with a code of the catalogue."""
OWN_FIELDS: Final[dict[str, Any]] = {"override": str, "advice": str, "trials": list}
"""What such an event may hold besides."""


def read_run(run_dir: Path) -> RunRecord:
    """Everything in `run_dir` that a diagnosis reads; `damaged` says which files could not be.

    Raises:
        CheckpointError: it is no run directory, it was left half-written, or it comes from a newer version.
    """
    values = _config(run_dir)
    files = _Files()
    environment = files.object(run_dir / "environment.json") or {}
    _refuse_newer(run_dir, str(environment.get("sottovoce", "")))
    names = [name for name in ("last", "best") if has_checkpoint(run_dir / "checkpoints" / name)]
    saved = {name: files.saved(run_dir / "checkpoints" / name) for name in names}
    evaluations = [files.evaluated(run_dir, path) for path in sorted((run_dir / "evaluation").glob("*.json"))]
    return RunRecord(
        run_dir=run_dir,
        values=values,
        config=_built(run_dir, values, environment),
        environment=environment,
        metrics=files.lines(run_dir / "metrics.jsonl", METRIC_FIELDS),
        events=files.events(run_dir / "events.jsonl"),
        checkpoints={name: state for name, state in saved.items() if state is not None},
        capsules=tuple(sorted((run_dir / "capsules").glob("*"))),
        evaluations=tuple(evaluation for evaluation in evaluations if evaluation is not None),
        damaged=tuple(files.damaged),
    )


def _refuse_newer(run_dir: Path, version: str) -> None:
    """A newer version may mean other things by the same words.

    Raises:
        CheckpointError: `run_dir` was written by one.
    """
    if _numbers(version) > _numbers(sottovoce.__version__):
        raise CheckpointError(
            f"{run_dir} was written by sottovoce {version}, this is {sottovoce.__version__}; update sottovoce"
        )


def _numbers(version: str) -> list[int]:
    """The release as numbers: [1, 2, 0] of `1.2.0rc1`."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return [int(number) for number in release[0].split(".")] if release else []


def _config(run_dir: Path) -> dict[str, Any]:
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
    if not isinstance(values, dict) or not values.keys() >= SECTIONS:
        raise CheckpointError(f"{path} is not the configuration of a run of sottovoce; {run_dir} is not ours")
    return values


def _built(run_dir: Path, values: dict[str, Any], environment: dict[str, Any]) -> RunConfig | None:
    try:
        return build(RunConfig, values)
    except UnknownKeyError as error:
        version = environment.get("sottovoce", "unknown")
        raise CheckpointError(
            f"{run_dir / CONFIG_FILE} is of another version of sottovoce ({version}): "
            f"unknown configuration key {error.key}; update sottovoce"
        ) from error
    except ConfigurationError:
        return None


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
        self._left_out(path, wrong, len(texts))
        return tuple(good)

    def events(self, path: Path) -> tuple[dict[str, Any], ...]:
        """The events whose fields are those of this version."""
        events = self.lines(path, {"step": int, "event": str})
        odd = {number: what for number, event in enumerate(events, 1) if (what := _odd_event(event))}
        self._left_out(path, odd, len(events))
        return tuple(event for number, event in enumerate(events, 1) if number not in odd)

    def object(self, path: Path) -> dict[str, Any] | None:
        """The one JSON object in `path`; None where there is no such file, or none to be read."""
        if not path.exists():
            return None
        found = _parsed(self._text(path))
        if found is None:
            self.damaged.append(f"{path} holds no JSON object; restore it, or delete it and write it anew")
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

    def evaluated(self, run_dir: Path, path: Path) -> Evaluated | None:
        """One evaluation, with the hypotheses that can be read."""
        result = self.object(path)
        if result is None:
            return None
        hypotheses = self.lines(run_dir / f"hypotheses.{path.stem}.jsonl", {"trial_id": str, "counts": dict})
        return Evaluated(path.stem, path, result, hypotheses)

    def _text(self, path: Path) -> str:
        if not path.exists():
            return ""
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self.damaged.append(f"{path} cannot be read ({error.strerror})")
            return ""

    def _left_out(self, path: Path, wrong: dict[int, str], total: int) -> None:
        if wrong:
            first, what = next(iter(wrong.items()))
            self.damaged.append(f"{path}: {len(wrong)} of {total} lines left out; line {first} {what}")


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _not_a_record(record: dict[str, Any], kinds: dict[str, Any]) -> str:
    wrong = [key for key, kind in kinds.items() if not isinstance(record.get(key), kind)]
    return f"is no record of a run ({', '.join(wrong)})" if wrong else ""


def _odd_event(event: dict[str, Any]) -> str:
    """What keeps a rule from reading the event."""
    code = event["event"]
    wanted = EVENT_FIELDS.get(code, FINDING_FIELDS if code in causes() else {})
    odd = [key for key, kind in wanted.items() if not isinstance(event.get(key), kind)]
    if wanted is FINDING_FIELDS:
        odd += [key for key, kind in OWN_FIELDS.items() if key in event and not isinstance(event[key], kind)]
    if odd or ("severity" in wanted and event["severity"] not in SEVERITIES):
        return f"is no event {code} of this version ({', '.join(odd or ['severity'])})"
    return ""


def _optimizer_steps(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith("::step")]  # noqa: SIM118
            return {name.removesuffix("::step"): int(tensors.get_tensor(name)) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoint is damaged") from error
