"""Verbs as a user types them: what they print, what they write, how they fail."""

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from sottovoce.cli.main import main
from sottovoce.core.symbols import PHONEMES
from sottovoce.evaluation.evaluate import evaluate_run
from sottovoce.runs.trained_decoder import load
from tests.models.test_official_t15 import official_state, write
from tests.training.small_runs import command, overrides

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", *overrides(tiny_t15, runs, "small")]) == 0
    return runs / "small"


def json_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Everything on stdout, which must be one JSON object."""
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_train_prints_the_run_last(tiny_t15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *overrides(tiny_t15, tmp_path, "one", "training.steps=3")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"run: {tmp_path / 'one'}"
    assert lines[0].startswith("val (4 trials, greedy): PER ")
    assert (tmp_path / "one" / "report.html").exists()


def test_evaluate_json_has_the_promised_keys(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir), "--json"]) == 0
    found = json_of(capsys)
    promised = "split decoder num_trials per wer cer wra ci95 blank_fraction empty_fraction by_group".split()
    assert set(promised) <= found.keys()
    assert found["num_trials"] == 4
    assert 0 < found["per"] <= 2
    low, high = found["ci95"]["per"]
    assert low <= found["per"] <= high
    assert json.loads((run_dir / "evaluation" / "val.greedy.json").read_text()) == found


def test_the_recorded_validation_is_the_evaluation(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best checkpoint's PER in metrics.jsonl and the one that `evaluate` finds are the same number."""
    main(["evaluate", str(run_dir), "--json"])
    recorded = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert json_of(capsys)["per"] == min(r["value"] for r in recorded if r["name"] == "val/per")


def test_decoding_tells_how_far_it_is(run_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    run = load(run_dir)
    evaluate_run(run, "val", run.decoders(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_both_decoders_and_the_training_split(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir), "--decoder", "words", "--split", "train", "--json"]) == 0
    found = json_of(capsys)
    assert (found["decoder"], found["split"], found["num_trials"]) == ("words", "train", 24)
    assert found["wer"] is not None
    assert main(["evaluate", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "t15.2023.08.13" in shown
    assert "blank frames" in shown


def test_several_decoders_of_the_same_emissions(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = {}
    for name in ("words", "greedy"):
        assert main(["evaluate", str(run_dir), "--decoder", name, "--json"]) == 0
        alone[name] = json_of(capsys)
    assert main(["evaluate", str(run_dir), "--decoder", "words,greedy", "--json"]) == 0
    assert json_of(capsys) == alone
    assert main(["evaluate", str(run_dir), "--decoder", "words,greedy"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("val (")][1].startswith(
        "val (4 trials, greedy)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoder", "best"], "there is no decoder 'best'; choose one of greedy, words, transducer"),
        (["--decoder", "transducer"], "the model has no transducer; use the decoder greedy"),
        (["--beam-size", "4"], "a beam of 4: greedy keeps none; choose the decoder transducer"),
    ],
)
def test_a_decoder_that_the_run_does_not_offer(
    run_dir: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run_dir), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_test_split_has_no_labels_to_score(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run_dir), "--split", "test"]) == 2
    assert "no labels" in capsys.readouterr().err


