"""Pseudo-labels of the speaking mode: the statistics, the posterior against enumeration, and simulated data."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from sottovoce.core.errors import DataError
from sottovoce.core.trial import Trial
from sottovoce.data.mode_estimation import (
    BlockStatistics,
    _session_posterior,
    block_means,
    one_mode_p_value,
    pseudo_modes,
    refreshed_modes,
)
from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15
from sottovoce.data.speaking_modes import BlockModes, stated_modes
from sottovoce.data.t15 import open_t15
from sottovoce.data.t15_structure import read_t15


def _trial(session: str, block: int | None) -> Trial:
    return Trial(f"{session}/{block}", "train", session, 200, None, None, Path("x"), block=block)


def _statistics(
    depths: dict[tuple[str, int], float], trials: int = 4, channels: int = 12, seed: int = 0
) -> BlockStatistics:
    """Noise and a slow movement of the given depth, each session with gains of its own."""
    generator = np.random.default_rng(seed)
    statistics = BlockStatistics()
    slow = np.sin(np.arange(200) / 9)[:, None]
    gains = {session: generator.lognormal(0, 0.5, channels) for session, _ in depths}
    for (session, block), depth in depths.items():
        for _ in range(trials):
            features = generator.standard_normal((200, channels)) + depth * gains[session] * slow
            statistics.add(_trial(session, block), features.astype(np.float32))
    return statistics


MIXED = {("a", 1): 1.6, ("a", 2): 1.0, ("a", 3): 1.65, ("b", 1): 0.95, ("b", 2): 1.55, ("c", 1): 1.0, ("c", 2): 1.6}
TRUTH = BlockModes({block: float(depth > 1.2) for block, depth in MIXED.items()}, "ground_truth")


def test_the_log_ratio_is_that_of_the_formula() -> None:
    x = np.random.default_rng(0).standard_normal((50, 3))
    y = np.random.default_rng(1).standard_normal((30, 3))
    x[:, 2], y[:, 2] = 4.0, 4.0  # a dead channel
    statistics = BlockStatistics()
    statistics.add(_trial("a", 1), x)
    statistics.add(_trial("a", 1), y)
    statistics.add(_trial("a", 1), x[:2])  # too short to tell anything
    slow, fast = np.zeros(3), np.zeros(3)
    for signal in (x, y):
        means = np.stack([signal[t : t + 3].mean(axis=0) for t in range(len(signal) - 2)])
        slow += len(signal) * means.var(axis=0)
        fast += len(signal) * np.mean((signal[1:] - signal[:-1]) ** 2, axis=0)
    (found,) = statistics.log_ratios().values()
    np.testing.assert_allclose(found[:2], np.log(slow[:2] / fast[:2]), rtol=1e-9)
    assert np.isnan(found[2])
    assert statistics.num_trials == {("a", 1): 2}


def test_the_ratio_is_blind_to_scale_and_offset() -> None:
    x = np.random.default_rng(0).standard_normal((80, 4))
    plain, scaled = BlockStatistics(), BlockStatistics()
    plain.add(_trial("a", 1), x)
    scaled.add(_trial("a", 1), 7 * x - 3)
    np.testing.assert_allclose(plain.log_ratios()["a", 1], scaled.log_ratios()["a", 1], rtol=1e-9)


def test_clear_blocks_are_told_apart_and_named() -> None:
    found = pseudo_modes(_statistics(MIXED), seed=0)
    assert found.origin == "pseudo"
    assert found.agreement(TRUTH) == 1.0
    assert found.confidence > 0.8
    assert found.vocalised == pseudo_modes(_statistics(MIXED), seed=0).vocalised


def test_drift_between_sessions_does_not_pass_for_a_mode() -> None:
    depths = {
        ("a", 1): 0.5, ("a", 2): 0.8, ("a", 3): 0.5, ("a", 4): 0.8,
        ("b", 1): 1.6, ("b", 2): 2.1, ("b", 3): 2.1, ("b", 4): 1.6,
    }  # fmt: skip
    truth = BlockModes({block: float(depth in (0.8, 2.1)) for block, depth in depths.items()}, "ground_truth")
    assert pseudo_modes(_statistics(depths), seed=1).agreement(truth) == 1.0


def test_a_session_in_one_mode_is_left_undecided() -> None:
    depths = MIXED | {("d", block): 1.3 for block in range(1, 5)}
    found = pseudo_modes(_statistics(depths), seed=0)
    assert found.agreement(TRUTH) == 1.0
    assert all(0.3 < found.vocalised["d", block] < 0.7 for block in range(1, 5))


def test_the_posterior_of_a_session_is_that_of_every_assignment() -> None:
    """With the mean integrated out, an assignment's likelihood is that of the residuals around their own mean."""
    along, length = np.array([0.3, 1.9, 0.1, 1.2]), 1.4
    precision = np.array([2.0, 1.0, 3.0, 2.5])
    total, vocalised = 0.0, np.zeros(4)
    for modes in itertools.product((0, 1), repeat=4):
        residual = along - length * np.array(modes)
        residual -= np.average(residual, weights=precision)
        likelihood = np.exp(-0.5 * np.sum(precision * residual**2))
        total, vocalised = total + likelihood, vocalised + likelihood * np.array(modes)
    np.testing.assert_allclose(_session_posterior(along, length, precision), vocalised / total, atol=1e-6)
    np.testing.assert_allclose(_session_posterior(np.full(3, 0.7), length, precision[:3]), 0.5, atol=1e-6)


