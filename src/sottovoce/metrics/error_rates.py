"""Error rates as counts: errors and reference lengths are summed over the corpus, then divided once.

PER counts symbol ids, WER words, CER characters; WRA is the share of trials whose whole text is right.
Rates are fractions everywhere; `percent` is the only place that turns one into "12.3 %".
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

Item = TypeVar("Item", bound=Hashable)


def percent(value: float | None) -> str:
    """A fraction as people read it; a dash where there is none.

    >>> percent(0.1234), percent(1.0), percent(None)
    ('12.3 %', '100.0 %', '–')
    """
    return "–" if value is None else f"{100 * value:.1f} %"


@dataclass(frozen=True)
class Rate:
    """A count out of a total: errors out of the reference's length, or right trials out of all trials."""

    count: int
    total: int

    @property
    def value(self) -> float | None:
        """The fraction, above 1 when insertions abound; None when there was nothing to count against."""
        return self.count / self.total if self.total else None

    def percent(self) -> str:
        """The rate as "12.3 %"."""
        return percent(self.value)

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.count + other.count, self.total + other.total)


@dataclass(frozen=True)
class ErrorCounts:
    """Edit errors of one or more trials; counts of trials add up to those of the corpus."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_length: int = 0

    @classmethod
    def of(cls, reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> ErrorCounts:
        """Counts of one trial."""
        return cls(*error_counts(reference, hypothesis))

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> Rate:
        """Errors out of the reference's length."""
        return Rate(self.errors, self.reference_length)

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_length + other.reference_length,
        )


def error_counts(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> tuple[int, int, int, int]:
    """(substitutions, deletions, insertions, reference length) of one alignment with the fewest errors.

    The sum of the first three is the Levenshtein distance; where several alignments reach it, their split
    between the three kinds is that of rapidfuzz (the one jiwer reports).

    >>> error_counts("a b c".split(), "a x c d".split())
    (1, 0, 1, 3)
    """
    tags = [op.tag for op in Levenshtein.editops(*_numbered(reference, hypothesis))]
    return tags.count("replace"), tags.count("delete"), tags.count("insert"), len(reference)


def aligned(reference: Sequence[Item], hypothesis: Sequence[Item]) -> list[tuple[Item | None, Item | None]]:
    """Pairs (reference, hypothesis) of the alignment that `error_counts` counts; None marks the gap.

    >>> aligned("abc", "axcd")
    [('a', 'a'), ('b', 'x'), ('c', 'c'), (None, 'd')]
    """
    pairs: list[tuple[Item | None, Item | None]] = []
    for op in Levenshtein.opcodes(*_numbered(reference, hypothesis)):
        left, right = reference[op.src_start : op.src_end], hypothesis[op.dest_start : op.dest_end]
        if op.tag == "delete":
            pairs += [(item, None) for item in left]
        elif op.tag == "insert":
            pairs += [(None, item) for item in right]
        else:
            pairs += zip(left, right, strict=True)
    return pairs


def confusion_counts(
    pairs: Iterable[tuple[Sequence[int], Sequence[int]]], num_symbols: int, gap: int = 0
) -> npt.NDArray[np.int64]:
    """How often each reference symbol (row) became each hypothesis symbol (column): int64 [V, V].

    Row `gap` holds the insertions and column `gap` the deletions: the blank's place, which no label uses.
    """
    counts = np.zeros((num_symbols, num_symbols), np.int64)
    for reference, hypothesis in pairs:
        for expected, found in aligned(reference, hypothesis):
            counts[gap if expected is None else expected, gap if found is None else found] += 1
    return counts


def _numbered(*sequences: Sequence[Hashable]) -> list[list[int]]:
    # rapidfuzz compares hashes; numbering the items first makes it compare by equality.
    numbers: dict[Hashable, int] = {}
    return [[numbers.setdefault(item, len(numbers)) for item in sequence] for sequence in sequences]
