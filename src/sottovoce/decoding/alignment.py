"""Forced alignment: the frames in which a CTC model says each symbol of a known label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.lengths import ctc_frames_needed


@dataclass(frozen=True)
class Span:
    """One label of a trial and the frames `start` to `end - 1` that emit it."""

    symbol: int
    start: int
    end: int


def align_ctc(
    log_probs_SV: npt.NDArray[np.floating], labels: Sequence[int], blank: int = 0
) -> tuple[list[Span], float]:
    """A span for each label on the most probable CTC path through them, and that path's natural-log probability.

    Viterbi over the 2U + 1 states blank, y_1, blank, …, y_U, blank (Graves et al. 2006, section 4.1, with the
    sum replaced by the maximum); frames between spans are blank.

    Raises:
        DataError: the labels need more frames than there are, or every path has probability 0.
    """
    num_frames, num_labels = len(log_probs_SV), len(labels)
    needed = ctc_frames_needed(labels)
    if needed > num_frames:
        raise DataError(f"{num_labels} labels need {needed} frames, the trial has {num_frames}", code="ctc_infeasible")
    if num_frames == 0:
        return [], 0.0
    states = np.full(2 * num_labels + 1, blank)
    states[1::2] = labels
    emitted_SX = np.asarray(log_probs_SV, np.float64)[:, states]
    may_skip_X = np.zeros(len(states), bool)  # over the blank between two different labels
    may_skip_X[3::2] = states[3::2] != states[1:-2:2]

    score_X = np.full(len(states), -np.inf)
    score_X[:2] = emitted_SX[0, :2]
    steps_SX = np.zeros((num_frames, len(states)), np.int64)
    for frame in range(1, num_frames):
        stay = score_X
        forward = np.concatenate(([-np.inf], score_X[:-1]))
        skip = np.where(may_skip_X, np.concatenate(([-np.inf, -np.inf], score_X))[: len(states)], -np.inf)
        choices = np.stack([stay, forward, skip])
        steps_SX[frame] = choices.argmax(axis=0)
        score_X = choices.max(axis=0) + emitted_SX[frame]

    state = len(states) - 1 if num_labels == 0 or score_X[-1] >= score_X[-2] else len(states) - 2
    score = float(score_X[state])
    if not np.isfinite(score):
        raise DataError(f"no path through the {num_labels} labels has a probability above 0")
    path_S = np.zeros(num_frames, np.int64)
    for frame in range(num_frames - 1, -1, -1):
        path_S[frame] = state
        state -= steps_SX[frame, state]
    return [_span(path_S, 2 * u + 1, symbol) for u, symbol in enumerate(labels)], score


def _span(path_S: npt.NDArray[np.int64], state: int, symbol: int) -> Span:
    frames = np.flatnonzero(path_S == state)
    return Span(symbol, int(frames[0]), int(frames[-1]) + 1)
