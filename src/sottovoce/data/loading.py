"""Opening a data set as a configuration says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import Split
from sottovoce.core.symbols import symbol_table
from sottovoce.core.trial import TrialSet
from sottovoce.data.config import DataConfig
from sottovoce.data.layout import require_layout
from sottovoce.data.pronunciation import read_lexicon
from sottovoce.data.recordings import open_recordings
from sottovoce.data.t15 import open_t15
from sottovoce.features.config import PreprocessorConfig


def open_data(
    config: DataConfig,
    preprocessor: PreprocessorConfig,
    splits: Sequence[Split],
    seed: int,
    unlabelled: bool = False,
) -> PreparedTrials:
    """The trials of `splits`: recordings for a log-mel front end, otherwise the binned features of a T15 folder.

    `unlabelled` takes every recording as a test trial, whatever its text; T15 folders say themselves what is labelled.

    Raises:
        DataError: the folder is missing, is of another layout, or holds a fault (unless `on_fault=skip`).
        ConfigurationError: phoneme targets from text without a lexicon, or an unknown held-out speaker.
    """
    root = Path(config.data_root)
    if preprocessor.log_mel is None:
        require_layout(root, "t15", "a recipe without preprocessor.log_mel")
        binned = open_t15(root, splits, config.max_sessions, config.on_fault)
        return PreparedTrials(
            binned, config.channel_stride, preprocessor.num_channels, config.cache_data, binned.skipped
        )
    require_layout(root, "recordings", "a recipe with preprocessor.log_mel")
    table = symbol_table(config.symbols)
    lexicon = read_lexicon(Path(config.lexicon), table) if config.lexicon else None
    rate = preprocessor.log_mel.sample_rate_hz
    waveforms = open_recordings(root, splits, config, rate, seed, table, lexicon, unlabelled)
    return PreparedTrials(waveforms, 1, None, config.cache_data, waveforms.skipped)


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
