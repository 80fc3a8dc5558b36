"""Bootstrap intervals of corpus rates, resampling whole clusters of trials."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from sottovoce.core.random import numpy_generator

NUM_RESAMPLES = 2000
_DRAWS_AT_ONCE = 4_000_000


def bootstrap_interval(
    counts: npt.ArrayLike,
    totals: npt.ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """(low, high) of `sum(counts) / sum(totals)`: the percentile interval over resampled clusters.

    Trials of one cluster (recordings of one spoken event, a block of a session) share their luck and are
    drawn together; without `clusters` each trial is its own. Source: Bisani & Ney 2004, section 2.

    Args:
        counts: [N] errors (or right answers) of each trial.
        totals: [N] reference length (or 1) of each trial.
        clusters: N cluster names.
        seed: the run's seed; the draws are those of the purpose `bootstrap`.

    Returns:
        None when there are fewer than two clusters (their spread is unknown) or the totals are all 0.
    """
    count_N, total_N = np.asarray(counts, np.float64), np.asarray(totals, np.float64)
    cluster_N = np.arange(len(count_N)) if clusters is None else _numbered(clusters)
    count_K, total_K = np.bincount(cluster_N, count_N), np.bincount(cluster_N, total_N)
    num_clusters = len(count_K)
    if num_clusters < 2 or not total_K.any():
        return None
    generator = numpy_generator(seed, "bootstrap")
    rates: list[npt.NDArray[np.float64]] = []
    remaining = num_resamples
    while remaining:
        rows = min(remaining, max(1, _DRAWS_AT_ONCE // num_clusters))
        drawn = generator.integers(num_clusters, size=(rows, num_clusters))
        errors, lengths = count_K[drawn].sum(axis=1), total_K[drawn].sum(axis=1)
        rates.append(errors[lengths > 0] / lengths[lengths > 0])
        remaining -= rows
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(rates), [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_difference(
    counts: npt.ArrayLike,
    others: npt.ArrayLike,
    totals: npt.ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """(low, high) of the difference of two systems' rates on the same trials, which are resampled in pairs.

    A positive difference means that the first system has more errors. The rest is as in `bootstrap_interval`.

    >>> bootstrap_difference([3, 1, 2], [3, 1, 2], [10, 10, 10])
    (0.0, 0.0)
    """
    difference_N = np.asarray(counts, np.float64) - np.asarray(others, np.float64)
    return bootstrap_interval(
        difference_N, totals, clusters, seed=seed, num_resamples=num_resamples, confidence=confidence
    )


def _numbered(clusters: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