@pytest.mark.parametrize("decoder", ["greedy", "words"])
def test_decode_writes_a_line_for_every_trial(
    run_dir: Path, tiny_t15: Path, tmp_path: Path, decoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "hypotheses.jsonl"
    arguments = ["decode", str(run_dir), str(tiny_t15), "--out", str(out), "--decoder", decoder, "--json"]
    assert main(arguments) == 0
    found = json_of(capsys)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert found == {"trials": len(records), "file": str(out), "skipped": 0}
    assert {r["split"] for r in records} == {"train", "val", "test"}
    assert all(set(r["symbols"]) <= set(PHONEMES.symbols) for r in records)
    if decoder == "words":
        assert all(" ".join(w["text"] for w in r["words"]) == r["text"] for r in records)
        assert all(0 <= w["confidence"] <= 1 for r in records for w in r["words"])


def test_decoding_a_session_that_the_model_does_not_know(
    run_dir: Path, tiny_t15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter of another day would be used silently if sessions went by their position."""
    other = tmp_path / "data" / "t15.2025.01.10"
    other.mkdir(parents=True)
    with (
        h5py.File(tiny_t15 / "t15.2023.08.13" / "data_test.hdf5") as source,
        h5py.File(other / "data_test.hdf5", "w") as file,
    ):
        for key in source:
            source.copy(key, file)
            file[key].attrs["session"] = other.name
    arguments = ["decode", str(run_dir), str(tmp_path / "data"), "--out", str(tmp_path / "x")]
    assert main(arguments) == 2
    assert "no adapter for the session t15.2025.01.10" in capsys.readouterr().err


def test_one_session_of_several_uses_its_own_adapter(
    run_dir: Path, tiny_t15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "data"
    alone.mkdir()
    (alone / "t15.2023.08.13").symlink_to(tiny_t15 / "t15.2023.08.13")
    for data, out in ((tiny_t15, "all"), (alone, "one")):
        assert main(["decode", str(run_dir), str(data), "--split", "val", "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "all").read_text() == (tmp_path / "one").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "recipe=demo", "data.data_rot=x"], "did you mean data.data_root"),
        (["train", "recipe=demo"], "data.data_root is required"),
        (["train"], "say which recipe"),
        (["train", "recipe=demo", "data.data_root=/nowhere/at/all"], "does not exist"),
        (["train", "resume=/nowhere/at/all"], "/nowhere/at/all is no folder"),
        (["evaluate", "/nowhere/at/all"], "/nowhere/at/all is no folder"),
        (["report", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_a_path_that_is_not_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "caf\udce9"]) == 2
    assert capsys.readouterr().err == "sottovoce: 'caf\\udce9' is not UTF-8; rename that file or folder\n"


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("audio,text\na.wav,yes,€\n", encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    checked = subprocess.run(
        command("check", str(tmp_path)), capture_output=True, text=True, env=environment, check=False
    )
    assert (checked.returncode, checked.stderr) == (1, "")
    assert r'commas into quotes: "\u2026"' in checked.stdout


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/a"),
            "runs/a: Permission denied; check that it is there",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device; make room"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError, line: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("sottovoce.verbs.report.write_report", refuse)
    assert main(["report", str(run_dir)]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert found.startswith(f"sottovoce: {line}")


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nonsense"], [], ["evaluate"], ["bench", "nothing"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_show_config_prints_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipe=t15_gru", "data.data_root=x", "--show-config"]) == 0
    shown = capsys.readouterr().out
    assert "eps: 0.1" in shown
    assert "white_noise_std: 1.0" in shown


@pytest.mark.parametrize(
    "fault",
    [
        "truncated_hdf5", "missing_dataset", "wrong_feature_count", "nan_in_features", "label_id_out_of_range",
        "blank_inside_labels", "seq_len_larger_than_label_array", "n_time_steps_larger_than_array", "empty_trial",
        "target_longer_than_frames", "duplicated_trial_number",
    ],
)  # fmt: skip
def test_train_names_the_fault_that_check_names(
    shared_data: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    session = tmp_path / "data" / "t15.2023.08.13"
    session.mkdir(parents=True)
    (session / "data_train.hdf5").symlink_to(shared_data / "broken" / f"{fault}.hdf5")
    assert main(["check", str(tmp_path / "data"), "--json"]) == 1
    (found,) = [f for f in json_of(capsys)["faults"] if f["severity"] == "error"]
    arguments = ["train", "recipe=t15_gru", f"data.data_root={tmp_path / 'data'}", f"runs_dir={tmp_path / 'runs'}"]
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert found["fault"] in printed
    assert found["message"] in printed
    assert "data_train.hdf5" in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_unusable_trials_can_be_left_out_and_are_counted(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = tmp_path / "data" / "t15.2023.08.13"
    session.mkdir(parents=True)
    (session / "data_train.hdf5").symlink_to(shared_data / "broken" / "nan_in_features.hdf5")
    arguments = overrides(tmp_path / "data", tmp_path, "kept", "preprocessor.num_channels=512", "training.steps=3")
    assert main(["train", *arguments, "data.on_fault=skip", "training.batch_size=1"]) == 0
    assert "run: " in capsys.readouterr().out  # without a validation split there is nothing to evaluate
    events = [json.loads(line) for line in (tmp_path / "kept" / "events.jsonl").read_text().splitlines()]
    assert [(e["fault"], e["trial"]) for e in events if e["event"] == "trial_skipped"] == [
        ("non_finite_features", "trial_0001")
    ]


def test_import_of_the_published_checkpoint(tiny_t15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint with the sizes of the small data set, then decoded: the whole way of the official model."""
    torch.manual_seed(0)
    write(tmp_path / "published", official_state())
    out = tmp_path / "run"
    assert main(["import_t15", str(tmp_path / "published"), "--data", str(tiny_t15), "--out", str(out), "--json"]) == 0
    assert json_of(capsys)["sessions"] == 2
    assert main(["evaluate", str(out)]) == 2
    assert "channel_mismatch" in capsys.readouterr().err
    assert main(["import_t15", str(tmp_path / "published"), "--data", "x", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_multirun_makes_one_run_for_each_value(tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [o for o in overrides(tiny_t15, tmp_path / "runs", "x", "training.steps=3") if "run_name" not in o]
    assert main(["train", "--multirun", *quick, "seed=1,2"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["demo-001", "demo-002"]
