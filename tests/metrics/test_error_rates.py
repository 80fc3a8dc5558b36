"""Edit counts against a table of distances, corpus sums, the one percent formatter, confusions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.metrics import ErrorCounts, Rate, aligned, confusion_counts, error_counts, percent

SEQUENCES = st.lists(st.integers(0, 4), max_size=8)


def distance(a: list[int], b: list[int]) -> int:
    """The textbook recursion, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def test_counts_name_each_kind_of_error() -> None:
    assert error_counts([1, 2, 3], [1, 2, 3]) == (0, 0, 0, 3)
    assert error_counts([1, 2, 3], [1, 9, 3]) == (1, 0, 0, 3)
    assert error_counts([1, 2, 3], [1, 3]) == (0, 1, 0, 3)
    assert error_counts([1, 2, 3], [1, 2, 9, 3]) == (0, 0, 1, 3)
    assert error_counts([1, 2, 3], []) == (0, 3, 0, 3)
    assert error_counts([], [1, 2]) == (0, 0, 2, 0)


def test_one_inserted_symbol_at_the_front_is_one_error() -> None:
    assert error_counts(range(1, 21), [0, *range(1, 21)]) == (0, 0, 1, 20)


@given(SEQUENCES, SEQUENCES)
def test_errors_are_the_levenshtein_distance(a: list[int], b: list[int]) -> None:
    counts = ErrorCounts.of(a, b)
    assert counts.errors == distance(a, b)
    assert len(a) - counts.deletions + counts.insertions == len(b)


def test_items_are_compared_by_equality_not_by_hash() -> None:
    assert hash(-1) == hash(-2)
    assert error_counts([-1], [-2]) == (1, 0, 0, 1)
    assert error_counts(["yes"], ["no"]) == (1, 0, 0, 1)


@given(SEQUENCES, SEQUENCES)
def test_alignment_holds_both_sequences_and_the_counted_errors(a: list[int], b: list[int]) -> None:
    pairs = aligned(a, b)
    assert [x for x, _ in pairs if x is not None] == a
    assert [y for _, y in pairs if y is not None] == b
    assert sum(x != y for x, y in pairs) == ErrorCounts.of(a, b).errors


def test_corpus_rate_sums_before_it_divides() -> None:
    corpus = ErrorCounts.of([1], [2]) + ErrorCounts.of([1] * 19, [1] * 19)
    assert corpus.rate == Rate(1, 20)
    assert corpus.rate.value == 0.05
    trials = [ErrorCounts.of([1, 2], hypothesis) for hypothesis in ([1, 2], [1, 2], [1, 2], [])]
    assert sum(trials, ErrorCounts()).rate.value == 0.25


def test_percent_is_a_hundred_times_the_fraction() -> None:
    assert ErrorCounts.of([1, 2, 3], []).rate.percent() == "100.0 %"
    assert Rate(1, 100).percent() == "1.0 %"
    assert percent(0.12345) == "12.3 %"
    assert percent(1.2156) == "121.6 %"


def test_nothing_to_count_against_has_no_value() -> None:
    rate = ErrorCounts.of([], [1]).rate
    assert rate.value is None
    assert rate.percent() == "–"


def test_confusions_put_gaps_in_the_row_and_column_of_the_blank() -> None:
    counts = confusion_counts([([1, 2, 3], [1, 3, 3]), ([1, 2], [1]), ([3], [3, 2])], num_symbols=4)
    expected = np.zeros((4, 4), int)
    expected[1, 1], expected[2, 3], expected[3, 3] = 2, 1, 2
    expected[2, 0] = 1  # deletion of 2
    expected[0, 2] = 1  # insertion of 2
    np.testing.assert_array_equal(counts, expected)
