from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.splits import SPLITS, Split
from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.data.config import DataConfig
from sottovoce.data.manifest import read_recordings
from sottovoce.data.recordings import RecordingTrials, find_recordings, open_recordings, resampled_length
from tests.data.builders import tone, write_wav

CONFIG = DataConfig(symbols="letters")
SKIP = DataConfig(symbols="letters", on_fault="skip")


def open_letters(
    root: Path, splits: tuple[Split, ...] = SPLITS, config: DataConfig = CONFIG, rate: int = 16000
) -> RecordingTrials:
    return open_recordings(find_recordings(root), splits, config, rate, 0, LETTERS, None)


def manifest(root: Path, *rows: dict[str, object], name: str = "manifest.jsonl") -> Path:
    root.mkdir(exist_ok=True)
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def test_manifest_with_all_fields(tmp_path: Path) -> None:
    write_wav(tmp_path / "anna" / "1.wav", tone(1.0))
    write_wav(tmp_path / "anna" / "2.wav", tone(0.5))
    root = manifest(
        tmp_path,
        {"audio": "anna/1.wav", "text": "Hello", "split": "train", "start": 0.25, "end": 0.75},
        {"audio": "anna/2.wav", "text": "you", "split": "val", "speaker": "bert", "event": "e7"},
        {"audio": "anna/1.wav", "split": "test", "speaker": "bert"},
    )
    data = open_letters(root)
    assert data.sessions == ("anna", "bert")
    first, second, third = data.trials
    assert (first.trial_id, first.key, first.session, first.num_steps) == (
        "anna/1.wav#0.25-0.75",
        "0.25-0.75",
        "anna",
        8000,
    )
    assert first.labels == LETTERS.encode("hello") and first.text == "Hello"
    assert (second.trial_id, second.speaker, second.session, second.event) == ("anna/2.wav", "bert", "bert", "e7")
    assert (third.split, third.labels, third.text, third.event) == ("test", None, None, "anna/1.wav")
    signal = data.signal(0)
    assert signal.dtype == np.float32 and signal.flags.c_contiguous
    pcm = np.round(tone(1.0) * 32768) / 32768
    np.testing.assert_allclose(signal, soxr.resample(pcm[2000:6000].astype(np.float32), 8000, 16000), atol=2e-4)


@pytest.mark.parametrize(("name", "delimiter"), [("manifest.csv", ","), ("manifest.tsv", "\t")])
def test_aliases_and_take(tmp_path: Path, name: str, delimiter: str) -> None:
    write_wav(tmp_path / "r" / "0.wav")
    rows = ["file,speaker,word,take", "r/0.wav,theo,zero,5"]
    (tmp_path / name).write_text("\n".join(row.replace(",", delimiter) for row in rows))
    recordings, faults = read_recordings(tmp_path)
    assert faults == []
    (recording,) = recordings
    assert (recording.name, recording.text, recording.speaker) == ("r/0.wav", "zero", "theo")
    assert recording.event == "theo/zero/5"


def test_pairs_of_audio_and_text(tmp_path: Path) -> None:
    write_wav(tmp_path / "anna" / "a.wav")
    (tmp_path / "anna" / "a.txt").write_text("hello\n")
    write_wav(tmp_path / "anna" / "b.wav")
    recordings, faults = read_recordings(tmp_path)
    assert [(r.name, r.text, r.speaker) for r in recordings] == [("anna/a.wav", "hello", "anna")]
    assert [(f.file, f.fault, f.severity) for f in faults] == [("anna/b.wav", "label_missing", "error")]


def test_names_of_digits(tmp_path: Path) -> None:
    write_wav(tmp_path / "recordings" / "7_theo_12.wav")
    write_wav(tmp_path / "recordings" / "noise.wav")
    recordings, faults = read_recordings(tmp_path)
    assert [(r.text, r.speaker, r.event) for r in recordings] == [("seven", "theo", "theo/seven/12")]
    assert [(f.file, f.fault, f.severity) for f in faults] == [("recordings/noise.wav", "name_not_parsed", "warning")]


