"""Faults of the values of binned features: dead channels and an odd scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sottovoce.data.checks_trial import OFFICIAL_CHANNELS
from sottovoce.data.purpose import Finding
from sottovoce.data.t15_structure import EVERY_TRIAL

DEAD_STD: Final = 1e-6
MOST_DEAD: Final = 0.1
"""More dead channels than this share are reported; fewer are normal (single dead electrodes)."""
LEAST_BINS_FOR_DEAD: Final = 50
"""A channel may well be silent for less than a second."""
LARGEST_TRIAL_MEAN: Final = 1e3
LARGEST_SESSION_MEAN: Final = 0.5
SESSION_STD: Final = (0.3, 3.0)
_ARRAYS: Final = ("v6v", "area4", "55b", "d6v")
_KINDS: Final = ("threshold crossings", "spike-band power")
_ARRAY_CHANNELS: Final = 64


class SessionStatistics:
    """Mean and standard deviation of every value of a session."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0
        self.squares = 0.0

    def add(self, features: npt.NDArray[np.float32]) -> str | None:
        """Count a trial in, unless its mean alone is absurd: then say so."""
        mean = float(features.mean(dtype=np.float64))
        if abs(mean) > LARGEST_TRIAL_MEAN:
            return f"mean {mean:.4g} exceeds ±{LARGEST_TRIAL_MEAN:g}; expected z-scored features: normalise the trial"
        wide = features.astype(np.float64) if np.abs(features).max() > 1e6 else features
        self.count += features.size
        self.sum += mean * features.size
        self.squares += float(np.vdot(wide, wide))
        return None

    def outlier(self) -> str | None:
        """What is wrong with the whole session's scale."""
        if self.count == 0:
            return None
        mean = self.sum / self.count
        std = max(self.squares / self.count - mean**2, 0.0) ** 0.5
        low, high = SESSION_STD
        if abs(mean) <= LARGEST_SESSION_MEAN and low <= std <= high:
            return None
        return (
            f"mean {mean:.3g} and standard deviation {std:.3g} over all trials, expected a mean inside "
            f"±{LARGEST_SESSION_MEAN} and a deviation from {low} to {high} (z-scored features); normalise them, or set "
            "preprocessor.normalisation=trial"
        )


class DeadChannels:
    """Constant channels of a file: of every trial, and of single trials."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._always = np.ones(channels, dtype=bool)
        self._all_zero = np.ones(channels, dtype=bool)
        self._trials: list[tuple[str, int, npt.NDArray[np.bool_]]] = []

    def add(self, key: str, features: npt.NDArray[np.float32]) -> None:
        """Look at one trial."""
        highest, lowest = features.max(0), features.min(0)
        dead = highest - lowest < 100 * DEAD_STD  # a quick superset: the deviation is at most half the range
        if dead.any():
            dead[dead] = features[:, dead].std(0, dtype=np.float64) < DEAD_STD
        self._always &= dead
        self._all_zero &= (highest == 0) & (lowest == 0)
        self._trials.append((key, len(features), dead))

    def findings(self) -> Iterator[tuple[str, Finding]]:
        """One finding for what is missing in every trial, one for each trial that lacks far more, by group."""
        always = self._always
        if sum(bins for _, bins, _ in self._trials) < LEAST_BINS_FOR_DEAD:
            return
        arrays = list(self._missing_arrays())
        share = always.mean()
        if arrays or share > MOST_DEAD:
            if arrays:
                what = f"{'; '.join(arrays)}: a whole array is missing, not single dead electrodes"
            else:
                what = f"{always.sum()} of {self._channels} features ({share:.0%}) are {self._value(always)} "
                what += f"in every trial of the file: {ranges(np.flatnonzero(always))}"
            message = f"{what}; check the recording of that day, or leave the session out"
            yield EVERY_TRIAL, ("dead_channels", "warning", message)
        for key, bins, dead in self._trials:
            beyond = dead & ~always
            if bins >= LEAST_BINS_FOR_DEAD and beyond.mean() > MOST_DEAD:
                message = (
                    f"{dead.sum()} of {self._channels} features are constant in this trial "
                    f"({ranges(np.flatnonzero(dead))}), {always.sum()} in every trial of the file; check the trial"
                )
                yield key, ("dead_channels", "warning", message)

    def _missing_arrays(self) -> Iterator[str]:
        if self._channels != OFFICIAL_CHANNELS:
            return
        for i in range(self._channels // _ARRAY_CHANNELS):
            block = slice(i * _ARRAY_CHANNELS, (i + 1) * _ARRAY_CHANNELS)
            if self._always[block].all():
                kind, array = _KINDS[i // len(_ARRAYS)], _ARRAYS[i % len(_ARRAYS)]
                value = self._value(np.arange(self._channels)[block])
                yield (
                    f"features {block.start} to {block.stop - 1} ({kind} of array {array}) are {value} "
                    "in every trial of the file"
                )

    def _value(self, channels: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> str:
        return "exactly zero" if self._all_zero[channels].all() else "constant"


def ranges(numbers: Sequence[int] | npt.NDArray[np.int64]) -> str:
    """Sorted whole numbers with runs drawn together, the first ten runs.

    >>> ranges([1, 2, 3, 7])
    '1-3, 7'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = int(number)
        else:
            runs.append([int(number), int(number)])
    shown = ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs[:10])
    return shown + (" …" if len(runs) > 10 else "")
