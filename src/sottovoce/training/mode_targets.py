"""What the speaking-mode head shall say: labels that are known, or estimated and refreshed as the encoder learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.trial import Trial, TrialSet
from sottovoce.data.config import DataConfig
from sottovoce.data.mode_estimation import (
    BlockStatistics,
    block_means,
    one_mode_p_value,
    pseudo_modes,
    refreshed_modes,
)
from sottovoce.data.speaking_modes import BlockModes, read_mode_file, stated_modes


class ModeTargets:
    """The label of each trial's block; pseudo-labels change at every `refresh`."""

    def __init__(self, trials: Sequence[Trial], modes: BlockModes, statistics: BlockStatistics | None) -> None:
        """`statistics` of the training trials belong to pseudo-labels, None to known ones."""
        self.modes = modes
        self._trials = {trial.trial_id: trial for trial in trials}
        self._statistics = statistics

    @property
    def estimated(self) -> bool:
        """True for pseudo-labels."""
        return self._statistics is not None

    def one_mode_p_value(self, seed: int) -> float | None:
        """How often blocks of one mode alone would look as different as these; None for known labels."""
        return None if self._statistics is None else one_mode_p_value(self._statistics, seed)

    def of(self, trial_ids: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Probability of vocalised speech [B], and which trials have a label at all [B]."""
        labels = [self.modes.of(self._trials[trial_id]) for trial_id in trial_ids]
        vocalised_B = torch.tensor([0.5 if label is None else label for label in labels], device=device)
        return vocalised_B, torch.tensor([label is not None for label in labels], device=device)

    def truth(self, trial: Trial) -> bool | None:
        """True for vocalised, as far as somebody knows: pseudo-labels are no truth."""
        if trial.mode:
            return trial.mode == "vocalised"
        label = None if self.estimated else self.modes.of(trial)
        return None if label is None else label > 0.5

    def refresh(self, embeddings: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Estimate the labels anew with the model's pooled frames [E] of each training trial, by trial id."""
        assert self._statistics is not None
        trials = [self._trials[trial_id] for trial_id in embeddings]
        by_block = block_means(trials, np.stack(list(embeddings.values())))
        self.modes = refreshed_modes(self.modes, self._statistics, by_block)

    def state(self) -> list[list[Any]]:
        """The labels for a checkpoint."""
        return [[session, block, label] for (session, block), label in self.modes.vocalised.items()]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Take the labels of a checkpoint."""
        labels = {(str(session), int(block)): float(label) for session, block, label in state}
        self.modes = BlockModes(labels, self.modes.origin)


def find_mode_targets(config: DataConfig, trial_set: TrialSet, train_indices: Sequence[int], seed: int) -> ModeTargets:
    """The labels that `data.mode_labels` and `data.mode_file` ask for.

    Raises:
        ConfigurationError: known labels are asked for, and there are none.
        DataError: a label file is wrong, or modes cannot be estimated from these data.
    """
    trials = trial_set.trials
    if config.mode_file is not None:
        return ModeTargets(trials, read_mode_file(Path(config.mode_file), trials), None)
    stated = stated_modes(trials) if config.mode_labels != "pseudo" else None
    if stated is not None:
        return ModeTargets(trials, stated, None)
    if config.mode_labels == "known":
        raise ConfigurationError(
            f"a stage learns the speaking mode, but {config.data_root} does not state any; give data.mode_file=FILE "
            "(session,block,mode), or data.mode_labels=pseudo to estimate them, or drop the stage"
        )
    statistics = BlockStatistics()
    for i in train_indices:
        statistics.add(trial_set.trials[i], trial_set.signal(i))
    try:
        return ModeTargets(trials, pseudo_modes(statistics, seed), statistics)
    except DataError as error:
        raise DataError(f"a stage learns the speaking mode, but {error}; give data.mode_file=FILE") from error
