from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import SPLITS
from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.data.checks import check_path, fatal_faults, unusable_trials
from sottovoce.data.config import DataConfig
from sottovoce.data.purpose import Patching, Purpose
from sottovoce.data.recordings import find_recordings, open_recordings
from sottovoce.data.t15 import open_t15
from sottovoce.data.t15_structure import read_t15
from sottovoce.features.config import LogMelConfig
from tests.data.builders import (
    HELLO,
    T15Trial,
    noise,
    padded,
    tone,
    write_session,
    write_sound_folder,
    write_t15_file,
    write_wav,
)

SOUND = T15Trial(noise(seed=99), block=9)


def codes(faults: Iterable[Fault]) -> list[tuple[str, str, str]]:
    return [(f.fault, f.trial, f.severity) for f in faults]


def check_trial(tmp_path: Path, trial: T15Trial, **options: Any) -> tuple[Fault, ...]:
    """Faults of a file with a sound trial and `trial` as trial_0001."""
    return check_path(write_t15_file(tmp_path / "file.hdf5", [SOUND, trial]), **options).faults


def with_value(value: float, step: int = 10, feature: int = 37) -> np.ndarray[Any, np.dtype[np.float32]]:
    features = noise()
    features[step, feature] = value
    return features


def test_a_sound_file_and_a_sound_folder_give_no_finding(tmp_path: Path) -> None:
    assert check_trial(tmp_path, T15Trial()) == ()
    report = check_path(write_sound_folder(tmp_path / "set"))
    assert (report.layout, report.trials, report.faults) == ("t15", 12, ())


@pytest.mark.parametrize(
    ("trial", "code", "severity", "facts"),
    [
        (T15Trial(stored={"input_features": None}), "missing_features", "error", ["seq_class_ids", "n_time_steps"]),
        (T15Trial(noise()[None]), "bad_feature_rank", "error", ["(1, 80, 512)"]),
        (T15Trial(noise(80, 256)), "channel_mismatch", "error", ["256", "512", "preprocessor.num_channels=256"]),
        (T15Trial(noise(512, 90), stored={"n_time_steps": 90}), "features_transposed", "error", ["(512, 90)", "512"]),
        (T15Trial(with_value(np.nan)), "non_finite_features", "error", ["1 non-finite", "time step 10, feature 37"]),
        (T15Trial(with_value(-np.inf)), "non_finite_features", "error", ["1 non-finite", "time step 10, feature 37"]),
        (T15Trial(stored={"n_time_steps": 142}), "length_mismatch", "error", ["142", "80"]),
        (T15Trial(stored={"n_time_steps": -3}), "length_mismatch", "error", ["-3", "80"]),
        (T15Trial(stored={"n_time_steps": 60}), "length_mismatch", "warning", ["60", "80"]),
        (T15Trial(stored={"n_time_steps": None}), "length_mismatch", "warning", ["missing", "80"]),
        (T15Trial(noise(0)), "empty_trial", "error", ["0 time steps with 5 labels"]),
        (T15Trial(noise(13)), "too_short_for_model", "error", ["13", "14"]),
        (T15Trial(noise() + 2000), "scale_outlier", "warning", ["2000"]),
        (T15Trial(stored={"seq_class_ids": None}), "label_missing", "error", ["seq_class_ids is missing", "seq_len"]),
        (T15Trial(stored={"transcription": None}), "label_missing", "error", ["transcription is missing"]),
        (T15Trial(stored={"sentence_label": None}), "label_missing", "error", ["sentence_label is missing"]),
        (T15Trial(labelled=False), "label_missing", "error", ["transcription and sentence_label are missing outside"]),
        (
            T15Trial(stored={"seq_len": None, "seq_class_ids": padded(HELLO, 5)}),
            "label_length_missing",
            "error",
            ["seq_len is missing", "5 ids"],
        ),
        (T15Trial(stored={"seq_len": None}), "label_missing", "error", ["seq_len is missing"]),
        (
            T15Trial(labels=(16, 3, 0, 25, 40)),
            "label_padding_inside",
            "error",
            ["blank id 0 at position 2", "first 5 labels"],
        ),
        (T15Trial(stored={"seq_len": 640}), "label_length_wrong", "error", ["640", "500", "non-zero labels: 5"]),
        (T15Trial(stored={"seq_len": 3}), "label_length_wrong", "error", ["seq_len 3", "2 non-zero", "position 4"]),
        (T15Trial(stored={"seq_len": -1}), "label_length_wrong", "error", ["-1", "500"]),
        (T15Trial(labels=(16, 3, 21, 41, 40)), "label_out_of_range", "error", ["41 at position 3", "1 to 40"]),
        (T15Trial(labels=(16, -3, 21, 2, 40)), "label_out_of_range", "error", ["-3 at position 1", "1 to 40"]),
        (
            T15Trial(stored={"seq_class_ids": np.ones(500, np.float32)}),
            "label_out_of_range",
            "error",
            ["float32", "whole numbers"],
        ),
        (T15Trial(labels=(), text=""), "empty_label", "warning", ["seq_len is 0"]),
        (T15Trial(labels=HELLO[:-1]), "label_without_final_boundary", "warning", ["the last id is 25"]),
        (T15Trial(labels=(*HELLO, 40)), "label_without_final_boundary", "warning", ["two boundaries", "position 4"]),
        (T15Trial(text="Hello you."), "text_label_disagree", "warning", ["2 words", "1 between"]),
        (T15Trial(noise(30), labels=(21,) * 4 + (40,)), "ctc_infeasible", "warning", ["30", "5 frames", "8 (5 labels"]),
        (T15Trial(noise(7), labels=(21,) * 4 + (40,)), "ctc_infeasible", "error", ["7 time steps for 5 labels"]),
        (T15Trial(text="Café."), "non_ascii_text", "warning", ["233 at position 3"]),
        (T15Trial(stored={"sentence_label": "Café."}), "non_ascii_text", "warning", ["233 at position 3"]),
        (SOUND, "duplicate_trial", "warning", ["file.hdf5:trial_0000"]),
        (T15Trial(block=9, stored={"trial_num": 0}), "duplicate_trial_number", "error", ["block 9, trial 0"]),
        (T15Trial(stored={"transcription": np.ones(500, np.float32)}), "unreadable_file", "error", ["float32"]),
    ],
)  # fmt: skip
def test_one_fault_one_finding(tmp_path: Path, trial: T15Trial, code: str, severity: str, facts: list[str]) -> None:
    report = check_path(write_t15_file(tmp_path / "file.hdf5", [SOUND, trial]))
    assert codes(report.faults) == [(code, "trial_0001", severity)]
    assert report.trials == 2
    message = report.faults[0].message
    assert "\n" not in message
    for fact in facts:
        assert fact in message


