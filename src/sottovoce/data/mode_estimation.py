"""Pseudo-labels of the speaking mode, by expectation-maximisation over blocks.

What is compared is how much of each channel's variance is slow: variance of 3-bin means over mean squared difference
of neighbouring bins, as a logarithm. A z-score with changing scale, as T15 features have it, leaves this ratio alone.
In vocalised speech the voice is driven fully, and heard and felt: more of the variance is movement, less is noise.

The model: a block's vector is its session's mean, plus one common shift if it was vocalised, plus noise. The
session's mean is its own, so that drift from day to day does not pass for a mode; the price is that a session spoken
in one mode throughout cannot be told, and its blocks get a probability near one half. Whether there are two modes at
all is another question: see `one_mode_p_value`.

Dimension legend: N blocks, M trials, T bins, C channels, E embedding size, K sessions, D compared dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.random import numpy_generator
from sottovoce.core.trial import Trial
from sottovoce.data.speaking_modes import UNKNOWN, Block, BlockModes, block_of

Array = npt.NDArray[np.float64]

MEAN_BINS: Final = 3
NUM_DIMENSIONS: Final = 3
"""Principal components of the blocks that the mixture sees."""
NOISE_SHARE: Final = 0.5
"""Variance of the noise, alike in all directions, as a share of the blocks' variance along their first component. It
is fixed: so few blocks would let an estimated one shrink to nothing around chance groups. Above 1 no group forms."""
RESTARTS: Final = 20
BOOTSTRAP_DRAWS: Final = 199
_MOST_ITERATIONS: Final = 500
_TOLERANCE: Final = 1e-8
_MOST_LOG_ODDS: Final = 30.0
_LEAST_VARIANCE: Final = 1e-6
_GRID: Final = 801


@dataclass
class _Sums:
    slow_C: Array
    fast_C: Array
    num_trials: int = 0


@dataclass
class BlockStatistics:
    """Slow and fast variance of every block, gathered trial by trial."""

    _sums: dict[Block, _Sums] = field(default_factory=dict)

    def add(self, trial: Trial, features_TC: npt.NDArray[np.floating]) -> None:
        """Count in a trial's features as stored, before any smoothing; trials of a bin or two change nothing.

        Raises:
            DataError: the trial has no block number, or other channels than those before it.
        """
        if len(features_TC) < MEAN_BINS:
            return
        wide_TC = features_TC.astype(np.float64)
        total_TC = np.cumsum(np.vstack([np.zeros(wide_TC.shape[1]), wide_TC]), axis=0)
        means_TC = (total_TC[MEAN_BINS:] - total_TC[:-MEAN_BINS]) / MEAN_BINS
        slow_C, fast_C = means_TC.var(axis=0), np.square(np.diff(wide_TC, axis=0)).mean(axis=0)
        earlier = next(iter(self._sums.values()), None)
        if earlier is not None and len(earlier.slow_C) != len(slow_C):
            raise DataError(
                f"{len(slow_C)} channels, earlier trials have {len(earlier.slow_C)}",
                code="channel_mismatch",
                trial=trial.trial_id,
            )
        sums = self._sums.setdefault(block_of(trial), _Sums(np.zeros_like(slow_C), np.zeros_like(fast_C)))
        sums.slow_C += len(wide_TC) * slow_C
        sums.fast_C += len(wide_TC) * fast_C
        sums.num_trials += 1

    @property
    def num_trials(self) -> dict[Block, int]:
        """Trials counted in each block."""
        return {block: sums.num_trials for block, sums in self._sums.items()}

    def log_ratios(self) -> dict[Block, Array]:
        """ln(slow variance / fast variance) of every channel [C]; NaN where a channel never changed."""
        ratios = {}
        for block, sums in self._sums.items():
            silent_C = np.minimum(sums.slow_C, sums.fast_C) < _LEAST_VARIANCE
            ratio_C = np.log(np.where(silent_C, 1.0, sums.slow_C) / np.where(silent_C, 1.0, sums.fast_C))
            ratios[block] = np.where(silent_C, np.nan, ratio_C)
        return ratios


def pseudo_modes(statistics: BlockStatistics, seed: int, restarts: int = RESTARTS) -> BlockModes:
    """The mode of every block, as a posterior of a two-component mixture; equal inputs give equal labels.

    Of the two components the one with the larger share of slow variance is called vocalised: without labels nothing
    else fixes the names. The best of `restarts` random starts counts.

    Raises:
        DataError: no session has two blocks, or the blocks do not differ at all.
    """
    ratios = statistics.log_ratios()
    blocks = _Blocks.of(statistics.num_trials)
    centred_NC = blocks.centred(np.stack([ratios[block] for block in blocks.names]))
    x_ND = blocks.principal(centred_NC)
    first = [_start(x_ND, i, seed) for i in range(restarts)]
    posterior_N, _ = max((_mixture(x_ND, blocks, start_N) for start_N in first), key=lambda found: found[1])
    strength_N = centred_NC.mean(axis=1)
    if float(np.sum(blocks.weight_N * (posterior_N - 0.5) * strength_N)) < 0:
        posterior_N = 1 - posterior_N
    return blocks.labelled(posterior_N)


def one_mode_p_value(statistics: BlockStatistics, seed: int, draws: int = BOOTSTRAP_DRAWS) -> float:
    """How often blocks of a single mode fall into two groups at least as well as these, from 1/(draws + 1) to 1.

    The two-component fit is always better than one component, and its posteriors look sure of themselves either way.
    So its gain in likelihood is compared with that on data drawn from the one-component fit, a normal distribution
    about each session's mean (parametric bootstrap). A small number speaks for two modes; a large one does not speak
    for one, the blocks may be too few or the signal too weak.

    Raises:
        DataError: as `pseudo_modes`.
    """
    ratios = statistics.log_ratios()
    blocks = _Blocks.of(statistics.num_trials)
    x_ND = blocks.principal(blocks.centred(np.stack([ratios[block] for block in blocks.names])))
    root_N1 = np.sqrt(blocks.weight_N)[:, None]
    freedom = len(x_ND) - blocks.session_NK.shape[1]
    _, deviation_D, basis_DD = np.linalg.svd(root_N1 * x_ND / np.sqrt(freedom), full_matrices=False)
    generator, gain, as_good = numpy_generator(seed, "bootstrap"), _gain(x_ND, blocks), 0
    for _ in range(draws):
        drawn_ND = generator.standard_normal((len(x_ND), len(deviation_D))) * deviation_D @ basis_DD / root_N1
        as_good += int(_gain(blocks.principal(blocks.centred(drawn_ND)), blocks) >= gain)
    return (1 + as_good) / (1 + draws)


def refreshed_modes(
    modes: BlockModes, statistics: BlockStatistics, embeddings: Mapping[Block, npt.NDArray[np.floating]]
) -> BlockModes:
    """`modes` estimated anew from the signal's statistics and the model's embeddings together.

    `embeddings` are means over a block's trials (`block_means`). Both sources get the same total variance; the
    mixture starts from `modes`, so that the names of the components stay.

    Raises:
        DataError: a block has no embedding, or the embeddings do not differ at all.
    """
    ratios = statistics.log_ratios()
    blocks = _Blocks.of(statistics.num_trials)
    missing = [block for block in blocks.names if block not in embeddings]
    if missing:
        raise DataError(f"block {missing[0][1]} of session {missing[0][0]} has no embedding to refresh its mode with")
    sources = [
        np.stack([ratios[block] for block in blocks.names]),
        np.stack([np.asarray(embeddings[block], np.float64) for block in blocks.names]),
    ]
    x_ND = np.hstack([blocks.principal(blocks.centred(source)) for source in sources])
    start_N = np.array([modes.vocalised.get(block, UNKNOWN) for block in blocks.names])
    if np.ptp(start_N) == 0:
        raise DataError("all blocks have the same mode before the refresh; there is nothing to start from")
    posterior_N, _ = _mixture(x_ND, blocks, start_N)
    return blocks.labelled(posterior_N)


def block_means(trials: Sequence[Trial], embeddings_ME: npt.NDArray[np.floating]) -> dict[Block, Array]:
    """Mean over the trials of each block [E], from one embedding a trial."""
    rows: dict[Block, list[int]] = {}
    for row, trial in enumerate(trials):
        rows.setdefault(block_of(trial), []).append(row)
    return {block: embeddings_ME[members].astype(np.float64).mean(axis=0) for block, members in rows.items()}


@dataclass(frozen=True)
class _Blocks:
    """The blocks in a fixed order, with what the mixture needs to know of each."""

    names: tuple[Block, ...]
    session_NK: Array
    """One-hot."""
    weight_N: Array
    """Trials as a share of the largest block's: a mean over few trials is noisier."""

    @staticmethod
    def of(num_trials: Mapping[Block, int]) -> _Blocks:
        names = tuple(sorted(num_trials))
        sessions = sorted({session for session, _ in names})
        if len(names) == len(sessions):
            raise DataError(
                f"modes cannot be estimated: none of the {len(sessions)} sessions has two blocks with trials; "
                "only blocks of one session can be compared"
            )
        count_N = np.array([float(num_trials[name]) for name in names])
        one_hot = np.array([[float(session == other) for other in sessions] for session, _ in names])
        return _Blocks(names, one_hot, count_N / count_N.max())

    def centred(self, x_NC: Array) -> Array:
        """Without each session's weighted mean; NaN becomes 0, which is that mean."""
        known_NC = ~np.isnan(x_NC) * self.weight_N[:, None]
        filled_NC = np.nan_to_num(x_NC)
        total_KC, count_KC = self.session_NK.T @ (known_NC * filled_NC), self.session_NK.T @ known_NC
        mean_NC = self.session_NK @ (total_KC / np.maximum(count_KC, 1e-12))
        return np.where(np.isnan(x_NC), 0.0, filled_NC - mean_NC)

    def principal(self, centred_NC: Array) -> Array:
        """The blocks along their first principal components, [N, D], total weighted variance 1."""
        root_N1 = np.sqrt(self.weight_N)[:, None]
        _, singular, basis_DC = np.linalg.svd(centred_NC * root_N1, full_matrices=False)
        if singular[0] < 1e-9:
            raise DataError("modes cannot be estimated: the blocks of each session do not differ at all")
        x_ND = centred_NC @ basis_DC[:NUM_DIMENSIONS].T
        scaled: Array = x_ND / np.sqrt(np.sum(self.weight_N[:, None] * x_ND**2) / self.weight_N.sum())
        return scaled

    def precision(self, x_ND: Array) -> Array:
        """Of the noise of each block, from `NOISE_SHARE`."""
        covariance_DD = (x_ND * self.weight_N[:, None]).T @ x_ND / self.weight_N.sum()
        precision_N: Array = self.weight_N / (NOISE_SHARE * float(np.linalg.eigvalsh(covariance_DD)[-1]))
        return precision_N

    def labelled(self, posterior_N: Array) -> BlockModes:
        """The posterior of each block as labels."""
        return BlockModes(dict(zip(self.names, posterior_N.tolist(), strict=True)), "pseudo")