def test_few_trials_count_less() -> None:
    statistics = _statistics(MIXED)
    small = BlockStatistics()
    for block, depth in MIXED.items():
        for trial in range(1 if block == ("a", 2) else 4):
            generator = np.random.default_rng([trial, *map(ord, block[0]), block[1]])
            slow = np.sin(np.arange(200) / 9)[:, None]
            small.add(_trial(*block), generator.standard_normal((200, 12)) + depth * slow)
    whole, part = pseudo_modes(statistics, 0), pseudo_modes(small, 0)
    assert part.agreement(TRUTH) == 1.0
    assert part.vocalised["a", 2] > whole.vocalised["a", 2]  # silent, and less sure of it


def test_embeddings_of_a_model_can_settle_what_the_signal_leaves_open() -> None:
    weak = {block: 1.0 + (depth - 1.0) / 12 for block, depth in MIXED.items()}
    statistics = _statistics(weak, seed=5)
    before = pseudo_modes(statistics, seed=0)
    assert before.agreement(TRUTH) < 1.0
    generator = np.random.default_rng(0)
    trials = [_trial(*block) for block in MIXED for _ in range(3)]
    vocalised = np.array([TRUTH.vocalised[trial.session, trial.block or 0] for trial in trials])
    day = np.array([ord(trial.session) for trial in trials])
    embeddings = generator.standard_normal((len(trials), 6)) * 0.1 + 5 * day[:, None]
    embeddings[:, 0] += 2 * vocalised
    after = refreshed_modes(before, statistics, block_means(trials, embeddings))
    assert after.agreement(TRUTH) > before.agreement(TRUTH)
    assert set(after.vocalised) == set(before.vocalised)


def test_block_means() -> None:
    trials = [_trial("a", 1), _trial("a", 2), _trial("a", 1)]
    means = block_means(trials, np.array([[1.0, 2.0], [5.0, 5.0], [3.0, 4.0]], dtype=np.float32))
    assert {block: mean.tolist() for block, mean in means.items()} == {("a", 1): [2.0, 3.0], ("a", 2): [5.0, 5.0]}


