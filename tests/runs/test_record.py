"""Reading a run directory: whole, running, killed; and one clear line for what is none."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from sottovoce.core.errors import CheckpointError
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun, read_diagnosed
from sottovoce.runs.directory import read_config, read_sessions
from sottovoce.runs.record import Series
from tests.diagnosis.run_directories import LOG, STEPS, RunDirectory

SPIKE = (
    '{"step": 3, "event": "gradient_spike", "severity": "note", "evidence": "", "source": "monitor", "support": 0.5}'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = RunDirectory(tmp_path / "run")
    run.skipped("nonfinite_loss", 31, losses={"a": math.inf})
    return run.write()


def test_everything_is_there(folder: Path) -> None:
    record = read_diagnosed(folder)
    assert record.config is not None
    assert record.config.training.steps == record.values["training"]["steps"] == STEPS
    assert len(record.metric("train/loss")) == STEPS // LOG
    assert record.metric("train/loss").steps[:2] == (LOG, 2 * LOG)
    assert record.metric("no/such") == Series()
    assert [e["step"] for e in record.events_named("step_skipped")] == [31]
    assert (record.finished, record.aborted, record.last_step, record.best_step) == (True, False, STEPS, STEPS)
    assert record.checkpoints["last"].optimizer_steps == {"encoder.layers.0.weight": 399, "head.weight": 399}
    assert record.checkpoints["last"].progress["updates"] == 399
    assert [(b.name, b.first, b.last, b.weights) for b in record.stages] == [("train", 0, STEPS, {"ctc": 1.0})]


def test_a_run_killed_while_it_wrote_a_line(folder: Path) -> None:
    for name in ("metrics.jsonl", "events.jsonl"):
        path = folder / name
        path.write_text(path.read_text()[:-12])
    shutil.rmtree(folder / "checkpoints")
    record = read_diagnosed(folder)
    assert not record.finished
    assert (record.checkpoints, record.best_step, record.last_step) == ({}, None, STEPS)


def test_a_run_before_its_first_step(folder: Path) -> None:
    for name in ("metrics.jsonl", "events.jsonl", "environment.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    record = read_diagnosed(folder)
    assert (record.last_step, record.stages, record.series) == (0, [], {})


def test_nonfinite_values_are_kept_apart(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 401, "split": "train", "name": "x", "value": NaN}\n')
    record = read_diagnosed(folder)
    assert math.isnan(record.series["x"].values[0])
    assert record.metric("x") == Series()


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        read_diagnosed(folder)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_what_is_no_run(folder: Path, tmp_path: Path) -> None:
    assert "is no folder" in refused(tmp_path / "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    assert "is empty" in refused(other)
    (other / "notes.txt").write_text("x")
    assert "not a run directory" in refused(other)
    (other / "config.yaml").write_text("learning_rate: 3\n")
    assert "not ours" in refused(other)
    (other / "config.yaml").write_text("a: [\n")
    assert "cannot be read" in refused(other)
    (folder / "config.yaml").unlink()
    assert "half-written" in refused(folder)


def test_a_newer_version(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"teleport": True}))
    assert "unknown configuration key teleport; update sottovoce" in refused(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    index = folder / "checkpoints" / "last" / "checkpoint.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 2}))
    assert "update sottovoce" in refused(folder)


@pytest.mark.parametrize(("version", "is_newer"), [("0.1.1", True), ("10.0rc1", True), ("0.1", False), ("?", False)])
def test_the_version_that_wrote_it(folder: Path, version: str, is_newer: bool) -> None:
    (folder / "environment.json").write_text(json.dumps({"sottovoce": version}))
    if is_newer:
        assert f"was written by sottovoce {version}, this is 0.1.0; update" in refused(folder)
    else:
        assert read_diagnosed(folder).environment["sottovoce"] == version


def test_a_value_that_this_version_refuses_leaves_the_plain_configuration(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["training"]["selection_metric"] = "bleu"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record: DiagnosedRun = read_diagnosed(folder)
    assert record.config is None
    assert record.values["training"]["selection_metric"] == "bleu"


@pytest.mark.parametrize("line", ["[]", '{"step": "3", "event": "x"}', '{"event": "x"}'])
def test_a_damaged_record(folder: Path, line: str) -> None:
    path = folder / "events.jsonl"
    damage_free = len(read_diagnosed(folder).events)
    path.write_text(f"{line}\n{path.read_text()}")
    (damaged,) = read_diagnosed(folder).damaged
    assert damaged.startswith(f"{path}: 1 of ")
    assert ("line 1 is no JSON object" if line == "[]" else "line 1 is no record of a run") in damaged
    assert len(read_diagnosed(folder).events) == damage_free


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"step": 3, "event": "stage_started", "stage": "a"}', "num_steps, loss_weights, components"),
        (
            '{"step": 3, "event": "step_skipped", "code": 5, "evidence": "", "losses": [], "num_trials": 0}',
            "code, parameters, num_parameters",
        ),
        ('{"step": 3, "event": "unfrozen", "components": "encoder", "trainable_parameters": 3}', "components"),
        (SPIKE.replace("0.5", '"high"'), "support"),
        (SPIKE.replace("}", ', "trials": "one", "advice": 3}'), "advice, trials"),
        (SPIKE.replace("note", "doom"), "severity"),
    ],
)
def test_an_event_that_no_rule_could_read(folder: Path, line: str, what: str) -> None:
    path = folder / "events.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    (damaged,) = read_diagnosed(folder).damaged
    assert damaged.endswith(f"line 1 is no event {json.loads(line)['event']} of this version ({what})")


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "events.jsonl",
        "environment.json",
        "evaluation/val.greedy.json",
        "checkpoints/last/checkpoint.json",
    ],
)
def test_random_bytes_in_one_file_leave_the_others(folder: Path, name: str) -> None:
    (folder / "evaluation").mkdir()
    (folder / name).write_bytes(bytes(range(256)) * 4)
    record = read_diagnosed(folder)
    (damaged,) = record.damaged
    assert str(folder / name) in damaged
    whole = {
        "metrics.jsonl": len(record.metrics) > 0,
        "events.jsonl": len(record.events) > 0,
        "environment.json": record.environment == {"sottovoce": "0.1.0"},
        "checkpoints/last/checkpoint.json": "last" in record.checkpoints,
    }
    assert [file for file, there in whole.items() if not there] == [name] * (name in whole)


def test_tensors_that_are_none_leave_the_rest_of_the_run(folder: Path) -> None:
    next((folder / "checkpoints" / "last").glob("optimizer-*")).write_bytes(b"no tensors")
    record = read_diagnosed(folder)
    assert list(record.checkpoints) == ["best"]
    assert "the checkpoint is damaged" in record.damaged[0]


def test_bad_lines_are_counted_and_the_good_ones_read(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "\x00\x00", '{"step": 3}', *lines[3:]]))
    record = read_diagnosed(folder)
    assert len(record.metrics) == len(lines)
    assert record.damaged == (f"{path}: 2 of {len(lines) + 2} lines left out; line 4 is no JSON object",)


def test_a_run_of_before_decoding_had_a_section_is_told_what_to_rename(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "{seed: 1, data: {symbols: phonemes}, preprocessor: {}, model: {}, evaluation: {}}"
    )
    with pytest.raises(CheckpointError, match=r"before its section `evaluation` became `decoding`; rename it"):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ['{"a": 1}', '["a", 1]', "["])
def test_sessions_that_are_no_names_are_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "sessions.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"sessions\.json cannot be read"):
        read_sessions(tmp_path)
