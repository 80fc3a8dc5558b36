from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.errors import DataError
from sottovoce.core.splits import SPLITS
from sottovoce.core.symbols import PHONEMES
from sottovoce.data.t15 import T15Trials, open_t15
from sottovoce.data.t15_structure import find_sessions, read_t15
from tests.data.builders import HELLO, T15Trial, noise, write_session, write_sound_folder, write_t15_file


def open_one(root: Path, trial: T15Trial) -> T15Trials:
    write_session(root, "t15.2023.08.13", {"train": [trial]})
    return open_t15(read_t15(root), ("train",))


def test_reads_every_field(tmp_path: Path) -> None:
    root = write_sound_folder(tmp_path)
    data = open_t15(read_t15(root), SPLITS)
    assert data.sessions == ("t15.2023.08.13", "t15.2023.08.18")
    assert [t.trial_id for t in data.trials[:6]] == [
        f"t15.2023.08.13/{split}/trial_000{i}" for split in SPLITS for i in (0, 1)
    ]
    trial = data.trials[3]
    assert (trial.split, trial.session, trial.num_steps, trial.key) == ("val", "t15.2023.08.13", 80, "trial_0001")
    assert (trial.labels, trial.text, trial.block, trial.number) == (HELLO, "e", 2, 1)
    assert (trial.corpus, trial.mode) == ("", "")
    np.testing.assert_array_equal(data.signal(3), noise(seed=3))
    assert (data.trials[4].labels, data.trials[4].text) == (None, None)
    assert data.num_channels == 512 and data.skipped == ()


def test_label_is_cut_to_seq_len_not_to_the_array(tmp_path: Path) -> None:
    data = open_one(tmp_path, T15Trial())
    assert data.trials[0].labels == HELLO
    with h5py.File(data.trials[0].file) as file:
        assert len(file["trial_0000/seq_class_ids"]) == 500


def test_max_sessions_takes_the_first_in_chronological_order(tmp_path: Path) -> None:
    for session in ("t15.2024.01.01", "t15.2023.12.31"):
        write_session(tmp_path, session, {"train": [T15Trial()]})
    assert open_t15(read_t15(tmp_path, max_sessions=1), ("train",)).sessions == ("t15.2023.12.31",)


def test_a_session_without_the_split_keeps_its_place(tmp_path: Path) -> None:
    write_session(tmp_path, "t15.2023.08.11", {"train": [T15Trial()]})
    write_session(tmp_path, "t15.2023.08.13", {"train": [T15Trial()], "val": [T15Trial(block=2)]})
    data = open_t15(read_t15(tmp_path), ("val",))
    assert data.sessions == ("t15.2023.08.11", "t15.2023.08.13")
    assert [t.session for t in data.trials] == ["t15.2023.08.13"]


def test_root_may_be_one_level_above_or_a_session(tmp_path: Path) -> None:
    session = write_session(tmp_path / "hdf5_data_final", "t15.2023.08.13", {"train": [T15Trial()]})
    assert find_sessions(tmp_path) == find_sessions(tmp_path / "hdf5_data_final") == find_sessions(session) == [session]
    write_session(tmp_path / "other_copy", "t15.2023.08.13", {"train": [T15Trial()]})
    assert find_sessions(tmp_path) == []
    with pytest.raises(DataError, match=r"not_this_layout: .* holds no folder t15\.YYYY\.MM\.DD"):
        open_t15(read_t15(tmp_path), ("train",))


def test_groups_are_read_in_numeric_order(tmp_path: Path) -> None:
    path = tmp_path / "t15.2023.08.13" / "data_train.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        for number in (10000, 9999, 2):
            T15Trial().write(file.create_group(f"trial_{number:04d}"), "t15.2023.08.13", number)
    assert [t.number for t in open_t15(read_t15(tmp_path), ("train",)).trials] == [2, 9999, 10000]


@pytest.mark.parametrize("dtype", ["float16", "float64", "int16", ">f4"])
@pytest.mark.parametrize("options", [{}, {"chunks": (16, 64), "compression": "gzip"}])
def test_other_number_types_and_storage_become_contiguous_float32(
    tmp_path: Path, dtype: str, options: dict[str, object]
) -> None:
    stored = (10 * noise(40, 128)).astype(dtype)
    data = open_one(tmp_path, T15Trial(stored, options=options))
    signal = data.signal(0)
    assert signal.dtype == np.float32 and signal.flags.c_contiguous
    np.testing.assert_array_equal(signal, stored.astype(np.float32))