@pytest.mark.slow
def test_one_mode_and_two_modes_are_told_apart() -> None:
    """Of one mode, blocks differ by chance; the p-value of such data is as often below as above one half."""
    one, two = [], []
    for seed in range(12):
        chance = np.random.default_rng(seed).normal(0, 0.08, size=(4, 6))
        depths = {(session, block): 1.2 + chance[i, block] for i, session in enumerate("abcd") for block in range(6)}
        one.append(one_mode_p_value(_statistics(depths, seed=seed), seed=0, draws=49))
        modes = {block: depth + 0.5 * (block[1] % 2) for block, depth in depths.items()}
        two.append(one_mode_p_value(_statistics(modes, seed=seed), seed=0, draws=49))
    assert max(two) <= 0.1
    assert 0.25 < np.mean(one) < 0.85
    assert sum(p <= 0.1 for p in one) <= 3
    assert min(one + two) >= 1 / 50
    statistics = _statistics(MIXED)
    assert one_mode_p_value(statistics, seed=0) == one_mode_p_value(statistics, seed=0)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 2 sessions has two blocks"):
        pseudo_modes(_statistics({("a", 1): 1.0, ("b", 1): 1.5}), seed=0)
    same = BlockStatistics()
    for block in (1, 2):
        same.add(_trial("a", block), np.random.default_rng(0).standard_normal((50, 3)))
    with pytest.raises(DataError, match="do not differ at all"):
        pseudo_modes(same, seed=0)
    with pytest.raises(DataError, match="no block number"):
        same.add(_trial("a", None), np.zeros((50, 3)))
    with pytest.raises(DataError, match="channel_mismatch: 4 channels"):
        same.add(_trial("b", 1), np.zeros((50, 4)))
    statistics = _statistics(MIXED)
    known = pseudo_modes(statistics, seed=0)
    with pytest.raises(DataError, match="block 1 of session a has no embedding"):
        refreshed_modes(known, statistics, {})
    flat = BlockModes(dict.fromkeys(MIXED, 0.5), "pseudo")
    with pytest.raises(DataError, match="nothing to start from"):
        refreshed_modes(flat, statistics, {block: np.array([block[1], 0.0]) for block in MIXED})


def _estimate(folder: Path) -> tuple[BlockModes, BlockModes]:
    """Pseudo-labels and the truth of a data set."""
    data = open_t15(read_t15(folder), ("train", "val", "test"))
    statistics = BlockStatistics()
    for index, trial in enumerate(data.trials):
        statistics.add(trial, data.signal(index))
    known = stated_modes(data.trials)
    assert known is not None
    return pseudo_modes(statistics, seed=0), known


@pytest.mark.slow
def test_simulated_data_at_the_default_noise(tmp_path: Path) -> None:
    simulate_t15(tmp_path / "d", SimulationSettings(sessions=4, trials=60, electrodes=64, seed=3))
    found, known = _estimate(tmp_path / "d")
    assert found.agreement(known) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3])
def test_simulated_data_of_one_mode_do_not_pass_for_two(seed: int, tmp_path: Path) -> None:
    settings = SimulationSettings(
        sessions=4, trials=96, val_trials=0, test_trials=0, block_trials=8, electrodes=64, snr=2.0, seed=seed
    )
    simulate_t15(tmp_path / "d", settings)
    data = open_t15(read_t15(tmp_path / "d"), ("train",))
    of = {mode: BlockStatistics() for mode in ("both", "silent", "vocalised")}
    for index, trial in enumerate(data.trials):
        signal = data.signal(index)
        assert trial.mode is not None
        for mode in ("both", trial.mode):
            of[mode].add(trial, signal)
    assert one_mode_p_value(of["both"], seed=0, draws=99) <= 0.05
    for mode in ("silent", "vocalised"):
        assert pseudo_modes(of[mode], seed=0).confidence > 0.7  # so confidence tells nothing
        assert one_mode_p_value(of[mode], seed=0, draws=99) > 0.1


def test_the_sample_data(shared_data: Path) -> None:
    found, known = _estimate(shared_data / "t15_sample")
    assert found.agreement(known) >= 0.85
