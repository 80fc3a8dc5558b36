"""A simulated T15 data set as a reader sees it that knows only the official layout."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sottovoce.core.errors import DataError
from sottovoce.core.lengths import conv_length, ctc_frames_needed
from sottovoce.core.symbols import PHONEMES
from sottovoce.data.simulate.articulation import LEAD_IN_BINS, LEAD_OUT_BINS, SILENCE
from sottovoce.data.simulate.lexicon import pronounce
from sottovoce.data.simulate.sentences import sentences_of
from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import SimulationSummary, simulate_t15

SETTINGS = SimulationSettings(
    sessions=3, trials=12, val_trials=4, test_trials=3, seed=3, electrodes=16, block_trials=5, dead_fraction=0.3
)
Simulated = tuple[Path, SimulationSummary, list[tuple[int, int]]]
"""The folder, what was reported at the end, and the progress on the way."""
Trials = dict[tuple[str, str, str], tuple[dict[str, Any], dict[str, Any]]]
"""(session, split, key) to (attributes, data sets) of every trial."""
SESSIONS = ("t15.2023.08.11", "t15.2023.08.13", "t15.2023.08.18")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    directory = tmp_path_factory.mktemp("t15")
    calls: list[tuple[int, int]] = []
    summary = simulate_t15(directory, SETTINGS, lambda done, total: calls.append((done, total)))
    return directory, summary, calls


@pytest.fixture(scope="module")
def truth(simulated: Simulated) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (simulated[0] / "ground_truth.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trials(simulated: Simulated) -> Trials:
    found: Trials = {}
    for path in sorted(simulated[0].glob("t15.*/data_*.hdf5")):
        with h5py.File(path, "r") as file:
            for key in file:
                group = file[key]
                place = (path.parent.name, path.stem.removeprefix("data_"), key)
                found[place] = (dict(group.attrs), {name: group[name][()] for name in group})
    return found


def test_files_and_groups(simulated: Simulated, trials: Trials) -> None:
    directory, summary, _ = simulated
    assert sorted(path.name for path in directory.iterdir()) == [
        "ground_truth.jsonl",
        "sim_config.json",
        *SESSIONS,
        "t15_copyTaskData_description.csv",
    ]
    counts = defaultdict(list)
    for session, split, key in trials:
        counts[session, split].append(key)
    expected = {("t15.2023.08.11", "train"): 12}  # the first official day has training trials only
    for session in SESSIONS[1:]:
        expected |= {(session, "train"): 12, (session, "val"): 4, (session, "test"): 3}
    assert counts == {place: [f"trial_{i:04d}" for i in range(n)] for place, n in expected.items()}
    assert summary.trials == len(trials) == 50
    assert summary.trials_by_split == {"train": 36, "val": 8, "test": 6}
    assert summary.sessions == SESSIONS


def test_a_labelled_trial_has_the_official_items(trials: Trials) -> None:
    for (session, split, _), (attributes, data) in trials.items():
        if split == "test":
            continue
        assert set(data) == {"input_features", "seq_class_ids", "transcription"}
        assert set(attributes) == {
            "n_time_steps", "seq_len", "sentence_label", "session", "block_num", "trial_num",
        }  # fmt: skip
        assert data["seq_class_ids"].shape == data["transcription"].shape == (500,)
        assert data["seq_class_ids"].dtype == data["transcription"].dtype == np.int32
        sentence = attributes["sentence_label"]
        assert isinstance(sentence, str)
        assert attributes["session"] == session
        labels = data["seq_class_ids"][: attributes["seq_len"]]
        assert tuple(labels) == PHONEMES.encode(pronounce(sentence))
        assert labels[-1] == PHONEMES.boundary
        assert not data["seq_class_ids"][attributes["seq_len"] :].any()
        assert bytes(data["transcription"].astype(np.uint8)).rstrip(b"\0").decode("ascii") == sentence


def test_a_test_trial_has_no_label(trials: Trials) -> None:
    for (_, split, _), (attributes, data) in trials.items():
        if split == "test":
            assert set(data) == {"input_features"}
            assert set(attributes) == {"n_time_steps", "session", "block_num", "trial_num"}


def test_features_are_whole_finite_and_clipped(trials: Trials) -> None:
    for attributes, data in trials.values():
        features_TC = data["input_features"]
        assert features_TC.dtype == np.float32
        assert features_TC.shape == (attributes["n_time_steps"], 32)
        assert np.isfinite(features_TC).all()
        assert np.abs(features_TC).max() <= 10


def test_every_target_has_a_ctc_path(trials: Trials) -> None:
    for attributes, data in trials.values():
        if "seq_len" in attributes:
            labels = data["seq_class_ids"][: attributes["seq_len"]].tolist()
            assert conv_length(int(attributes["n_time_steps"]), 14, 4) >= ctc_frames_needed(labels)


def test_ground_truth_names_every_trial_once_in_file_order(truth: list[dict[str, Any]], trials: Trials) -> None:
    places = [(record["session"], record["split"], record["trial"]) for record in truth]
    assert sorted(places) == sorted(trials)
    for session in SESSIONS:
        for split in ("train", "val", "test"):
            keys = [key for s, p, key in places if (s, p) == (session, split)]
            assert keys == sorted(keys)
    for record in truth:
        attributes, _ = trials[record["session"], record["split"], record["trial"]]
        assert record["block"] == attributes["block_num"]
        assert record["trial_num"] == attributes["trial_num"]
        assert record["seed"] == 3
        assert record["mode"] in ("silent", "vocalised")
        assert PHONEMES.encode(pronounce(record["sentence"])) == tuple(record["seq_class_ids"])


def test_alignment_covers_the_trial_and_spells_its_labels(truth: list[dict[str, Any]], trials: Trials) -> None:
    for record in truth:
        attributes, _ = trials[record["session"], record["split"], record["trial"]]
        stretches = record["alignment"]
        assert stretches[0][1] == 0
        assert stretches[-1][2] == attributes["n_time_steps"]
        assert all(one[2] == other[1] for one, other in pairwise(stretches))
        assert all(end - first >= 2 for _, first, end in stretches)
        assert stretches[0][0] == stretches[-1][0] == SILENCE
        assert LEAD_IN_BINS[0] <= stretches[0][2] <= LEAD_IN_BINS[1]
        assert LEAD_OUT_BINS[0] <= stretches[-1][2] - stretches[-1][1] <= LEAD_OUT_BINS[1]
        assert PHONEMES.encode(symbol for symbol, _, _ in stretches[1:-1]) == tuple(record["seq_class_ids"])


def test_dead_channels_are_the_channels_that_are_exactly_zero(truth: list[dict[str, Any]], trials: Trials) -> None:
    dead = set()
    for record in truth:
        features_TC = trials[record["session"], record["split"], record["trial"]][1]["input_features"]
        assert record["dead_channels"] == np.flatnonzero((features_TC == 0).all(axis=0)).tolist()
        # An electrode dies with both of its features.
        assert {c % 16 for c in record["dead_channels"] if c < 16} == {
            c % 16 for c in record["dead_channels"] if c >= 16
        }
        dead |= set(record["dead_channels"])
    assert dead


def test_a_block_keeps_its_mode_and_counts_its_trials(truth: list[dict[str, Any]]) -> None:
    modes, places = defaultdict(set), defaultdict(list)
    for record in truth:
        modes[record["session"], record["block"]].add(record["mode"])
        places[record["session"], record["block"]].append(record["trial_num"])
    assert all(len(mode) == 1 for mode in modes.values())
    assert all(sorted(numbers) == list(range(len(numbers))) for numbers in places.values())
    assert max(len(numbers) for numbers in places.values()) == 5
    for session in SESSIONS:
        assert {mode for (s, _), found in modes.items() if s == session for mode in found} == {"silent", "vocalised"}


def test_description_joins_on_date_and_block(simulated: Simulated, truth: list[dict[str, Any]]) -> None:
    with (simulated[0] / "t15_copyTaskData_description.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = {(row["Date"], int(row["Block number"])): row for row in rows}
    counted = defaultdict(list)
    for record in truth:
        counted[record["session"][4:].replace(".", "-"), record["block"]].append(record["split"])
    assert set(table) == set(counted)
    for key, splits in counted.items():
        assert int(table[key]["Number of sentences"]) == len(splits)
        assert table[key]["Split"] == ("Train" if splits[0] == "train" else "Val/Test")
    assert table["2023-08-11", 1]["Post-implant day"] == "25"
    assert table["2023-08-11", 1]["Corpus"] == "Simulated"


def test_no_sentence_is_in_two_splits_or_twice_in_one(truth: list[dict[str, Any]]) -> None:
    said = defaultdict(list)
    for record in truth:
        said[record["split"]].append(record["sentence"])
    for split, sentences in said.items():
        assert set(sentences) <= set(sentences_of(split))
        assert len(set(sentences)) == len(sentences)


def test_progress_and_settings_are_reported(simulated: Simulated) -> None:
    directory, _, calls = simulated
    assert calls == [(n, 50) for n in range(1, 51)]
    config = json.loads((directory / "sim_config.json").read_text())
    assert config["layout"] == "t15"
    assert config["sessions"] == list(SESSIONS)
    assert config["settings"]["electrodes"] == 16


def test_a_single_session_has_validation_trials(tmp_path: Path) -> None:
    settings = SimulationSettings(sessions=1, trials=5, electrodes=4)
    simulate_t15(tmp_path / "new" / "folder", settings)
    files = sorted(path.name for path in (tmp_path / "new/folder/t15.2023.08.11").iterdir())
    assert files == ["data_test.hdf5", "data_train.hdf5", "data_val.hdf5"]


def _small(directory: Path, overwrite: bool = False) -> SimulationSummary:
    return simulate_t15(directory, SimulationSettings(sessions=1, trials=2, electrodes=4), overwrite=overwrite)


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(DataError, match="is not empty"):
        _small(tmp_path)
    with pytest.raises(DataError, match=r"holds no sim_config\.json"):
        _small(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_removes_what_the_simulation_wrote_and_nothing_else(tmp_path: Path) -> None:
    simulate_t15(tmp_path, SimulationSettings(sessions=2, trials=2, electrodes=4))
    for extra in (tmp_path / "notes.txt", tmp_path / "t15.2023.08.13" / "notes.txt"):
        extra.write_text("mine")
        with pytest.raises(DataError, match=r"1 things that its simulation did not write \(.*notes.txt\)"):
            _small(tmp_path, overwrite=True)
        assert (tmp_path / "t15.2023.08.13" / "data_val.hdf5").exists()
        extra.unlink()
    foreign = tmp_path / "t15.2024.01.01"  # a session folder that the simulation does not list
    foreign.mkdir()
    with pytest.raises(DataError, match=r"t15\.2024\.01\.01"):
        _small(tmp_path, overwrite=True)
    foreign.rmdir()
    _small(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("t15.*.*")) == ["t15.2023.08.11"]


def test_an_interrupted_simulation_does_not_look_complete_and_can_be_replaced(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    settings = SimulationSettings(sessions=2, trials=3, electrodes=4)
    with pytest.raises(KeyboardInterrupt):
        simulate_t15(tmp_path, settings, stop)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert "t15.2023.08.11/data_train.hdf5" in names  # the first session was complete
    assert "t15.2023.08.13/data_train.hdf5" not in names
    assert "ground_truth.jsonl" not in names
    assert "sim_config.json" not in names
    assert "simulation_unfinished.json" in names
    simulate_t15(tmp_path, settings, overwrite=True)
    assert (tmp_path / "ground_truth.jsonl").exists()
    assert not (tmp_path / "simulation_unfinished.json").exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        _small(tmp_path / "file")