def _start(x_ND: Array, index: int, seed: int) -> Array:
    """The sign of the first component at first, then random numbers."""
    if index == 0:
        return np.where(x_ND[:, 0] > 0, 0.9, 0.1)
    return numpy_generator(seed, "init", index).uniform(size=len(x_ND))


def _mixture(x_ND: Array, blocks: _Blocks, posterior_N: Array) -> tuple[Array, float]:
    """Expectation-maximisation from `posterior_N` on: the posterior of the shifted component, and the likelihood.

    x_n = mean of n's session + m_n · shift + noise, m_n 0 or 1 with probability one half; a block's squared distance
    counts by its weight. The session means are estimated along the way and integrated out at the end.
    """
    precision_N = blocks.precision(x_ND)
    likelihood, shift_D = -np.inf, np.zeros(x_ND.shape[1])
    for _ in range(_MOST_ITERATIONS):
        mean_ND, shift_D = _regression(x_ND, blocks, posterior_N)
        silent_N = -0.5 * precision_N * np.square(x_ND - mean_ND).sum(axis=1)
        vocalised_N = -0.5 * precision_N * np.square(x_ND - mean_ND - shift_D).sum(axis=1)
        posterior_N = _logistic(vocalised_N - silent_N)
        before, likelihood = likelihood, float(np.logaddexp(silent_N, vocalised_N).sum())
        if likelihood - before < _TOLERANCE:
            break
    length = float(np.linalg.norm(shift_D))
    along_N = x_ND @ (shift_D / max(length, 1e-12))
    for members_K in blocks.session_NK.T.astype(bool):
        posterior_N[members_K] = _session_posterior(along_N[members_K], length, precision_N[members_K])
    return posterior_N, likelihood