def test_rows_beyond_n_time_steps_are_not_read(tmp_path: Path) -> None:
    data = open_one(tmp_path, T15Trial(noise(80), stored={"n_time_steps": 60}))
    assert data.trials[0].num_steps == 60
    np.testing.assert_array_equal(data.signal(0), noise(80)[:60])


def test_strings_may_be_bytes(tmp_path: Path) -> None:
    assert (
        open_one(tmp_path, T15Trial(stored={"sentence_label": np.bytes_(b"Hi there.")})).trials[0].text == "Hi there."
    )


def test_test_trials_may_state_labels(tmp_path: Path) -> None:
    write_session(tmp_path, "t15.2023.08.13", {"test": [T15Trial(), T15Trial(labelled=False)]})
    assert [t.labels for t in open_t15(read_t15(tmp_path), ("test",)).trials] == [HELLO, None]


def test_variant_with_spikes(tmp_path: Path) -> None:
    path = tmp_path / "t15.2023.08.13" / "data_train.hdf5"
    path.parent.mkdir()
    spikes = np.random.default_rng(0).poisson(1.0, (256, 90)).astype(np.int16)
    with h5py.File(path, "w") as file:
        group = file.create_group("trial_0000")
        group["spikes"] = spikes
        group["seq_class_ids"] = np.array(HELLO, dtype=np.int32)
        group["text"] = b"HELLO"
        group["session_id"], group["block_id"], group["trial_id"] = 0, 4, 7
    data = open_t15(read_t15(tmp_path), ("train",))
    trial = data.trials[0]
    assert (trial.num_steps, trial.labels, trial.text, trial.block, trial.number) == (90, HELLO, "HELLO", 4, 7)
    signal = data.signal(0)
    assert signal.flags.c_contiguous
    np.testing.assert_array_equal(signal, spikes.T.astype(np.float32))


