"""`sottovoce simulate` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sottovoce.cli.main import build_parser
from sottovoce.core.errors import ConfigurationError, DataError


def run(*words: str) -> int:
    arguments = build_parser().parse_args(["simulate", *words])
    code: int = arguments.run(arguments)
    return code


SMALL = ("--sessions", "2", "--trials", "3", "--electrodes", "4", "--seed", "7")


def test_json_is_one_object_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path / "d"), "--layout", "t15", *SMALL, "--val-trials", "2", "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    found = json.loads(out)
    bins = found.pop("bins")
    assert 9 * 100 < bins < 9 * 700
    assert found == {
        "trials": 9,
        "sessions": 2,
        "seed": 7,
        "directory": str(tmp_path / "d"),
        "trials_by_split": {"train": 6, "val": 2, "test": 1},
        "channels": 8,
    }


def test_a_person_reads_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(str(tmp_path / "d"), *SMALL)
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'd'}: 8 trials (6 train, 1 val, 1 test) in 2 sessions, 8 features, ")
    assert out.endswith(" min, seed 7\n")


def test_options_reach_the_settings(tmp_path: Path) -> None:
    options = ("--snr", "2.5", "--drift", "0.5", "--dead-fraction", "0.1", "--block-trials", "2")
    run(str(tmp_path), *SMALL, *options, "--test-trials", "0", "--bins-per-phoneme", "9")
    assert json.loads((tmp_path / "sim_config.json").read_text())["settings"] == {
        "sessions": 2,
        "trials": 3,
        "val_trials": None,
        "test_trials": 0,
        "seed": 7,
        "electrodes": 4,
        "snr": 2.5,
        "drift": 0.5,
        "dead_fraction": 0.1,
        "block_trials": 2,
        "bins_per_phoneme": 9.0,
    }


def test_bad_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="trials=-3"):
        run(str(tmp_path), "--trials", "-3")
    with pytest.raises(ConfigurationError, match="sessions=0"):
        run(str(tmp_path), "--sessions", "0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["t12", "uaspeech", "T15"])
def test_unknown_layouts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(str(tmp_path), "--layout", layout)
    assert stop.value.code == 2
    assert f"invalid choice: '{layout}'" in capsys.readouterr().err


def test_overwrite_is_asked_for(tmp_path: Path) -> None:
    run(str(tmp_path), *SMALL)
    with pytest.raises(DataError, match="--overwrite"):
        run(str(tmp_path), *SMALL)
    assert run(str(tmp_path), *SMALL, "--overwrite") == 0