def test_file_names_that_are_not_utf8_are_left_out(tmp_path: Path) -> None:
    write_wav(tmp_path / "7_theo_12.wav")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/7_ren\xe9_1.wav"))
    try:
        write_wav(tmp_path / "spare.wav").rename(odd)
    except OSError:
        pytest.skip("the file system takes names in UTF-8 only")
    for need_text in (True, False):
        recordings, faults = read_recordings(tmp_path, need_text)
        assert [r.name for r in recordings] == ["7_theo_12.wav"]
        assert [(f.file, f.fault, f.severity) for f in faults] == [("7_ren\\udce9_1.wav", "name_not_parsed", "warning")]


def test_recordings_without_any_text(tmp_path: Path) -> None:
    write_wav(tmp_path / "noise.wav")
    with pytest.raises(DataError, match=r"not_this_layout: .* holds 1 recordings whose text is unknown"):
        open_letters(tmp_path)


def test_two_manifests(tmp_path: Path) -> None:
    manifest(tmp_path)
    manifest(tmp_path, name="manifest.csv")
    with pytest.raises(DataError, match=r"holds manifest\.jsonl and manifest\.csv; keep the one"):
        read_recordings(tmp_path)


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ({"text": "hello"}, "manifest_field", "field audio"),
        ({"audio": "a.wav"}, "manifest_field", "field text"),
        ({"audio": "a.wav", "text": "x", "split": "dev"}, "manifest_field", "split is 'dev'"),
        ({"audio": "a.wav", "text": "x", "start": "soon"}, "manifest_field", "start is 'soon'"),
        ({"audio": "a.wav", "text": "x", "start": 2, "end": 1}, "manifest_field", "start 2 is not before end 1"),
        ({"audio": "a.wav", "text": "x", "end": -1}, "manifest_field", "seconds from 0 on"),
        ({"audio": "../secret.wav", "text": "x"}, "path_escapes", "leads out of the folder"),
        ({"audio": "/etc/secret.wav", "text": "x"}, "path_escapes", "leads out of the folder"),
        ({"audio": "b/../../s.wav", "text": "x"}, "path_escapes", "leads out of the folder"),
        ({"audio": "a\0.wav", "text": "x"}, "manifest_field", "no file can be called"),
        ({"audio": "a\nb.wav", "text": "x"}, "manifest_field", "no file can be called"),
        ({"audio": "./sound.wav", "text": "x"}, "manifest_field", "repeats row 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, object], code: str, message: str) -> None:
    root = manifest(tmp_path, {"audio": "sound.wav", "text": "yes"}, row, {"audio": "more.wav", "text": "no"})
    recordings, faults = read_recordings(root)
    assert [r.name for r in recordings] == ["sound.wav", "more.wav"]
    assert [(f.file, f.trial, f.fault, f.severity) for f in faults] == [("manifest.jsonl", "row 2", code, "error")]
    assert message in faults[0].message
    with pytest.raises(DataError, match=rf"manifest\.jsonl:row 2: {code}: "):
        open_letters(root)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_wav(tmp_path / "outside.wav")
    manifest(root, {"audio": "inside.wav", "text": "x"})
    (root / "inside.wav").symlink_to(tmp_path / "outside.wav")
    assert [f.fault for f in read_recordings(root)[1]] == ["path_escapes"]


def test_bad_json_and_missing_column(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.wav", "text": "x"}\n{broken\n[1]\n')
    recordings, faults = read_recordings(tmp_path)
    assert len(recordings) == 1 and [f.trial for f in faults] == ["row 2", "row 3"]
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.wav", "text": "\\ud800"}\n')
    (fault,) = read_recordings(tmp_path)[1]
    assert fault.message == r"text is '\ud800': half a surrogate pair; write the character"
    (tmp_path / "manifest.jsonl").unlink()
    (tmp_path / "manifest.csv").write_text("sound,text\na.wav,x\n")
    recordings, faults = read_recordings(tmp_path)
    assert recordings == [] and faults[0].message.startswith(
        "row 1: the column audio (or file, path) is missing, found"
    )
    (tmp_path / "manifest.csv").write_bytes(b"audio,text\n\xff\xfe.wav,x\n")
    assert [f.fault for f in read_recordings(tmp_path)[1]] == ["unreadable_file"]


@pytest.mark.parametrize(
    "rows",
    [["audio, text, speaker", 'a.wav, "hello, you", anna'], ["audio ,text,speaker ", 'a.wav ,"hello, you",anna ']],
)
def test_spaces_around_commas_are_no_part_of_a_field(tmp_path: Path, rows: list[str]) -> None:
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    (recording,), faults = read_recordings(tmp_path)
    assert (recording.name, recording.text, recording.speaker, faults) == ("a.wav", "hello, you", "anna", [])


@pytest.mark.parametrize(
    ("name", "text", "where", "message"),
    [
        (
            "manifest.csv",
            "audio;text\na.wav;x\n",
            "",
            "row 1: columns separated by semicolons, but manifest.csv needs commas; replace them",
        ),
        (
            "manifest.csv",
            '"audio";"text"\n"a.wav";"x"\n',
            "",
            "row 1: columns separated by semicolons, but manifest.csv needs commas; replace them",
        ),
        (
            "manifest.csv",
            "audio\ttext\na.wav\tx\n",
            "",
            "row 1: columns separated by tabs, but manifest.csv needs commas; "
            "replace them, or call the file manifest.tsv",
        ),
        (
            "manifest.tsv",
            "audio,text\na.wav,x\n",
            "",
            "row 1: columns separated by commas, but manifest.tsv needs tabs; replace them",
        ),
        (
            "manifest.csv",
            "audio,text\na.wav,hello, you\n",
            "row 2",
            '3 fields, but row 1 names 2 columns; put a text that holds commas into quotes: "…"',
        ),
        (
            "manifest.csv",
            'audio,text\nb.wav,y\na.wav,"hello\nc.wav,z\n',
            "",
            "row 3: not a row of a table (unexpected end of data); "
            "close its quotes, and write a quote inside quotes twice",
        ),
    ],
)
def test_tables_that_are_not_quite(tmp_path: Path, name: str, text: str, where: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    _, faults = read_recordings(tmp_path)
    assert [(f.file, f.trial, f.fault, f.severity, f.message) for f in faults] == [
        (name, where, "manifest_field", "error", message)
    ]


def test_leaking_event_stops_even_when_skipping(tmp_path: Path) -> None:
    root = manifest(
        tmp_path,
        {"audio": "a.wav", "text": "x", "split": "train", "event": "e1"},
        {"audio": "b.wav", "text": "x", "split": "test", "event": "e1"},
    )
    for config in (CONFIG, SKIP):
        with pytest.raises(DataError, match="leak_same_event: recordings of the event 'e1' are in train and in test"):
            open_letters(root, config=config)


def test_unusable_recordings_stop_or_are_left_out(tmp_path: Path) -> None:
    write_wav(tmp_path / "good.wav")
    write_wav(tmp_path / "empty.wav", np.zeros(0, np.float32))
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(100))
    names = ["good", "empty", "broken", "absent", "odd"]
    write_wav(tmp_path / "odd.wav")
    rows: list[dict[str, object]] = [
        {"audio": f"{n}.wav", "text": "5" if n == "odd" else "x", "split": "train"} for n in names
    ]
    rows.append({"audio": "good.wav", "text": "x", "split": "train", "start": 3})
    root = manifest(tmp_path, *rows)
    data = open_letters(root, config=SKIP)
    assert [t.trial_id for t in data.trials] == ["good.wav"]
    assert [(f.file, f.trial, f.fault) for f in data.skipped] == [
        ("empty.wav", "", "wav_empty"),
        ("broken.wav", "", "wav_unreadable"),
        ("absent.wav", "", "wav_unreadable"),
        ("odd.wav", "", "unknown_symbol"),
        ("good.wav", "3-", "manifest_field"),
    ]
    with pytest.raises(DataError, match=r"empty\.wav: wav_empty: 0 samples"):
        open_letters(root)
    with pytest.raises(DataError, match="no usable recording of val"):
        open_letters(root, ("val",), config=SKIP)


def test_phonemes_need_a_lexicon(tmp_path: Path) -> None:
    write_wav(tmp_path / "0_theo_1.wav")
    with pytest.raises(ConfigurationError, match="need a pronouncing dictionary"):
        open_recordings(find_recordings(tmp_path), SPLITS, DataConfig(), 16000, 0, PHONEMES, None)
    lexicon = {"zero": ("Z", "IH", "R", "OW")}
    data = open_recordings(find_recordings(tmp_path), SPLITS, DataConfig(), 16000, 0, PHONEMES, lexicon)
    assert data.trials[0].labels == PHONEMES.encode("Z IH R OW |".split())


def test_channel_0_of_several(tmp_path: Path) -> None:
    stereo = np.stack([tone(), np.zeros(4000, np.float32)], axis=1)
    soundfile.write(str(tmp_path / "0_theo_1.wav"), stereo, 8000, subtype="FLOAT")
    np.testing.assert_array_equal(open_letters(tmp_path, rate=8000).signal(0), tone())


def test_a_channel_that_was_chosen(tmp_path: Path) -> None:
    stereo = np.stack([tone(), tone(level=0.1)], axis=1)
    soundfile.write(str(tmp_path / "0_theo_1.wav"), stereo, 8000, subtype="FLOAT")
    for channel, level in ((0, 0.3), (1, 0.1)):
        data = open_letters(tmp_path, rate=8000, config=replace(CONFIG, audio_channel=channel))
        np.testing.assert_array_equal(data.signal(0), tone(level=level))
    with pytest.raises(DataError, match=r"0_theo_1\.wav: wav_channels: 2 channels, but data\.audio_channel=2 counts"):
        open_letters(tmp_path, config=replace(CONFIG, audio_channel=2))
    with pytest.raises(ConfigurationError, match=r"data\.audio_channel=-1: must be at least 0"):
        replace(CONFIG, audio_channel=-1)


def test_a_file_that_changes_under_a_run_is_an_error(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "0_theo_1.wav")
    data = pickle.loads(pickle.dumps(open_letters(tmp_path)))
    write_wav(path, tone(0.1))
    with pytest.raises(DataError, match=r"1600 samples at 16000 Hz, but its header promised 8000"):
        data.signal(0)
    path.unlink()
    with pytest.raises(DataError, match="wav_unreadable"):
        data.signal(0)


@settings(deadline=None)
@given(
    st.integers(1, 5000),
    st.sampled_from([8000, 11025, 16000, 22050, 32000, 44100, 48000]),
    st.sampled_from([8000, 16000]),
)
def test_length_is_that_of_the_resampler(num_samples: int, rate: int, to_rate: int) -> None:
    expected = num_samples if rate == to_rate else len(soxr.resample(np.zeros(num_samples, np.float32), rate, to_rate))
    assert resampled_length(num_samples, rate, to_rate) == expected


def test_fsdd(shared_data: Path) -> None:
    data = open_letters(shared_data / "fsdd", config=DataConfig(symbols="letters", held_out_speakers=("theo",)))
    assert len(data.trials) == 2000 and data.sessions == ("jackson", "nicolas", "theo", "yweweler")
    assert {t.speaker for t in data.trials if t.split == "test"} == {"theo"}
    assert sum(t.split == "val" for t in data.trials) == 150
    assert sum(t.num_steps for t in data.trials) / 16000 == pytest.approx(804, abs=1)
    for i in range(0, 2000, 100):
        assert data.signal(i).shape == (data.trials[i].num_steps,)
