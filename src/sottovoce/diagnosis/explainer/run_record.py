"""What a run has left behind, read once: of a finished run, one that still trains, or one that was killed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml
from safetensors import SafetensorError, safe_open

import sottovoce
from sottovoce.core.checkpoints import has_checkpoint, read_state
from sottovoce.core.configuration import build
from sottovoce.core.errors import CheckpointError, ConfigurationError
from sottovoce.core.findings import SEVERITIES
from sottovoce.core.records import read_json_lines
from sottovoce.diagnosis.causes import causes
from sottovoce.evaluation.loaded_run import CONFIG_FILE
from sottovoce.training.config import RunConfig

SECTIONS: Final = frozenset({"seed", "data", "preprocessor", "model", "training", "evaluation"})
"""Every configuration of a run has these keys."""
RUN_FILES: Final = ("environment.json", "lexicon.json", "sessions.json", "metrics.jsonl", "events.jsonl")
"""What shows that a folder without a configuration was meant to be a run."""
_NUMBER: Final = (int, float)
EVENT_FIELDS: Final[dict[str, dict[str, Any]]] = {
    "stage_started": {"stage": str, "num_steps": int, "loss_weights": dict, "components": list},
    "unfrozen": {"components": list, "trainable_parameters": int},
    "step_skipped": {"code": str, "evidence": str},
    "rolled_back": {"code": str, "evidence": str},
    "run_failed": {"message": str},
}
"""What a rule may rely on in an event, beside its step."""
FINDING_FIELDS: Final[dict[str, Any]] = {"severity": str, "evidence": str, "source": str, "support": _NUMBER}
"""The same of the events that are findings: those with a code of the catalogue."""


@dataclass(frozen=True)
class Series:
    """The recorded values of one metric; non-finite ones included."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(zip(self.steps, self.values, strict=True))

    def between(self, first: float, last: float) -> Series:
        """The part whose steps lie in (first, last]."""
        return self.where([first < step <= last for step in self.steps])

    def finite(self) -> Series:
        """The part whose values are finite."""
        return self.where([math.isfinite(value) for value in self.values])

    def where(self, kept: list[bool]) -> Series:
        """The part that is marked."""
        pairs = [pair for pair, keep in zip(self, kept, strict=True) if keep]
        return Series(tuple(step for step, _ in pairs), tuple(value for _, value in pairs))

    def at(self, step: int) -> float | None:
        """The value recorded at `step`."""
        return dict(self).get(step)


@dataclass(frozen=True)
class SavedState:
    """A checkpoint without its tensors."""

    step: int
    state: dict[str, Any]
    optimizer_steps: dict[str, int]
    """Updates that the optimiser's moments of each parameter count; empty where no optimiser was saved."""

    @property
    def progress(self) -> dict[str, Any]:
        """`training.module.Progress` as it was saved."""
        found = self.state.get("progress")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Evaluated:
    """One file of `evaluation/` with its hypotheses."""

    name: str
    """`SPLIT.DECODER`."""
    path: Path
    result: dict[str, Any]
    hypotheses: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class RunRecord:
    """A run directory in memory."""

    run_dir: Path
    values: dict[str, Any]
    """The configuration as plain values."""
    config: RunConfig | None
    """The same, checked; None where this version refuses a value that another accepted."""
    environment: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    """The lines of `metrics.jsonl` in the order they were written."""
    events: tuple[dict[str, Any], ...]
    checkpoints: dict[str, SavedState]
    """`last` and `best`, where they have been written."""
    capsules: tuple[Path, ...]
    evaluations: tuple[Evaluated, ...] = field(repr=False)

    @cached_property
    def series(self) -> dict[str, Series]:
        """Each metric by its name; of a step that was written twice the later value."""
        found: dict[str, dict[int, float]] = {}
        for line in self.metrics:
            found.setdefault(line["name"], {})[int(line["step"])] = float(line["value"])
        ordered = {name: sorted(at.items()) for name, at in found.items()}
        return {name: Series(tuple(s for s, _ in pairs), tuple(v for _, v in pairs)) for name, pairs in ordered.items()}

    def metric(self, name: str) -> Series:
        """The finite values of `name`; empty where it was never recorded."""
        return self.series.get(name, Series()).finite()

    def told(self, *names: str) -> list[dict[str, Any]]:
        """The events of these names, in order."""
        return [event for event in self.events if event["event"] in names]

    @property
    def finished(self) -> bool:
        """Its last step has been done."""
        return bool(self.told("run_finished"))

    @property
    def aborted(self) -> bool:
        """The guard gave up."""
        return bool(self.told("run_aborted"))

    @property
    def last_step(self) -> int:
        """The last step that left a trace; 0 before any."""
        steps = [series.steps[-1] for series in self.series.values() if series.steps]
        steps += [int(event["step"]) for event in self.events]
        steps += [saved.step for saved in self.checkpoints.values()]
        return max(steps, default=0)

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint that is kept as the best."""
        return self.checkpoints["best"].step if "best" in self.checkpoints else None

    @property
    def log_every(self) -> int:
        """Steps between two lines of training metrics."""
        return self.config.training.log_every_steps if self.config else 1

    @property
    def stages(self) -> list[Begun]:
        """The stages that have begun, with where they ended."""
        begun = self.told("stage_started")
        if not begun:
            return []
        ends = [int(event["step"]) for event in begun[1:]] + [self.last_step]
        return [Begun(str(e["stage"]), int(e["step"]), end, e) for e, end in zip(begun, ends, strict=True)]


@dataclass(frozen=True)
class Begun:
    """A stage of the run, steps `first` + 1 to `last`."""

    name: str
    first: int
    last: int
    event: dict[str, Any]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss."""
        return dict(self.event.get("loss_weights", {}))


