"""How hard a simulated data set is: phonemes of single bins from a ridge classifier.

Real recordings have no alignment, so this yardstick exists for simulated data only. It sees one smoothed bin at a time
and knows nothing of language: a lower bound of what a decoder can make of the features.

Dimension legend: N speech bins, C channels (and a constant), V symbols.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from sottovoce.core.errors import DataError
from sottovoce.core.splits import Split
from sottovoce.core.symbols import BOUNDARY, PHONEMES
from sottovoce.data.simulate.articulation import SILENCE, Array
from sottovoce.data.simulate.writer import GROUND_TRUTH

SMOOTHING_SIGMA_BINS: Final = 2.0


@dataclass(frozen=True)
class RidgeAccuracy:
    """Shares of phoneme bins whose phoneme was found; word boundaries and silence are left out."""

    same_session: dict[str, float]
    """Trained and tested on the same day, for each day with validation trials."""
    from_first: dict[str, float]
    """Trained on the first day, tested on each of the others."""
    pooled: float
    """Trained on all days together, tested on all."""
    chance: float
    """Share of the most frequent phoneme among the tested bins."""


@dataclass(frozen=True)
class _Bins:
    """Smoothed features of phoneme bins, the last column constant, and their phonemes."""

    x_NC: Array
    phonemes_N: np.ndarray[tuple[int], np.dtype[np.int64]]

    def accuracy(self, weights_CV: Array) -> float:
        return float(np.mean((self.x_NC @ weights_CV).argmax(axis=1) == self.phonemes_N))


@dataclass(frozen=True)
class _Moments:
    """What a ridge regression onto one-hot phonemes needs to know of its bins."""

    square_CC: Array
    cross_CV: Array

    def weights(self, ridge: float) -> Array:
        penalty_CC = ridge * self.square_CC[-1, -1] * np.eye(len(self.square_CC))
        penalty_CC[-1, -1] = 0.0
        weights_CV: Array = np.linalg.solve(self.square_CC + penalty_CC, self.cross_CV)
        return weights_CV


def ridge_accuracy(directory: Path, ridge: float = 0.03, channel_stride: int = 1) -> RidgeAccuracy:
    """Frame accuracy of ridge classifiers on the simulated data set in `directory`.

    Features are smoothed with a Gaussian of 2 bins; training trials train, validation trials test. `ridge` is the
    penalty as a share of the number of bins (features have a mean square near 1); `channel_stride` keeps every n-th
    column.

    Raises:
        DataError: there is no ground truth, or no session has validation trials.
    """
    path = directory / GROUND_TRUTH
    if not path.exists():
        raise DataError(f"{path} does not exist: only a complete simulated data set can be measured")
    truth = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    moments, tests = {}, {}
    for session in sorted({record["session"] for record in truth}):
        here = [record for record in truth if record["session"] == session]
        moments[session] = _moments(_phoneme_bins(directory, here, "train", channel_stride))
        if any(record["split"] == "val" for record in here):
            tests[session] = _phoneme_bins(directory, here, "val", channel_stride)
    if not tests:
        raise DataError(f"{directory}: no session has validation trials; simulate more sessions or validation trials")
    first = min(moments)
    weights = {session: moment.weights(ridge) for session, moment in moments.items()}
    together = _Moments(
        np.sum([moment.square_CC for moment in moments.values()], axis=0),
        np.sum([moment.cross_CV for moment in moments.values()], axis=0),
    ).weights(ridge)
    tested_N = np.concatenate([bins.phonemes_N for bins in tests.values()])
    return RidgeAccuracy(
        same_session={session: bins.accuracy(weights[session]) for session, bins in tests.items()},
        from_first={session: bins.accuracy(weights[first]) for session, bins in tests.items() if session != first},
        pooled=sum(len(bins.phonemes_N) * bins.accuracy(together) for bins in tests.values()) / len(tested_N),
        chance=float(np.bincount(tested_N).max() / len(tested_N)),
    )


def _moments(bins: _Bins) -> _Moments:
    one_hot_NV = np.eye(len(PHONEMES))[bins.phonemes_N]
    return _Moments(bins.x_NC.T @ bins.x_NC, bins.x_NC.T @ one_hot_NV)


def _phoneme_bins(directory: Path, truth: Iterable[dict[str, Any]], split: Split, channel_stride: int) -> _Bins:
    features, phonemes = [], []
    records = [record for record in truth if record["split"] == split]
    with h5py.File(directory / records[0]["session"] / f"data_{split}.hdf5", "r") as file:
        for record in records:
            signal_TC = file[record["trial"]]["input_features"][:, ::channel_stride]
            smooth_TC = _smoothed(signal_TC.astype(np.float64))
            for symbol, first, end in record["alignment"]:
                if symbol not in (SILENCE, BOUNDARY):
                    features.append(smooth_TC[first:end])
                    phonemes.append(np.full(end - first, PHONEMES.index[symbol]))
    x_NC = np.concatenate(features)
    return _Bins(np.concatenate([x_NC, np.ones((len(x_NC), 1))], axis=1), np.concatenate(phonemes))


def _smoothed(signal_TC: Array) -> Array:
    """Gaussian smoothing along time; beyond its ends the signal is 0."""
    reach = int(4 * SMOOTHING_SIGMA_BINS)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING_SIGMA_BINS) ** 2)
    kernel /= kernel.sum()
    padded_TC = np.pad(signal_TC, ((reach, reach), (0, 0)))
    smooth_TC: Array = sum(k * padded_TC[i : i + len(signal_TC)] for i, k in enumerate(kernel))
    return smooth_TC
