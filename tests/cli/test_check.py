from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sottovoce.cli.main import build_parser
from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import NoUsableTrials, prepare
from tests.data.builders import T15Trial, noise, write_sound_folder, write_t15_file, write_wav


def run(*arguments: str | Path) -> int:
    parsed = build_parser().parse_args(["check", *map(str, arguments)])
    code = parsed.run(parsed)
    assert isinstance(code, int)
    return code


def test_sound_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_sound_folder(tmp_path)) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}: 12 trials (t15), 0 errors, 0 warnings\n"
    assert printed.err == ""


def test_errors_give_1_and_every_kind_is_shown_five_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_t15_file(tmp_path / "a.hdf5", [T15Trial(noise(0))] * 7 + [T15Trial(noise(20))])
    assert run(path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: 8 trials (t15_file), 7 errors, 1 warnings"
    assert lines[1].startswith("error: a.hdf5:trial_0000: empty_trial: 0 time steps with 5 labels")
    assert lines[6].startswith("warning: a.hdf5:trial_0007: ctc_infeasible: 20 time steps give 2 frames")
    assert lines[7] == "… a.hdf5: empty_trial: 2 more of 7"


def test_what_many_files_have_alike_is_shown_five_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for take in range(7):
        stereo = np.zeros((4000, 2), np.float32) + 0.1
        soundfile.write(str(tmp_path / f"1_theo_{take}.wav"), stereo, 8000)
    assert run(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and all("wav_channels: 2 channels" in line for line in lines[1:6])
    assert lines[6].startswith("… wav_channels: 2 channels") and lines[6].endswith(": 2 more files of 7")
    assert run(tmp_path, "--audio-channel", "1") == 0
    assert "0 warnings" in capsys.readouterr().out


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_t15_file(tmp_path / "a.hdf5", [T15Trial(), T15Trial(noise(20))])
    assert run(path, "--json") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert set(found) == {"trials", "faults"} and found["trials"] == 2
    (fault,) = found["faults"]
    assert set(fault) == {"file", "trial", "fault", "severity", "message", "trial_id"}
    assert (fault["file"], fault["trial"], fault["fault"]) == ("a.hdf5", "trial_0001", "ctc_infeasible")
    assert printed.err == ""


def test_truncated_file_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_t15_file(tmp_path / "a.hdf5", [T15Trial()])
    path.write_bytes(path.read_bytes()[:5000])
    assert run(path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [f["fault"] for f in found["faults"]] == ["unreadable_file"]
    assert "5000 bytes present" in found["faults"][0]["message"]


def test_no_data_set_is_unreadable_input(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError) as caught:
            run(path)
        assert caught.value.exit_code == 2


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_t15_file(tmp_path / "a.hdf5", [T15Trial(noise(20, 256))])
    assert run(path, "--patch-stride", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []
    assert run(path, "--patch-stride", "1", "--num-channels", "512") == 1
    with pytest.raises(DataError, match="expected a folder of recordings"):
        run(path, "--layout", "recordings")


def test_options_for_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    write_wav(root / "1_theo_0.wav")
    (tmp_path / "lexicon").write_text("two  T UW1\n")
    assert run(root, "--lexicon", tmp_path / "lexicon", "--json") == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert (fault["file"], fault["fault"]) == ("1_theo_0.wav", "unknown_symbol")
    assert "'one'" in fault["message"]
    assert run(root, "--symbols", "letters", "--sample-rate", "16000", "--json") == 0
    assert [f["fault"] for f in json.loads(capsys.readouterr().out)["faults"]] == ["wav_sample_rate"]


def test_a_folder_with_an_unreadable_file_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_sound_folder(tmp_path)
    (root / "t15.2023.08.13" / "data_train.hdf5").write_bytes(b"not HDF5")
    features = noise()
    features[3, 4] = np.inf
    write_t15_file(root / "t15.2023.08.18" / "data_val.hdf5", [T15Trial(features, block=2)], "t15.2023.08.18")
    assert run(root) == 1
    out = capsys.readouterr().out
    assert "9 trials (t15), 2 errors, 0 warnings" in out
    assert "t15.2023.08.13/data_train.hdf5: unreadable_file: cannot be read as HDF5" in out
    assert "t15.2023.08.18/data_val.hdf5:trial_0000: non_finite_features: 1 non-finite values" in out


def test_a_run_without_a_usable_trial_is_told_why(tiny_t15: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured = ("recipe=demo", f"data.data_root={tiny_t15}")  # 128 channels are expected, there are 16
    assert run(*configured) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "set preprocessor.num_channels=16" in lines[1] and "channel_mismatch" in lines[1]
    assert lines[-1] == "no training trial can be used, so that the run itself was not looked at"
    assert run(*configured, "--json") == 1
    printed = json.loads(capsys.readouterr().out)
    assert {fault["fault"] for fault in printed["faults"]} == {"channel_mismatch"}
    assert printed["findings"] == [] and printed["memory"] is None


def test_a_run_whose_every_trial_is_left_out_by_the_model(tiny_t15: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patches = ("model.patch.size=400", "model.patch.stride=400")
    assert run("recipe=demo", f"data.data_root={tiny_t15}", "preprocessor.num_channels=16", *patches) == 1
    assert "ctc_infeasible" in capsys.readouterr().out


def test_training_says_why_no_trial_is_left(tiny_t15: Path) -> None:
    with pytest.raises(
        NoUsableTrials, match=r"no usable training trial \(30 × channel_mismatch\); error: .*trial_0000"
    ):
        prepare(compose_config(["recipe=demo", f"data.data_root={tiny_t15}", "data.on_fault=skip"]))


def test_the_recipe_may_stand_anywhere(tiny_t15: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placed = (f"data.data_root={tiny_t15}", "preprocessor.num_channels=16", "training.batch_size=4")
    assert run(*placed, "recipe=demo") == 0
    assert "memory: " in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="recipe=NAME, NAME one of demo"):
        run(*placed)


def test_a_path_that_looks_like_an_override_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sound_folder(tmp_path / "recipe=demo")
    monkeypatch.chdir(tmp_path)
    assert run("recipe=demo") == 0
    assert capsys.readouterr().out.startswith("recipe=demo: 12 trials (t15)")
