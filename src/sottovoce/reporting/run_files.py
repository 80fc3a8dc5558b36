"""What a report is made from: the record of one run, sorted as it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sottovoce.core.errors import CheckpointError
from sottovoce.runs.directory import RunDirectory
from sottovoce.runs.examples import Examples, read_examples
from sottovoce.runs.reading import read_run
from sottovoce.runs.record import Evaluated, RunRecord

Curve = tuple[list[int], list[float]]
"""Steps in rising order, and the finite values at them."""
_SPLIT_ORDER = ("test", "val", "train")
_EVALUATION_KEYS = tuple(
    "split decoder symbols num_trials per wer cer wra ci95 blank_fraction empty_fraction notes by_group".split()
)
_HYPOTHESIS_KEYS = ("trial_id", "reference", "hypothesis", "reference_symbols", "symbols", "counts")


@dataclass(frozen=True)
class RunFiles:
    """A run directory in memory."""

    record: RunRecord
    evaluations: list[Evaluated]
    """The headline first: test before val, and a decoder with words before one without."""
    examples: list[Examples]

    @property
    def directory(self) -> Path:
        """Of the run."""
        return self.record.run_dir

    @property
    def events(self) -> tuple[dict[str, Any], ...]:
        """What happened, in order."""
        return self.record.events

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """By metric name, e.g. `train/loss`; those without a finite value are left out."""
        finite = {name: series.finite() for name, series in self.record.series.items()}
        return {name: (list(found.steps), list(found.values)) for name, found in finite.items() if found}

    @property
    def last_step(self) -> int:
        """The last step that a metric was written for; 0 before any."""
        return max((steps[-1] for steps, _ in self.curves.values()), default=0)

    def setting(self, key: str) -> Any:
        """A value of the configuration by its dotted key, None where the run's configuration has no such key."""
        return self.record.setting(key)


def read_files(run_dir: Path) -> RunFiles:
    """Everything in `run_dir` that a report shows.

    Raises:
        CheckpointError: it is not a run directory, or one of its files is damaged.
    """
    record = read_run(run_dir, checkpoints=False)
    if record.damaged:
        raise CheckpointError(f"{record.damaged[0]}; restore the file")
    for evaluated in record.evaluations:
        _require(evaluated.result, _EVALUATION_KEYS, str(evaluated.path))
        for number, hypothesis in enumerate(evaluated.hypotheses, 1):
            _require(hypothesis, _HYPOTHESIS_KEYS, f"{run_dir}: hypotheses of {evaluated.name}, line {number}")
    return RunFiles(
        record,
        sorted(record.evaluations, key=_place),
        [read_examples(path) for path in RunDirectory(run_dir).all_examples],
    )


def _place(evaluated: Evaluated) -> tuple[int, bool, str]:
    return _SPLIT_ORDER.index(evaluated.result["split"]), evaluated.result["wer"] is None, evaluated.name


def _require(found: dict[str, Any], keys: Sequence[str], where: str) -> None:
    lacking = [key for key in keys if key not in found]
    if lacking:
        raise CheckpointError(f"{where} lacks {', '.join(lacking)}; delete the file and write it anew")