def test_patching_needs_the_bins_it_says() -> None:
    patching = Patching(14, 4)
    for frames in range(1, 20):
        bins = patching.steps_needed(frames)
        assert patching.frames(bins) == frames and patching.frames(bins - 1) == frames - 1


def test_feasibility_follows_the_geometry(tmp_path: Path) -> None:
    trial = T15Trial(noise(30), labels=(21,) * 4 + (40,))  # 4 repeats' blanks: 8 frames
    assert codes(check_trial(tmp_path, trial, purpose=Purpose(patching=Patching(14, 2)))) == []
    assert codes(check_trial(tmp_path, trial, purpose=Purpose(patching=Patching(1, 1)))) == []
    assert codes(check_trial(tmp_path, trial, purpose=Purpose(patching=Patching(31, 4)))) == [
        ("too_short_for_model", "trial_0001", "error")
    ]


def test_channel_count_is_that_of_most_trials_or_as_configured(tmp_path: Path) -> None:
    small = [T15Trial(noise(80, 16, seed=i)) for i in range(3)]
    assert check_path(write_t15_file(tmp_path / "a.hdf5", small)).faults == ()
    mixed = write_t15_file(tmp_path / "b.hdf5", [*small, T15Trial()])
    assert codes(check_path(mixed).faults) == [("channel_mismatch", "trial_0003", "error")]
    faults = check_path(mixed, purpose=Purpose(num_channels=512)).faults
    assert [f.trial for f in faults] == ["trial_0000", "trial_0001", "trial_0002"]
    upright = [T15Trial(noise(n, 256).T.copy(), stored={"n_time_steps": n}) for n in (90, 110)]
    faults = check_path(write_t15_file(tmp_path / "c.hdf5", upright)).faults
    assert [f.fault for f in faults] == ["features_transposed", "features_transposed"]


def silenced(trial: T15Trial, *channels: slice) -> T15Trial:
    for channel in channels:
        trial.features[:, channel] = 0
    return trial


