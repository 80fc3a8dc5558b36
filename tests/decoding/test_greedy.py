"""Greedy CTC: merge, then drop; only valid frames count."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.decoding.greedy import blank_fraction, blank_frames, greedy_ctc


def frames(*paths: list[int], num_symbols: int = 9) -> torch.Tensor:
    """Log-probabilities [B, S, V] whose best symbols are `paths`, which have one length."""
    return torch.log_softmax(5.0 * torch.eye(num_symbols)[torch.tensor(paths)], dim=-1)


def test_repeats_merge_before_blanks_drop() -> None:
    assert greedy_ctc(frames([5, 5, 0, 5, 7]), torch.tensor([5])) == [[5, 5, 7]]


def test_padding_says_nothing() -> None:
    log_probs = frames([1, 2, 2, 0], [3, 3, 4, 4])
    assert greedy_ctc(log_probs, torch.tensor([4, 2])) == [[1, 2], [3]]
    assert greedy_ctc(log_probs, torch.tensor([1, 0])) == [[1], []]


def test_the_blank_may_be_any_symbol() -> None:
    assert greedy_ctc(frames([5, 8, 5, 0, 0]), torch.tensor([5]), blank=8) == [[5, 5, 0]]


def test_all_blank_is_empty() -> None:
    assert greedy_ctc(frames([0, 0, 0]), torch.tensor([3])) == [[]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_it_is_the_collapse_of_the_best_path(path: list[int]) -> None:
    expected = [symbol for symbol, _ in itertools.groupby(path) if symbol != 0]
    assert greedy_ctc(frames(path), torch.tensor([len(path)])) == [expected]


def test_blank_share_counts_valid_frames_of_the_whole_batch() -> None:
    log_probs = frames([0, 1, 0, 0], [0, 2, 0, 0])
    lengths = torch.tensor([4, 2])
    assert blank_frames(log_probs, lengths).tolist() == [3, 1]
    assert blank_fraction(log_probs, lengths) == pytest.approx(4 / 6)
    assert blank_fraction(log_probs, lengths, blank=2) == pytest.approx(1 / 6)
