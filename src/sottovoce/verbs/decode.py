"""Hypotheses for every trial of a data set, labelled or not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.files import replace_text
from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.splits import SPLITS, Split
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.trial import Trial
from sottovoce.evaluation.emissions import decoded
from sottovoce.evaluation.opening import data_config, open_other, usable
from sottovoce.runs.trained_decoder import load
from sottovoce.verbs.listener import Progress


@dataclass(frozen=True)
class Decoded:
    """What the model makes of a data set."""

    hypotheses: tuple[tuple[Trial, Hypothesis], ...]
    """Of each trial, in the order of the data."""
    left_out: tuple[str, ...]
    """A line for each trial or file that could not be used."""
    table: SymbolTable
    """What the hypotheses' symbols stand for."""


def decode(
    run_dir: str | PathLike[str],
    data_root: str | PathLike[str],
    split: Split | None = None,
    decoder: str | None = None,
    beam_size: int | None = None,
    on_fault: Literal["raise", "skip"] | None = None,
    progress: Progress | None = None,
) -> Decoded:
    """Decode every trial of a data set in the layout that the run was trained on.

    `split`: of the T15 layout, only this one; `decoder`, `beam_size` and `on_fault` stand in for the run's own.

    Raises:
        CheckpointError: not a run directory, or a damaged one.
        DataError: the data cannot be used, or have sessions that the model has no adapter for.
        ConfigurationError: the decoder needs what the run lacks.
    """
    data_root = Path(data_root)
    run = load(Path(run_dir))
    data = data_config(run)
    data = replace(data, data_root=str(data_root), on_fault=on_fault or data.on_fault)
    decoders = run.decoders(() if decoder is None else (decoder,), beam_size)
    trial_set = open_other(run, data, (split,) if split else SPLITS)
    if not trial_set.trials:
        raise DataError(f"{data_root} has no {split or ''} trials")
    indices, faults = usable(run, trial_set) if data.on_fault == "skip" else (list(range(len(trial_set.trials))), [])
    trials = decoded(run, trial_set, indices, decoders, progress)
    left_out = (*map(str, trial_set.skipped), *faults)
    return Decoded(tuple((one.trial, one.hypotheses[0]) for one in trials), left_out, run.table)


def refuse_no_file(path: Path) -> None:
    """Say before the work begins that hypotheses cannot be written to `path`.

    Raises:
        ConfigurationError: it is a folder, or has no name.
    """
    if not path.name or path.is_dir():
        raise ConfigurationError(f"--out {path}: must be the name of a file")


def write_hypotheses(path: Path, hypotheses: Decoded) -> None:
    """One JSON object a trial; the file appears when it is complete.

    Raises:
        DataError: it cannot be written.
    """
    lines = [json.dumps(_record(*one, hypotheses.table)) + "\n" for one in hypotheses.hypotheses]
    try:
        replace_text(path, "".join(lines))
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror})") from error


def _record(trial: Trial, hypothesis: Hypothesis, table: SymbolTable) -> dict[str, Any]:
    return {
        "trial_id": trial.trial_id,
        "split": trial.split,
        "session": trial.session,
        "text": hypothesis.text,
        "symbols": list(table.decode(hypothesis.symbols)),
        "score": hypothesis.score,
        "words": [asdict(word) for word in hypothesis.words],
        "n_best": [
            {"symbols": list(table.decode(candidate.symbols)), "text": candidate.text, "score": candidate.score}
            for candidate in hypothesis.n_best
        ],
    }
