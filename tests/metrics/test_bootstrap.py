"""Bootstrap intervals: exact for constant data, the right coverage, wider for correlated clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sottovoce.metrics import bootstrap_difference, bootstrap_interval


def present(interval: tuple[float, float] | None) -> tuple[float, float]:
    assert interval is not None
    return interval


def test_constant_trials_have_no_spread() -> None:
    assert bootstrap_interval([2] * 7, [10] * 7) == (0.2, 0.2)


def test_interval_holds_the_normal_approximation_of_a_proportion() -> None:
    right = np.repeat([1, 0], [300, 700])
    low, high = present(bootstrap_interval(right, np.ones(1000), num_resamples=4000))
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half, abs=0.003)
    assert high == pytest.approx(0.3 + half, abs=0.003)


def test_it_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        lengths = generator.integers(10, 40, 80)
        low, high = present(bootstrap_interval(generator.binomial(lengths, 0.2), lengths, num_resamples=400))
        covered += low <= 0.2 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_correlated_trials_need_clusters() -> None:
    generator = np.random.default_rng(1)
    blocks = np.repeat(np.arange(20), 10)
    errors = generator.binomial(30, np.repeat(generator.beta(2, 8, 20), 10))
    low, high = present(bootstrap_interval(errors, [30] * 200))
    wide_low, wide_high = present(bootstrap_interval(errors, [30] * 200, list(blocks)))
    assert wide_high - wide_low > 1.8 * (high - low)


def test_copies_of_a_trial_in_one_cluster_change_nothing() -> None:
    errors, lengths = [1, 4, 0, 3, 2], [10, 12, 9, 15, 11]
    names = ["a", "b", "c", "d", "e"]
    copied = bootstrap_interval(np.repeat(errors, 3), np.repeat(lengths, 3), np.repeat(names, 3).tolist())
    assert copied == bootstrap_interval(errors, lengths)


def test_the_seed_decides_the_draws() -> None:
    errors, lengths = [1, 4, 0, 3, 2], [10, 12, 9, 15, 11]
    assert bootstrap_interval(errors, lengths, seed=3) == bootstrap_interval(errors, lengths, seed=3)
    many = np.arange(50)
    assert bootstrap_interval(many, many + 60, seed=3) != bootstrap_interval(many, many + 60, seed=4)


def test_without_spread_or_reference_there_is_no_interval() -> None:
    assert bootstrap_interval([1], [10]) is None
    assert bootstrap_interval([1, 2, 3], [10, 10, 10], ["a", "a", "a"]) is None
    assert bootstrap_interval([1, 2], [0, 0]) is None


def test_resamples_without_any_reference_are_left_out() -> None:
    assert bootstrap_interval([0, 3], [0, 10]) == (0.3, 0.3)


def test_paired_trials_show_a_difference_that_their_spread_would_hide() -> None:
    generator = np.random.default_rng(3)
    hard = generator.integers(0, 20, 60)
    worse = hard + generator.integers(0, 3, 60)
    low, high = present(bootstrap_difference(worse, hard, [40] * 60))
    assert 0 < low < (worse - hard).sum() / 2400 < high < 0.05
    first, second = (present(bootstrap_interval(x, [40] * 60)) for x in (worse, hard))
    assert first[0] < second[1]  # apart, the two intervals overlap
    swapped = bootstrap_difference(hard, worse, [40] * 60)
    assert swapped == pytest.approx((-high, -low), abs=1e-3)
