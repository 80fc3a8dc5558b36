"""Forced alignment against every path of tiny trials."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.core.errors import DataError
from sottovoce.core.lengths import ctc_frames_needed
from sottovoce.decoding.alignment import Span, align_ctc


def collapse(path: tuple[int, ...]) -> list[int]:
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != 0]


def random_log_probs(num_frames: int, num_symbols: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(num_frames, num_symbols)) * 2
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@given(st.lists(st.integers(1, 2), max_size=3), st.integers(1, 5), st.integers(0, 1000))
def test_no_path_of_the_labels_is_more_probable(labels: list[int], num_frames: int, seed: int) -> None:
    log_probs = random_log_probs(num_frames, 3, seed)
    if ctc_frames_needed(labels) > num_frames:
        with pytest.raises(DataError, match="ctc_infeasible"):
            align_ctc(log_probs, labels)
        return
    spans, score = align_ctc(log_probs, labels)
    rows = np.arange(num_frames)
    paths = [p for p in itertools.product(range(3), repeat=num_frames) if collapse(p) == labels]
    assert score == pytest.approx(max(log_probs[rows, list(p)].sum() for p in paths))
    path = np.zeros(num_frames, int)
    for span in spans:
        path[span.start : span.end] = span.symbol
    assert collapse(tuple(path)) == labels
    assert log_probs[rows, path].sum() == pytest.approx(score)


def test_clear_posteriors_give_their_frames_back() -> None:
    path = [0, 3, 3, 0, 3, 1, 1, 0]
    spans, score = align_ctc(np.log(0.9 * np.eye(4)[path] + 0.025), [3, 3, 1])
    assert spans == [Span(3, 1, 3), Span(3, 4, 5), Span(1, 5, 7)]
    assert score == pytest.approx(8 * np.log(0.925))


def test_the_blank_may_be_the_last_symbol() -> None:
    path = [2, 0, 0, 2]
    spans, _ = align_ctc(np.log(0.9 * np.eye(3)[path] + 0.03), [0], blank=2)
    assert spans == [Span(0, 1, 3)]


def test_an_empty_label_is_all_blank() -> None:
    log_probs = random_log_probs(4, 3, 0)
    spans, score = align_ctc(log_probs, [])
    assert spans == []
    assert score == pytest.approx(log_probs[:, 0].sum())
    assert align_ctc(np.zeros((0, 3)), []) == ([], 0.0)


def test_a_label_with_probability_0_is_refused() -> None:
    log_probs = np.full((3, 3), -np.inf)
    log_probs[:, 0] = 0.0
    with pytest.raises(DataError, match="probability above 0"):
        align_ctc(log_probs, [1])