def _gain(x_ND: Array, blocks: _Blocks) -> float:
    """By how many nats two components fit better than one, the session's mean, with noise of the same size."""
    one = len(x_ND) * np.log(2) - 0.5 * float(np.sum(blocks.precision(x_ND)[:, None] * x_ND**2))
    _, two = _mixture(x_ND, blocks, _start(x_ND, 0, 0))
    return two - float(one)


def _session_posterior(along_N: Array, length: float, precision_N: Array) -> Array:
    """P(vocalised) of one session's blocks whatever its mean is: a numerical integral over all means, alike before.

    Only positions along the shift matter. A session whose blocks are all alike gets one half: all silent about one
    mean is as likely as all vocalised about another.
    """
    reach = length + 4 / np.sqrt(precision_N.min())
    mean_G1 = np.linspace(along_N.min() - reach, along_N.max() + reach, _GRID)[:, None]
    silent_GN = -0.5 * precision_N * np.square(along_N - mean_G1)
    vocalised_GN = -0.5 * precision_N * np.square(along_N - mean_G1 - length)
    log_weight_G = np.logaddexp(silent_GN, vocalised_GN).sum(axis=1)
    weight_G = np.exp(log_weight_G - log_weight_G.max())
    posterior_N: Array = weight_G @ _logistic(vocalised_GN - silent_GN) / weight_G.sum()
    return posterior_N


def _logistic(log_odds: Array) -> Array:
    logistic: Array = 1 / (1 + np.exp(-np.clip(log_odds, -_MOST_LOG_ODDS, _MOST_LOG_ODDS)))
    return logistic


def _regression(x_ND: Array, blocks: _Blocks, posterior_N: Array) -> tuple[Array, Array]:
    """Session means [N, D] and common shift [D] that minimise the expected weighted squared distance."""
    sessions_NK, soft_N = blocks.session_NK, blocks.weight_N * posterior_N
    square = np.block(
        [
            [sessions_NK.T @ (blocks.weight_N[:, None] * sessions_NK), (sessions_NK.T @ soft_N)[:, None]],
            [(soft_N @ sessions_NK)[None], np.array([[soft_N.sum()]])],
        ]
    )
    cross = np.vstack([sessions_NK.T @ (blocks.weight_N[:, None] * x_ND), soft_N @ x_ND])
    # All posteriors of every session at 0 or all at 1 leave the shift undetermined; the ridge then makes it 0.
    solved = np.linalg.solve(square + 1e-6 * np.eye(len(square)), cross)
    return sessions_NK @ solved[:-1], solved[-1]
