"""Which trials make up which optimiser step: a pure function of (seed, step).

Nothing is remembered between steps, so a resumed run, a second process and another number of workers all see the
same batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sottovoce.core.random import numpy_generator

IntArray = npt.NDArray[np.int64]
POOL_STEPS = 8
"""Steps whose trials are sorted by length together."""


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The global batch of every step: trial indices, the same for all processes."""

    lengths: IntArray
    """Length of each trial, in any unit."""
    sessions: IntArray
    """Session of each trial."""
    trials: IntArray
    """Index of each trial in its trial set."""
    batch_size: int
    """Trials of one optimiser step over all processes and micro-batches."""
    sessions_per_batch: int
    """0: shuffled passes through all trials; otherwise sessions are drawn first (see `DataConfig`)."""
    bucketing: bool
    seed: int

    def step(self, step: int) -> IntArray:
        """Trial indices of step `step` (from 0), [batch_size]."""
        places = self._pool(step // POOL_STEPS)[step % POOL_STEPS] if self.bucketing else self._draw(step)
        return self.trials[places]

    @lru_cache(maxsize=2)  # noqa: B019 - a plan lives as long as its run
    def _pool(self, pool: int) -> list[IntArray]:
        drawn = np.concatenate([self._draw(pool * POOL_STEPS + i) for i in range(POOL_STEPS)])
        by_length = drawn[np.argsort(self.lengths[drawn], kind="stable")]
        order = numpy_generator(self.seed, "sampling", 2, pool).permutation(POOL_STEPS)
        return [by_length[i * self.batch_size : (i + 1) * self.batch_size] for i in order]

    def _draw(self, step: int) -> IntArray:
        if self.sessions_per_batch:
            return self._draw_from_sessions(numpy_generator(self.seed, "sampling", 1, step))
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        passes, places = np.divmod(positions, len(self.lengths))
        return np.array([self._shuffled(int(p))[i] for p, i in zip(passes, places, strict=True)])

    @lru_cache(maxsize=2)  # noqa: B019
    def _shuffled(self, number: int) -> IntArray:
        return numpy_generator(self.seed, "sampling", 0, number).permutation(len(self.lengths))

    def _draw_from_sessions(self, generator: np.random.Generator) -> IntArray:
        """Sessions without replacement, uniformly; trials of a session with replacement (nejm-brain-to-text)."""
        present = np.unique(self.sessions)
        count = min(self.sessions_per_batch, len(present), self.batch_size)
        chosen = generator.choice(present, count, replace=False)
        shares = np.array_split(np.arange(self.batch_size), count)
        return np.concatenate(
            [
                generator.choice(np.flatnonzero(self.sessions == session), len(share))
                for session, share in zip(chosen, shares, strict=True)
            ]
        )
