"""Opening the trials that a trained run is to decode: of its own data set, or of another in the same layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sottovoce.core.configuration import build
from sottovoce.core.errors import DataError
from sottovoce.core.splits import Split
from sottovoce.data.config import DataConfig
from sottovoce.data.loading import PreparedTrials, open_data
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.runs.trained_decoder import TrainedDecoder


def data_config(run: TrainedDecoder) -> DataConfig:
    """Which data the run was trained on."""
    return build(DataConfig, dict(run.config["data"]), "data")


def open_own(run: TrainedDecoder, splits: Sequence[Split]) -> PreparedTrials:
    """Trials of the data set the run was trained on.

    Raises:
        DataError: the data cannot be used.
    """
    data = data_config(run)
    if not Path(data.data_root).exists():
        raise DataError(
            f"{data.data_root}, where the data of {run.run_dir} were, does not exist; say where they are now with "
            f"sottovoce train resume={run.run_dir} data.data_root=FOLDER (a finished run is then only evaluated), or "
            "use sottovoce decode, which takes a folder"
        )
    return _open(run, data, splits, unlabelled=False)


def open_other(run: TrainedDecoder, data: DataConfig, splits: Sequence[Split]) -> PreparedTrials:
    """Trials of another data set in the same layout; of recordings all, whatever `splits` says, without labels.

    `data` is the run's `data_config` with another `data_root`.

    Raises:
        DataError: the data cannot be used, or have sessions that the model has no adapter for.
    """
    return _open(run, data, splits, unlabelled=True)


def _open(run: TrainedDecoder, data: DataConfig, splits: Sequence[Split], unlabelled: bool) -> PreparedTrials:
    data = replace(data, num_workers=0, cache_data=False)
    pronunciations = None  # of a run that made its targets from a dictionary its own copy; the file may be gone
    if data.lexicon is not None and run.vocabulary is not None:
        pronunciations = run.vocabulary.pronunciations(run.table)
    opened = open_data(data, run.preprocessor, splits, run.seed, unlabelled, pronunciations=pronunciations)
    if run.model.session_adapter is not None:
        unknown = sorted({trial.session for trial in opened.trials} - set(run.sessions))
        if unknown:
            raise DataError(
                f"{data.data_root}: the model has no adapter for the session {unknown[0]} "
                f"({len(unknown)} unknown); it was trained on {run.sessions[0]} … {run.sessions[-1]}. "
                "Train with that session, or with model.session_adapter=null"
            )
        opened.sessions = run.sessions
    return opened


def usable(run: TrainedDecoder, trial_set: PreparedTrials) -> tuple[list[int], list[str]]:
    """Places of the trials that can be decoded, and a line for each that cannot."""
    pipeline, indices, faults = FeaturePipeline(run.preprocessor), [], []
    for i, trial in enumerate(trial_set.trials):
        try:
            trial_set.signal(i)
        except DataError as error:
            faults.append(str(error))
            continue
        if run.model.output_lengths(pipeline.shortest_length(trial.num_steps, training=False)) < 1:
            faults.append(f"{trial.file}:{trial.key}: too_short_for_model: {trial.num_steps} bins or samples")
        else:
            indices.append(i)
    return indices, faults
