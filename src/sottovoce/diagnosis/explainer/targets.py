"""What single trials of a run's data set need and get, where the data set is still there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.lengths import ctc_frames_needed
from sottovoce.core.symbols import symbol_table
from sottovoce.data.loading import open_data
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import build_model


@dataclass(frozen=True)
class Target:
    """A trial's length against its labels."""

    frames: int
    """Encoder frames, at most shortened by augmentation."""
    num_labels: int
    needed: int
    """Fewest frames with a CTC path: labels and adjacent repeats."""
    blank_labels: int
    """Labels that are the blank."""
    finite_signal: bool


def look_up(record: DiagnosedRun, trial_ids: Sequence[str]) -> dict[str, Target]:
    """The targets of these trials; those that the data set does not hold, or not any more, are absent."""
    config = record.config
    if config is None or not trial_ids or not Path(config.data.data_root).exists():
        return {}
    data = replace(config.data, on_fault="skip", cache_data=False, num_workers=0)
    try:
        trial_set = open_data(data, config.preprocessor, ("train", "val"), config.seed)
    except (DataError, ConfigurationError):  # the data set is another by now: its lengths prove nothing
        return {}
    with torch.device("meta"):
        model = build_model(config.model)
    pipeline, blank = FeaturePipeline(config.preprocessor, config.augmentation), symbol_table(config.data.symbols).blank
    wanted, found = set(trial_ids), {}
    for i, trial in enumerate(trial_set.trials):
        if trial.trial_id in wanted:
            labels = trial.labels or ()
            found[trial.trial_id] = Target(
                frames=model.output_lengths(pipeline.shortest_length(trial.num_steps, trial.split == "train")),
                num_labels=len(labels),
                needed=ctc_frames_needed(labels),
                blank_labels=sum(label == blank for label in labels),
                finite_signal=bool(np.isfinite(trial_set.signal(i)).all()),
            )
    return found