def read_run(run_dir: Path) -> RunRecord:
    """Everything in `run_dir` that a diagnosis reads.

    Raises:
        CheckpointError: it is no run directory, it was left half-written, it comes from a newer version, or one of
            its files is damaged.
    """
    values = _config(run_dir)
    environment = _object(run_dir / "environment.json") if (run_dir / "environment.json").exists() else {}
    evaluations = sorted((run_dir / "evaluation").glob("*.json"))
    _refuse_newer(run_dir, str(environment.get("sottovoce", "")))
    names = [name for name in ("last", "best") if has_checkpoint(run_dir / "checkpoints" / name)]
    return RunRecord(
        run_dir=run_dir,
        values=values,
        config=_built(run_dir, values, environment),
        environment=environment,
        metrics=_lines(run_dir / "metrics.jsonl", {"step": int, "name": str, "value": _NUMBER}),
        events=_events(run_dir / "events.jsonl"),
        checkpoints={name: _saved(run_dir / "checkpoints" / name) for name in names},
        capsules=tuple(sorted((run_dir / "capsules").glob("*"))),
        evaluations=tuple(_evaluated(run_dir, path) for path in evaluations),
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
    except ConfigurationError as error:
        if "unknown configuration key" in str(error):
            version = environment.get("sottovoce", "unknown")
            raise CheckpointError(
                f"{run_dir / CONFIG_FILE} is of another version of sottovoce ({version}): "
                f"{str(error).split(';')[0]}; update sottovoce"
            ) from error
        return None


def _lines(path: Path, kinds: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    records = read_json_lines(path) if path.exists() else []
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or any(not isinstance(record.get(key), kind) for key, kind in kinds.items()):
            raise CheckpointError(f"{path}, line {number} is no record of a run; restore the file")
    return tuple(records)


def _events(path: Path) -> tuple[dict[str, Any], ...]:
    events = _lines(path, {"step": int, "event": str})
    for number, event in enumerate(events, 1):
        code = event["event"]
        wanted = EVENT_FIELDS.get(code, FINDING_FIELDS if code in causes() else {})
        odd = [key for key, kind in wanted.items() if key in event and not isinstance(event[key], kind)]
        odd += [key for key in EVENT_FIELDS.get(code, {}) if key not in event]
        if odd or event.get("severity", "note") not in SEVERITIES:
            raise CheckpointError(
                f"{path}, line {number} is no event {code} of this version ({', '.join(odd or ['severity'])}); restore "
                "the file, or update sottovoce"
            )
    return events


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); restore it, or delete it and write it anew") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object; restore it, or delete it and write it anew")
    return found


def _saved(folder: Path) -> SavedState:
    step, state = read_state(folder)
    return SavedState(step, state, _optimizer_steps(folder / f"optimizer-{step:08d}.safetensors"))


def _optimizer_steps(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.endswith("::step")]  # noqa: SIM118
            return {name.removesuffix("::step"): int(tensors.get_tensor(name)) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoint is damaged") from error


def _evaluated(run_dir: Path, path: Path) -> Evaluated:
    hypotheses = run_dir / f"hypotheses.{path.stem}.jsonl"
    lines = _lines(hypotheses, {"trial_id": str, "counts": dict}) if hypotheses.exists() else ()
    return Evaluated(path.stem, path, _object(path), lines)