def test_corpus_and_mode_come_from_the_files_beside_the_sessions(tmp_path: Path) -> None:
    root = write_sound_folder(tmp_path)
    (root / "t15_copyTaskData_description.csv").write_text(
        "Date,Post-implant day,Block number,Number of sentences,Corpus,Split\n2023-08-13,1,1,50,Switchboard,Train\n"
    )
    records = [
        {"session": "t15.2023.08.13", "split": "train", "trial": "trial_0001", "mode": "silent", "block_num": 1},
        {"session": "t15.2023.08.13", "split": "val", "trial": 0, "mode": "vocalised", "block": 2},
    ]
    (root / "ground_truth.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    trials = open_t15(read_t15(root, max_sessions=1), ("train", "val")).trials
    assert [t.corpus for t in trials] == ["Switchboard", "Switchboard", "unknown", "unknown"]
    assert [t.mode for t in trials] == ["", "silent", "vocalised", ""]


def test_unusable_ground_truth_names_its_line(tmp_path: Path) -> None:
    root = write_sound_folder(tmp_path)
    (root / "ground_truth.jsonl").write_text('{"session": "s", "split": "val", "trial": 0, "mode": "whispered"}\n')
    with pytest.raises(DataError, match="line 1: mode 'whispered' is neither silent nor vocalised"):
        open_t15(read_t15(root), ("train",))


BAD = T15Trial(stored={"seq_len": 640})


def test_first_error_stops_with_file_trial_and_remedy(tmp_path: Path) -> None:
    write_session(tmp_path, "t15.2023.08.13", {"train": [T15Trial(), BAD]})
    with pytest.raises(DataError) as caught:
        open_t15(read_t15(tmp_path), ("train",))
    file = tmp_path / "t15.2023.08.13" / "data_train.hdf5"
    assert str(caught.value) == (
        f"{file}:trial_0001: label_length_wrong: seq_len 640 exceeds the label array of 500 (non-zero labels: 5); "
        "repair the file, or leave the trial out (data.on_fault=skip)"
    )


def test_skip_leaves_out_exactly_the_unusable_and_says_so(tmp_path: Path) -> None:
    session = write_session(tmp_path, "t15.2023.08.13", {"train": [T15Trial(), BAD, T15Trial(noise(seed=1))]})
    write_t15_file(session / "data_val.hdf5", [T15Trial()])
    whole = (session / "data_val.hdf5").read_bytes()
    (session / "data_val.hdf5").write_bytes(whole[: len(whole) // 2])
    data = open_t15(read_t15(tmp_path), ("train", "val"), on_fault="skip")
    assert [t.key for t in data.trials] == ["trial_0000", "trial_0002"]
    np.testing.assert_array_equal(data.signal(1), noise(seed=1))
    assert [(Path(f.file).name, f.trial, f.fault) for f in data.skipped] == [
        ("data_val.hdf5", "", "unreadable_file"),
        ("data_train.hdf5", "trial_0001", "label_length_wrong"),
    ]


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    write_session(tmp_path, "t15.2023.08.13", {"train": [BAD]})
    with pytest.raises(DataError, match=r"no usable trial of train in 1 sessions \(1 errors\)"):
        open_t15(read_t15(tmp_path), ("train",), on_fault="skip")
    with pytest.raises(DataError, match="no usable trial of val"):
        open_t15(read_t15(tmp_path), ("val",))


def test_non_finite_features_are_an_error_when_read(tmp_path: Path) -> None:
    features = noise()
    features[10, 37] = np.nan
    features[11, 3] = np.inf
    data = open_one(tmp_path, T15Trial(features))
    with pytest.raises(DataError, match=r"trial_0000: non_finite_features: 2 non-finite values, .* 10, feature 37"):
        data.signal(0)


def test_float64_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    features = noise().astype(np.float64)
    features[0, 1] = 1e300
    with pytest.raises(DataError, match="1 non-finite values, the first at time step 0, feature 1"):
        open_one(tmp_path, T15Trial(features)).signal(0)


def test_a_file_that_changes_under_a_run_is_an_error(tmp_path: Path) -> None:
    data = open_one(tmp_path, T15Trial())
    write_t15_file(data.trials[0].file, [T15Trial(noise(30))])
    with pytest.raises(DataError, match=r"features are \(30, 512\), but were \(80, 512\) when the data set was opened"):
        data.signal(0)
    shutil.rmtree(data.trials[0].file.parent)
    with pytest.raises(DataError, match="unreadable_file"):
        open_copy(data).signal(0)


def open_copy(data: T15Trials) -> T15Trials:
    copy = pickle.loads(pickle.dumps(data))
    assert isinstance(copy, T15Trials)
    return copy


def test_a_pickled_set_carries_no_file_and_reads_the_same(tmp_path: Path) -> None:
    data = open_t15(read_t15(write_sound_folder(tmp_path)), ("train",))
    data.signal(0)
    copy = open_copy(data)
    assert copy.trials == data.trials
    np.testing.assert_array_equal(copy.signal(2), data.signal(2))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_other_processes_read_the_same(tmp_path: Path, method: str) -> None:
    data = open_t15(read_t15(write_sound_folder(tmp_path)), ("train",))
    expected = [float(data.signal(i).sum()) for i in range(4)]
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert list(pool.map(_Sum(data), range(4))) == expected


class _Sum:
    def __init__(self, data: T15Trials) -> None:
        self.data = data

    def __call__(self, index: int) -> float:
        return float(self.data.signal(index).sum())


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(40, 60), min_size=1, max_size=4),
    channels=st.integers(1, 20),
    labels=st.lists(st.lists(st.integers(1, 40), max_size=20), min_size=4, max_size=4),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
def test_what_was_written_is_read(lengths: list[int], channels: int, labels: list[list[int]], text: str) -> None:
    written = [T15Trial(noise(n, channels, seed=i), labels=tuple(labels[i]), text=text) for i, n in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        write_session(Path(folder), "t15.2023.08.13", {"train": written})
        data = open_t15(read_t15(Path(folder)), ("train",))
        assert [t.labels for t in data.trials] == [t.labels for t in written]
        assert [t.num_steps for t in data.trials] == lengths
        assert {t.text for t in data.trials} == {text}
        for i, trial in enumerate(written):
            np.testing.assert_array_equal(data.signal(i), trial.features)


def test_sample(shared_data: Path) -> None:
    data = open_t15(read_t15(shared_data / "t15_sample"), SPLITS)
    assert len(data.trials) == 42
    truth = [json.loads(line) for line in (shared_data / "t15_sample" / "ground_truth.jsonl").read_text().splitlines()]
    by_id = {f"{r['session']}/{r['split']}/{r['trial']}": r for r in truth}
    for i, trial in enumerate(data.trials):
        record = by_id[trial.trial_id]
        if trial.split != "test":
            assert trial.labels == tuple(record["seq_class_ids"]) and trial.text == record["sentence"]
            assert PHONEMES.decode(trial.labels)[-1] == "|"
        assert (trial.mode, trial.corpus, trial.block) == (record["mode"], "Simulated", record["block_num"])
        assert data.signal(i).shape == (record["align"][-1][0] + record["align"][-1][1], 512)
