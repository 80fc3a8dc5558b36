"""Opening a data set as a configuration says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.signals import SignalKind
from sottovoce.core.splits import Split
from sottovoce.core.trial import TrialSet
from sottovoce.data.config import DataConfig
from sottovoce.data.layout import DataSet, Layout, Reading
from sottovoce.data.layouts import trainable_layout
from sottovoce.features.config import PreprocessorConfig


def read_data_set(
    config: DataConfig,
    accepts: SignalKind,
    unlabelled: bool = False,
    pronunciations: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Layout, DataSet]:
    """The layout and structure of `data.data_root`.

    Raises:
        DataError: the folder is missing, or of a layout that a front end for such signals cannot read.
        ConfigurationError: its labels are stored in other symbols than `data.symbols`.
    """
    root = Path(config.data_root)
    layout = trainable_layout(root, config, accepts)
    return layout, layout.read(root, Reading(config.max_sessions, unlabelled, pronunciations))


def open_data(
    config: DataConfig,
    preprocessor: PreprocessorConfig,
    splits: Sequence[Split],
    seed: int,
    unlabelled: bool = False,
    data_set: DataSet | None = None,
    pronunciations: Mapping[str, tuple[str, ...]] | None = None,
) -> PreparedTrials:
    """The trials of `splits`.

    `unlabelled` takes every recording as a test trial, whatever its text; T15 folders say themselves what is labelled.
    `data_set` is what is at `data.data_root` where that has been read already, for a check. `pronunciations` stand in
    for the file `data.lexicon`.

    Raises:
        DataError: the folder is missing, is of a layout that the front end cannot read, or holds a fault (unless
            `on_fault=skip`).
        ConfigurationError: phoneme targets from text without a lexicon, or an unknown held-out speaker.
    """
    if data_set is None:
        _, data_set = read_data_set(config, preprocessor.signal, unlabelled, pronunciations)
    trials = data_set.open(splits, config, preprocessor, seed)
    binned = preprocessor.signal == SignalKind.BINNED
    return PreparedTrials(
        trials,
        config.channel_stride if binned else 1,
        preprocessor.num_channels if binned else None,
        config.cache_data,
        trials.skipped,
    )


class PreparedTrials:
    """A trial set as a model reads it: columns selected, their number checked, signals cached if asked."""

    def __init__(
        self,
        source: TrialSet,
        channel_stride: int,
        num_channels: int | None,
        cache: bool,
        skipped: tuple[Fault, ...] = (),
    ) -> None:
        self.source = source
        self.trials = source.trials
        self.sessions = source.sessions
        self.skipped = skipped
        """Why trials or files were left out (`data.on_fault=skip`)."""
        self._stride = channel_stride
        self._num_channels = num_channels
        self._cache: dict[int, npt.NDArray[np.float32]] | None = {} if cache else None

    def signal(self, index: int) -> npt.NDArray[np.float32]:
        """Signal of trial `index`, see `TrialSet`."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        signal = self.source.signal(index)
        if self._num_channels is not None:
            signal = np.ascontiguousarray(signal[:, :: self._stride])
            if signal.shape[1] != self._num_channels:
                trial = self.trials[index]
                raise DataError(
                    f"{signal.shape[1]} channels, {self._num_channels} expected; set "
                    f"preprocessor.num_channels={signal.shape[1]} or data.channel_stride",
                    code="channel_mismatch",
                    file=trial.file,
                    trial=trial.key,
                )
        if self._cache is not None:
            self._cache[index] = signal
        return signal

    def indices(self, split: Split, left_out: Collection[str] = ()) -> list[int]:
        """Places of the trials of one split, without those whose ids are in `left_out`."""
        return [i for i, t in enumerate(self.trials) if t.split == split and t.trial_id not in left_out]