def test_single_dead_electrodes_are_normal(tmp_path: Path) -> None:
    trials = [silenced(T15Trial(noise(seed=i)), slice(3, 20), slice(259, 276)) for i in range(3)]
    assert check_path(write_t15_file(tmp_path / "a.hdf5", trials)).faults == ()


def test_dead_arrays_and_many_dead_channels(tmp_path: Path) -> None:
    trials = [silenced(T15Trial(noise(seed=i)), slice(448, 512)) for i in range(2)]
    faults = check_path(write_t15_file(tmp_path / "a.hdf5", trials)).faults
    assert codes(faults) == [("dead_channels", "all", "warning")]
    assert "features 448 to 511 (spike-band power of array d6v) are exactly zero in every trial" in faults[0].message
    trials = [silenced(T15Trial(noise(seed=i)), slice(10, 65)) for i in range(2)]
    faults = check_path(write_t15_file(tmp_path / "b.hdf5", trials)).faults
    assert codes(faults) == [("dead_channels", "all", "warning")]
    assert "55 of 512 features (11%) are exactly zero in every trial of the file: 10-64" in faults[0].message


def test_many_dead_channels_in_one_trial(tmp_path: Path) -> None:
    trial = T15Trial()
    trial.features[:, 100:160] = 0.25
    faults = check_trial(tmp_path, trial)
    assert codes(faults) == [("dead_channels", "trial_0001", "warning")]
    assert "60 of 512 features are constant in this trial (100-159)" in faults[0].message


def test_scale_of_a_session(tmp_path: Path) -> None:
    raw = [T15Trial(5 * noise(seed=i) + 20) for i in range(2)]
    write_session(tmp_path, "t15.2023.08.11", {"train": raw})
    faults = check_path(tmp_path).faults
    assert [(f.file, f.fault) for f in faults] == [("t15.2023.08.11", "scale_outlier")]
    assert "mean 20 and standard deviation 4.99" in faults[0].message


def test_structure_of_a_file(tmp_path: Path) -> None:
    path = write_t15_file(tmp_path / "gap.hdf5", [SOUND, T15Trial(noise(seed=1)), T15Trial()])
    with h5py.File(path, "a") as file:
        del file["trial_0001"]
        file["trial_0004"] = np.zeros(3)
    faults = check_path(path).faults
    assert codes(faults) == [("unreadable_file", "trial_0004", "error"), ("trial_gap", "", "warning")]
    assert "trial numbers 1 are missing of 0 to 2" in faults[1].message
    with h5py.File(tmp_path / "none.hdf5", "w") as file:
        file["something"] = 1
    assert codes(check_path(tmp_path / "none.hdf5").faults) == [("no_trials", "", "error")]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_truncated_files_are_unreadable_and_the_others_are_still_read(tmp_path: Path, share: float) -> None:
    good = write_t15_file(tmp_path / "b.hdf5", [T15Trial(noise(0))])
    content = write_t15_file(tmp_path / "a.hdf5", [SOUND]).read_bytes()
    (tmp_path / "a.hdf5").write_bytes(content[: int(share * len(content))])
    report = check_path(tmp_path)
    assert [(f.file, f.fault) for f in report.faults] == [("a.hdf5", "unreadable_file"), (good.name, "empty_trial")]
    if share >= 0.1:
        present = int(share * len(content))
        assert f"truncated: {present} bytes present, {len(content)} expected" in report.faults[0].message


def test_damaged_chunk_is_named_by_trial(tmp_path: Path) -> None:
    options = {"chunks": (80, 512), "compression": "gzip"}
    path = write_t15_file(tmp_path / "a.hdf5", [SOUND, T15Trial(options=options)])
    with h5py.File(path) as file:
        offset = file["trial_0001/input_features"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 2000] = bytes(2000)
    path.write_bytes(content)
    faults = check_path(path).faults
    assert codes(faults) == [("unreadable_file", "trial_0001", "error")]


