"""What a report is made from: the files of one run directory, read once, each absent until the run writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sottovoce.core.errors import CheckpointError
from sottovoce.core.examples import Examples, read_examples
from sottovoce.core.records import read_json_lines

Curve = tuple[list[int], list[float]]
"""Steps in rising order, and the finite values at them."""
_SPLIT_ORDER = ("test", "val", "train")
_METRIC_KEYS = ("step", "name", "value")
_EVALUATION_KEYS = tuple(
    "split decoder symbols num_trials per wer cer wra ci95 blank_fraction empty_fraction notes by_group".split()
)
_HYPOTHESIS_KEYS = ("trial_id", "reference", "hypothesis", "reference_symbols", "symbols", "counts")


@dataclass(frozen=True)
class Evaluated:
    """One evaluation with its hypotheses (objects as `evaluation.records` writes them)."""

    result: dict[str, Any]
    trials: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """`SPLIT.DECODER`."""
        return f"{self.result['split']}.{self.result['decoder']}"


@dataclass(frozen=True)
class RunFiles:
    """A run directory in memory."""

    directory: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, Curve]
    """By metric name, e.g. `train/loss`."""
    events: list[dict[str, Any]]
    evaluations: list[Evaluated]
    """The headline first: test before val, and a decoder with words before one without."""
    examples: list[Examples]

    @property
    def last_step(self) -> int:
        """The last step that a metric was written for; 0 before any."""
        return max((steps[-1] for steps, _ in self.curves.values()), default=0)

    def setting(self, key: str) -> Any:
        """A value of the configuration by its dotted key, None where the run's configuration has no such key."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def read_run(run_dir: Path) -> RunFiles:
    """Everything in `run_dir` that a report shows.

    Raises:
        CheckpointError: it is not a run directory, or one of its files is damaged.
    """
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        what = "has no config.yaml" if run_dir.is_dir() else "does not exist"
        raise CheckpointError(f"{run_dir} {what}: give the directory that `sottovoce train` printed after `run:`")
    try:
        config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config_path} cannot be read ({error}); restore it from a copy") from error
    environment = run_dir / "environment.json"
    return RunFiles(
        directory=run_dir,
        config=config if isinstance(config, dict) else {},
        environment=_read_json(environment) if environment.exists() else {},
        curves=_curves(_records(run_dir / "metrics.jsonl", _METRIC_KEYS)),
        events=_records(run_dir / "events.jsonl", ("step", "event")),
        evaluations=_evaluations(run_dir),
        examples=[read_examples(path) for path in sorted((run_dir / "evaluation").glob("examples.*.npz"))],
    )


def _records(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    records = read_json_lines(path) if path.exists() else []
    for number, record in enumerate(records, 1):
        _require(record, keys, f"{path}, line {number}")
    return records


def _require(found: dict[str, Any], keys: Sequence[str], where: str) -> None:
    lacking = [key for key in keys if key not in found]
    if lacking:
        raise CheckpointError(f"{where} lacks {', '.join(lacking)}; delete the file and write it anew")


def _curves(records: list[dict[str, Any]]) -> dict[str, Curve]:
    found: dict[str, dict[int, float]] = {}
    for record in records:
        value = record["value"]
        if isinstance(value, (int, float)) and math.isfinite(value):
            found.setdefault(record["name"], {})[int(record["step"])] = float(value)
    return {name: (sorted(at), [at[step] for step in sorted(at)]) for name, at in found.items()}


def _evaluations(run_dir: Path) -> list[Evaluated]:
    found = []
    for path in sorted((run_dir / "evaluation").glob("*.json")):
        result = _read_json(path)
        _require(result, _EVALUATION_KEYS, str(path))
        found.append(Evaluated(result, _records(run_dir / f"hypotheses.{path.stem}.jsonl", _HYPOTHESIS_KEYS)))
    return sorted(found, key=lambda e: (_SPLIT_ORDER.index(e.result["split"]), e.result["wer"] is None, e.name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); delete it and write it anew") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object; delete it and write it anew")
    return found
