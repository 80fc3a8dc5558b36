"""A run tracked offline, read back from the file that `wandb sync` would upload."""

from __future__ import annotations

import builtins
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from sottovoce.core.errors import ConfigurationError
from sottovoce.training.recorder import RunRecorder
from sottovoce.training.tracking import Tracker, WandbConfig

BLOCK = 32 * 1024
Record = vars(wandb_internal_pb2)["Record"]  # protobuf makes its classes at run time


def _records(path: Path) -> Iterator[Any]:
    """Records of a transaction log: LevelDB's log format after a header of 7 bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # too short for a header: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def _read(run_dir: Path) -> tuple[Any, dict[str, Any], list[dict[str, float]]]:
    """The run's description, its configuration and the rows of its history."""
    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    records = list(_records(file))
    run = next(r.run for r in records if r.HasField("run"))
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    return run, settings, rows


@pytest.mark.slow
def test_everything_comes_back_from_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = WandbConfig(True, "mode-ssm", "somebody", "rnnt-scaled", ("production", "rnnt"), "why")
    tracker = Tracker(config, tmp_path, {"training": {"stages": [{"epochs": 2}], "optimizer": {"lr": 5e-5}}}, 4)
    recorder = RunRecorder(tmp_path, 20, 0, tracker)
    recorder.metrics(10, "train", {"train/loss": 3.5, "train/step_seconds": 0.25, "learning_rate/other": 5e-5})
    recorder.metrics(20, "val", {"val/per": 0.25})
    recorder.close()
    run, settings, rows = _read(tmp_path)
    assert (run.project, run.entity, run.display_name, run.notes) == ("mode-ssm", "somebody", "rnnt-scaled", "why")
    assert list(run.tags) == ["production", "rnnt"]
    assert settings["training"] == {"stages": [{"epochs": 2}], "optimizer": {"lr": 5e-5}}
    assert (rows[0]["step"], rows[0]["batch"], rows[0]["epoch"]) == (10, 10, 2.5)
    assert rows[0]["train/loss"] == 3.5
    assert rows[0]["train/batch_time"] == 0.25
    assert rows[0]["learning_rate"] == 5e-5
    assert rows[1]["val/phoneme_accuracy"] == 0.75


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"pip install 'sottovoce\[wandb\]'"):
        Tracker(WandbConfig(True), tmp_path, {}, 1)