def test_missing_splits(tmp_path: Path) -> None:
    def trial(seed: int, **options: Any) -> T15Trial:
        return T15Trial(noise(seed=seed), text="abcdefghij"[seed], **options)

    write_session(tmp_path, "t15.2023.01.01", {"train": [trial(0)]})  # a first day without held-out blocks
    write_session(tmp_path, "t15.2023.08.11", {"train": [trial(1)]})  # official
    write_session(tmp_path, "t15.2023.08.13", {"train": [trial(2)], "val": [trial(3, block=2)]})
    write_session(tmp_path, "t15.2023.08.18", {"train": [trial(4)]})
    found = [(f.file, f.fault, f.message.split(";")[0]) for f in check_path(tmp_path).faults]
    assert found == [
        ("t15.2023.08.13", "missing_split_file", "t15.2023.08.13 has no data_test.hdf5"),
        ("t15.2023.08.18", "missing_split_file", "t15.2023.08.18 has no data_val.hdf5"),
        ("t15.2023.08.18", "missing_split_file", "t15.2023.08.18 has no data_test.hdf5"),
    ]
    assert check_path(tmp_path, max_sessions=2).faults == ()


def test_faults_of_a_folder(tmp_path: Path) -> None:
    root = write_sound_folder(tmp_path)
    first = root / "t15.2023.08.13"
    write_t15_file(
        first / "data_val.hdf5",
        [
            T15Trial(noise(seed=50), text="Leaked!", block=2, stored={"session": "t15.2023.08.18"}),
            T15Trial(noise(seed=0), text="own", block=7),
        ],
        first.name,
    )
    write_t15_file(first / "data_train.hdf5", [T15Trial(noise(seed=0), text="leaked"), T15Trial()], first.name)
    write_t15_file(first / "data_test.hdf5", [T15Trial(noise(seed=51), text="x", block=3)], first.name)
    (root / "t15_copyTaskData_description.csv").write_text(
        "Date,Block number,Corpus\n" + "".join(f"2023-08-{day},{b},Random\n" for day in (13, 18) for b in (1, 2, 3))
    )
    faults = check_path(root).faults
    assert [(f.file, f.trial, f.fault) for f in faults] == [
        ("t15.2023.08.13/data_test.hdf5", "trial_0000", "label_in_test"),
        ("t15.2023.08.13/data_train.hdf5", "trial_0001", "duplicate_trial"),
        ("t15.2023.08.13/data_val.hdf5", "trial_0001", "duplicate_trial"),
        ("t15.2023.08.13/data_val.hdf5", "trial_0000", "session_attribute_wrong"),
        ("t15.2023.08.13/data_val.hdf5", "", "unmatched_block"),
        (tmp_path.name, "", "sentence_leak"),
    ]
    assert {f.severity for f in faults} == {"warning"}
    assert "(t15.2023.08.13, block 7)" in faults[4].message
    assert "1 of 4 val sentences (25.0%)" in faults[5].message


def test_numbers_count_within_a_session_across_its_files(tmp_path: Path) -> None:
    write_session(tmp_path, "t15.2023.08.11", {"train": [SOUND], "val": [T15Trial(text="other", block=9)]})
    (fault,) = fatal_faults(check_path(tmp_path))
    assert (fault.file, fault.fault) == ("t15.2023.08.11/data_val.hdf5", "duplicate_trial_number")
    assert "t15.2023.08.11/data_train.hdf5:trial_0000 and trial_0000" in fault.message


def test_unusable_description_and_ground_truth(tmp_path: Path) -> None:
    root = write_sound_folder(tmp_path)
    (root / "t15_copyTaskData_description.csv").write_text("Date,Corpus\n")
    (root / "ground_truth.jsonl").write_text("{}\n")
    faults = check_path(root).faults
    assert [(f.file, f.fault) for f in faults] == [
        ("t15_copyTaskData_description.csv", "manifest_field"),
        ("ground_truth.jsonl", "manifest_field"),
    ]


def test_what_the_check_finds_can_be_left_out(tmp_path: Path) -> None:
    root = write_sound_folder(tmp_path)
    write_t15_file(
        root / "t15.2023.08.13" / "data_train.hdf5",
        [T15Trial(with_value(np.nan)), T15Trial(noise(seed=60), text="q")],
        "t15.2023.08.13",
    )
    bad = unusable_trials(check_path(root))
    assert {name: fault.fault for name, fault in bad.items()} == {
        "t15.2023.08.13/train/trial_0000": "non_finite_features"
    }
    assert bad.keys() < {trial.trial_id for trial in open_t15(read_t15(root), SPLITS).trials}


