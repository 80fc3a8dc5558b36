"""Settings, repeatability and statistics of simulated recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.random import numpy_generator
from sottovoce.data.simulate.articulation import ARTICULATORS, NUM_LATENTS, articulate
from sottovoce.data.simulate.difficulty import ridge_accuracy
from sottovoce.data.simulate.lexicon import pronounce
from sottovoce.data.simulate.neurons import BlockNormaliser, population_of
from sottovoce.data.simulate.plan import OFFICIAL_DATES, TRAIN_ONLY, plan_session
from sottovoce.data.simulate.sentences import all_sentences
from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15


def _bytes(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def _features(directory: Path, split: str = "train") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted(directory.glob(f"t15.*/data_{split}.hdf5")):
        with h5py.File(path, "r") as file:
            found |= {f"{path.parent.name}/{key}": file[key]["input_features"][()] for key in file}
    return found


def _truth(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "ground_truth.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sessions": 0}, "sessions=0: choose 1 to 45"),
        ({"sessions": 46}, "sessions=46"),
        ({"trials": -1}, "trials=-1: must be at least 1"),
        ({"trials": 10000}, "below 10,000"),
        ({"val_trials": -1}, "val_trials=-1"),
        ({"test_trials": -2}, "test_trials=-2"),
        ({"seed": -1}, "seed=-1"),
        ({"electrodes": 30}, "electrodes=30: must be a multiple of 4"),
        ({"electrodes": 0}, "electrodes=0"),
        ({"snr": -0.1}, "snr=-0.1"),
        ({"snr": float("nan")}, "snr=nan"),
        ({"drift": 3.0}, "drift=3.0"),
        ({"dead_fraction": 0.9}, "dead_fraction=0.9"),
        ({"block_trials": 0}, "block_trials=0"),
        ({"bins_per_phoneme": 2.0}, "bins_per_phoneme=2.0"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"simulation: .*{message}"):
        SimulationSettings(**changes)


def test_validation_and_test_trials_are_a_fifth_unless_given() -> None:
    assert SimulationSettings(trials=100).num_val_trials == 20
    assert SimulationSettings(trials=3).num_test_trials == 1
    assert SimulationSettings(trials=3, test_trials=0).num_test_trials == 0


def test_equal_settings_give_equal_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    settings = SimulationSettings(sessions=2, trials=3, electrodes=8, seed=4)
    for name in ("one", "two"):
        simulate_t15(tmp_path / name, settings)
    simulate_t15(tmp_path / "other", SimulationSettings(sessions=2, trials=3, electrodes=8, seed=5))
    one, two, other = (_bytes(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert set(one) == set(other)
    assert not [name for name in one if one[name] == other[name] and name.endswith(".hdf5")]


def test_a_trial_depends_on_its_place_only(tmp_path: Path) -> None:
    simulate_t15(tmp_path / "few", SimulationSettings(sessions=1, trials=4, electrodes=8))
    simulate_t15(tmp_path / "many", SimulationSettings(sessions=2, trials=6, electrodes=8))
    few, many = _features(tmp_path / "few"), _features(tmp_path / "many")
    assert len(few) == 4
    for place, features_TC in few.items():
        np.testing.assert_array_equal(features_TC, many[place])


def test_dates_and_days_without_validation_are_the_official_ones() -> None:
    assert len(OFFICIAL_DATES) == 45
    assert sorted(OFFICIAL_DATES) == OFFICIAL_DATES
    assert [OFFICIAL_DATES[i] for i in sorted(TRAIN_ONLY)] == ["2023.08.11", "2024.03.03", "2024.04.25", "2024.04.28"]
    settings = SimulationSettings(sessions=30, trials=2)
    assert plan_session(settings, 28).splits == ("train",)
    assert plan_session(settings, 29).splits == ("train", "val", "test")
    assert plan_session(settings, 29).name == "t15.2024.03.08"


def test_sentences_repeat_only_after_all_were_said() -> None:
    settings = SimulationSettings(sessions=2, trials=30)
    said = [t.sentence for i in range(2) for b in plan_session(settings, i).blocks for t in b.trials]
    assert len(said) == len(set(said)) == 30 + 30 + 6 + 6


def test_normaliser_uses_the_twenty_trials_before() -> None:
    generator = np.random.default_rng(0)
    raw = [generator.normal(5, 3, (40, 2)).astype(np.float32) for _ in range(25)]
    normaliser = BlockNormaliser()
    for trial_TC in raw[:-1]:
        normaliser.add(trial_TC)
    past = np.concatenate(raw[4:24]).astype(np.float64)
    expected = (raw[-1] - past.mean(axis=0)) / past.std(axis=0)
    np.testing.assert_allclose(normaliser.normalise(raw[-1]), expected, rtol=1e-4, atol=1e-5)


def test_normaliser_clips_and_leaves_constant_channels_at_zero() -> None:
    normaliser = BlockNormaliser()
    normaliser.add(np.array([[0.0, 1.0], [0.0, -1.0]], np.float32))
    scored_TC = normaliser.normalise(np.array([[0.0, 50.0], [0.0, -50.0]], np.float32))
    assert scored_TC.tolist() == [[0.0, 10.0], [0.0, -10.0]]


def test_articulation_reaches_its_targets_and_knows_silence() -> None:
    symbols = pronounce("Emma.")
    lips, effort = ARTICULATORS.index("lips"), ARTICULATORS.index("effort")
    closed, open_, start = [], [], []
    for n in range(40):
        utterance = articulate(symbols, "vocalised", 10.0, np.random.default_rng(n))
        assert utterance.latents_TD.shape == (utterance.num_bins, NUM_LATENTS)
        middle = {s: utterance.latents_TD[(a + b) // 2] for s, a, b in utterance.alignment}
        closed.append(middle["M"][lips])
        open_.append(middle["EH"][lips])
        start.append(utterance.latents_TD[0, effort])
    assert np.mean(closed) == pytest.approx(-0.9, abs=0.15)
    assert np.mean(open_) == pytest.approx(-0.2, abs=0.2)
    assert np.abs(start).max() < 0.01


def test_silent_speech_is_slower_and_unvoiced() -> None:
    symbols, voice = pronounce(all_sentences()[0]), ARTICULATORS.index("voice")
    said = {
        mode: [articulate(symbols, mode, 7.0, numpy_generator(n, "simulation")) for n in range(60)]
        for mode in ("silent", "vocalised")
    }
    speech = {m: np.mean([u.alignment[-1][1] - u.alignment[0][2] for u in us]) for m, us in said.items()}
    assert 1.02 < speech["silent"] / speech["vocalised"] < 1.10
    strength = {m: np.mean([np.abs(u.latents_TD[:, voice]).mean() for u in us]) for m, us in said.items()}
    assert strength["silent"] < 0.7 * strength["vocalised"]


def test_drift_changes_tuning_step_by_step() -> None:
    settings = SimulationSettings(electrodes=256)

    def likeness(drift: float, session: int) -> float:
        changed = SimulationSettings(electrodes=256, drift=drift)
        one, other = (population_of(changed, i).tuning_DE.ravel() for i in (0, session))
        return float(np.corrcoef(one, other)[0, 1])

    assert likeness(0.0, 5) == pytest.approx(1.0)
    kept = np.sqrt(1 - 0.35**2)
    assert likeness(1.0, 1) == pytest.approx(kept, abs=0.03)
    assert likeness(1.0, 3) == pytest.approx(kept**3, abs=0.03)
    assert np.array_equal(population_of(settings, 2).lead_E, population_of(settings, 0).lead_E)
    assert set(population_of(settings, 0).lead_E) == set(range(8))


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("medium")
    settings = SimulationSettings(sessions=2, trials=60, val_trials=20, test_trials=0, electrodes=64, snr=3.6)
    simulate_t15(directory, settings)
    return directory


def test_features_are_standardised(medium: Path) -> None:
    features_NC = np.concatenate(list(_features(medium).values()))
    live_NC = features_NC[:, features_NC.any(axis=0)]
    assert abs(float(live_NC.mean())) < 0.05
    assert float(live_NC.std()) == pytest.approx(1.0, abs=0.1)
    assert np.abs(live_NC.mean(axis=0)).max() < 0.5


def test_length_is_that_of_the_sample_data(medium: Path) -> None:
    lengths = [len(features_TC) for features_TC in _features(medium).values()]
    assert 270 < np.mean(lengths) < 330


def test_speaking_mode_shows_but_not_in_every_trial(medium: Path) -> None:
    """A linear read-out of each channel's spread over a trial finds the mode more often than chance, not always."""
    truth = [record for record in _truth(medium) if record["split"] != "test"]
    features = _features(medium) | {f"val/{k}": v for k, v in _features(medium, "val").items()}
    spread, silent, held = [], [], []
    for record in truth:
        prefix = "val/" if record["split"] == "val" else ""
        signal_TC = features[f"{prefix}{record['session']}/{record['trial']}"]
        total_TC = np.cumsum(signal_TC, axis=0)
        spread.append((total_TC[7:] - total_TC[:-7]).std(axis=0) / 7)
        silent.append(1.0 if record["mode"] == "silent" else -1.0)
        held.append(record["session"] != truth[0]["session"])
    x, y, test = np.array(spread), np.array(silent), np.array(held)
    x = (x - x[~test].mean(axis=0)) / (x[~test].std(axis=0) + 1e-6)
    weights = np.linalg.solve(x[~test].T @ x[~test] + 20 * np.eye(x.shape[1]), x[~test].T @ y[~test])
    assert 0.55 < np.mean(np.sign(x[test] @ weights) == y[test]) < 0.97