def test_progress_counts_every_trial(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    check_path(write_sound_folder(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 12) for i in range(1, 13)]


# Recordings


def test_sound_recordings(tmp_path: Path) -> None:
    for take in range(2):
        write_wav(tmp_path / f"1_theo_{take}.wav")
    report = check_path(tmp_path)
    assert (report.layout, report.trials, report.faults) == ("recordings", 2, ())
    for symbols, lexicon in ((LETTERS, None), (PHONEMES, {"one": ("W", "AH", "N")})):
        assert check_path(tmp_path, purpose=Purpose(symbols=symbols, lexicon=lexicon)).faults == ()


def test_faults_of_recordings(tmp_path: Path) -> None:
    write_wav(tmp_path / "loud.wav", np.clip(tone(level=1.1), -1, 1))
    write_wav(tmp_path / "silent.wav", np.zeros(4000, np.float32))
    write_wav(tmp_path / "empty.wav", np.zeros(0, np.float32))
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(60))
    write_wav(tmp_path / "short.wav", tone(0.05))
    rows = ["loud.wav,yes,", "silent.wav,no,", "empty.wav,no,", "broken.wav,no,", "absent.wav,no,"]
    rows += ["short.wav,abcdef,", "short.wav,é,0.01", "short.wav,...,0.02", "../x.wav,no,", ",no,"]
    (tmp_path / "manifest.csv").write_text("audio,text,start\n" + "".join(f"{row}\n" for row in rows))
    report = check_path(tmp_path, purpose=Purpose(symbols=LETTERS))
    assert report.trials == 8
    assert [(f.file, f.trial, f.fault, f.severity) for f in report.faults] == [
        ("manifest.csv", "row 10", "path_escapes", "error"),
        ("manifest.csv", "row 11", "manifest_field", "error"),
        ("loud.wav", "", "wav_clipped", "warning"),
        ("silent.wav", "", "wav_silent", "warning"),
        ("empty.wav", "", "wav_empty", "error"),
        ("broken.wav", "", "wav_unreadable", "error"),
        ("absent.wav", "", "wav_unreadable", "error"),
        ("short.wav", "", "ctc_infeasible", "error"),
        ("short.wav", "0.01-", "unknown_symbol", "error"),
        ("short.wav", "0.02-", "empty_label", "warning"),
    ]
    assert "5 frames of 10 ms, but CTC needs 6 (6 labels plus 0 repeats)" in report.faults[7].message


def test_rates_are_reported_once_and_only_where_the_front_end_is_known(tmp_path: Path) -> None:
    for take in range(3):
        write_wav(tmp_path / f"1_theo_{take}.wav", rate_hz=8000 if take else 16000)
    assert check_path(tmp_path).faults == ()
    (fault,) = check_path(tmp_path, purpose=Purpose(front_end=LogMelConfig())).faults
    assert (fault.file, fault.fault, fault.severity) == (tmp_path.name, "wav_sample_rate", "warning")
    assert "2 of 3 recordings have 8000 Hz, the front end 16000" in fault.message


def test_several_channels_are_reported_unless_one_was_chosen(tmp_path: Path) -> None:
    soundfile.write(str(tmp_path / "1_theo_0.wav"), np.stack([tone(), tone()], axis=1), 8000)
    write_wav(tmp_path / "1_theo_1.wav")
    for path in (tmp_path, tmp_path / "1_theo_0.wav"):
        (fault,) = check_path(path).faults
        assert (fault.file, fault.fault, fault.severity) == ("1_theo_0.wav", "wav_channels", "warning")
        assert fault.message.startswith("2 channels, one expected; only channel 0 is read")
    assert check_path(tmp_path, purpose=Purpose(audio_channel=0)).faults == ()
    assert [
        (f.file, f.fault, f.severity, f.message) for f in check_path(tmp_path, purpose=Purpose(audio_channel=1)).faults
    ] == [
        (
            "1_theo_1.wav",
            "wav_channels",
            "error",
            "1 channel, but data.audio_channel=1 counts from 0; choose at most 0",
        )
    ]
    with pytest.raises(ConfigurationError, match="audio channel -1"):
        Purpose(audio_channel=-1)


def test_geometry_counts_with_a_known_front_end(tmp_path: Path) -> None:
    write_wav(tmp_path / "3_theo_1.wav", tone(0.3, 16000), rate_hz=16000)  # 30 frames, "three": 5 letters, 1 repeat
    assert check_path(tmp_path, purpose=Purpose(symbols=LETTERS)).faults == ()
    (fault,) = check_path(tmp_path, purpose=Purpose(symbols=LETTERS, front_end=LogMelConfig())).faults
    assert (fault.fault, fault.severity) == ("ctc_infeasible", "warning")
    assert "30 frames of 10 ms give 5 with patch 14 and stride 4, but CTC needs 6 (5 labels plus 1" in fault.message