def test_ridge_needs_tuning(tmp_path: Path, medium: Path) -> None:
    simulate_t15(tmp_path, SimulationSettings(sessions=1, trials=20, electrodes=64, snr=0.0))
    deaf = ridge_accuracy(tmp_path)
    assert list(deaf.same_session) == ["t15.2023.08.11"]
    assert deaf.pooled < 1.5 * deaf.chance
    heard = ridge_accuracy(medium)
    assert list(heard.from_first) == list(heard.same_session) == ["t15.2023.08.13"]
    assert heard.pooled > 3 * heard.chance
    assert 0.05 < heard.chance < 0.12


def test_ridge_asks_for_ground_truth_and_validation(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        ridge_accuracy(tmp_path)
    simulate_t15(tmp_path, SimulationSettings(sessions=1, trials=2, val_trials=0, electrodes=4))
    with pytest.raises(DataError, match="no session has validation trials"):
        ridge_accuracy(tmp_path)


@pytest.mark.slow
def test_default_difficulty_is_that_of_the_sample_data(tmp_path: Path) -> None:
    """Same day about 0.5 to 0.6; a decoder of the first day loses from day to day."""
    simulate_t15(tmp_path, SimulationSettings(seed=1))
    measured = ridge_accuracy(tmp_path)
    assert all(0.48 < accuracy <= 0.60 for accuracy in measured.same_session.values())
    assert 0.52 < np.mean(list(measured.same_session.values())) <= 0.60
    lost = [measured.same_session[day] - accuracy for day, accuracy in measured.from_first.items()]
    assert all(loss > 0.02 for loss in lost)