def test_leaking_event(tmp_path: Path) -> None:
    for name in "ab":
        write_wav(tmp_path / f"{name}.wav")
    (tmp_path / "manifest.csv").write_text("audio,text,split,event\na.wav,x,train,e1\nb.wav,x,val,e1\n")
    assert [(f.file, f.fault, f.severity) for f in check_path(tmp_path).faults] == [
        ("a.wav", "leak_same_event", "error")
    ]


def test_recordings_that_the_check_finds_can_be_left_out(tmp_path: Path) -> None:
    write_wav(tmp_path / "1_theo_0.wav")
    samples = tone()
    samples[5] = np.nan
    soundfile.write(str(tmp_path / "1_theo_1.wav"), samples, 8000, subtype="FLOAT")
    report = check_path(tmp_path)
    assert [(f.file, f.fault) for f in report.faults] == [("1_theo_1.wav", "wav_unreadable")]
    data = open_recordings(find_recordings(tmp_path), SPLITS, DataConfig(), 8000, 0, LETTERS, None)
    unusable = unusable_trials(report)
    assert [t.trial_id for t in data.trials if t.trial_id not in unusable] == ["1_theo_0.wav"]


def test_one_recording(tmp_path: Path) -> None:
    assert check_path(write_wav(tmp_path / "a.wav")).faults == ()
    empty = write_wav(tmp_path / "b.wav", np.zeros(0, np.float32))
    assert [(f.file, f.fault) for f in check_path(empty).faults] == [("b.wav", "wav_empty")]
    faults = check_path(tmp_path / "a.wav", purpose=Purpose(front_end=LogMelConfig())).faults
    assert [f.fault for f in faults] == ["wav_sample_rate"]


# Shared sample data


def test_broken_files(shared_data: Path) -> None:
    with (shared_data / "broken" / "expected.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected: dict[str, list[tuple[str, str, str]]] = {row["file"]: [] for row in rows}
    for row in rows:
        if row["severity"] != "none":
            expected[row["file"]].append((row["fault"], row["trial"], row["severity"]))
    for name, faults in expected.items():
        assert codes(check_path(shared_data / "broken" / name).faults) == faults
    report = check_path(shared_data / "broken")
    assert {n: codes(f for f in report.faults if f.file == n) for n in expected} == expected
    messages = " ".join(f.message for f in report.faults)
    for fact in (
        "258163 bytes present, 430272 expected",
        "3 non-finite values, the first at time step 10, feature 37",
        "features 64 to 127 (threshold crossings of array area4) are exactly zero in every trial of the file",
        "62 time steps give 13 frames with patch 14 and stride 4, but CTC needs 16 (16 labels plus 0 repeats)",
        "233 at position 7, 8217 at position 12",
        "block 4, trial 0 occurs twice in t15.2023.08.13: trial_0000 and trial_0001",
    ):
        assert fact in messages


def test_sample_data_is_sound(shared_data: Path) -> None:
    assert check_path(shared_data / "t15_sample").faults == ()
    assert check_path(shared_data / "t15_sample").trials == 42


def test_fsdd_is_sound(shared_data: Path) -> None:
    report = check_path(shared_data / "fsdd", purpose=Purpose(symbols=LETTERS))
    assert (report.trials, report.faults) == (2000, ())


def test_broken_recordings(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "uaspeech_broken" / "expected.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    audio = {path.name: path for path in (shared_data / "uaspeech_broken").rglob("*.wav")}
    names = [Path(row["file"]).name for row in rows]
    for name in names:
        (tmp_path / name).write_bytes(audio[name].read_bytes())
    (tmp_path / "manifest.csv").write_text("audio,text\n" + "".join(f"{name},word\n" for name in names))
    found = {f.file: f.fault for f in check_path(tmp_path).faults}
    code = {"empty": "wav_empty", "corrupt": "wav_unreadable"}
    damage = {name: row["fault"] for name, row in zip(names, rows, strict=True)}
    assert found == {name: code[fault] for name, fault in damage.items() if fault in code}
    assert len(found) == 2
