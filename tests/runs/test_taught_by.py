"""Who has taught a run is kept with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sottovoce.core.errors import CheckpointError
from sottovoce.runs.taught_by import TaughtBy, read_taught_by, write_taught_by


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    teachers = (TaughtBy("runs/a", 20, "00ff"), TaughtBy("runs/b", 40, "11ee"))
    write_taught_by(tmp_path, teachers)
    assert read_taught_by(tmp_path) == teachers


def test_a_run_that_nobody_teaches_keeps_no_file(tmp_path: Path) -> None:
    write_taught_by(tmp_path, ())
    assert not list(tmp_path.iterdir())
    assert read_taught_by(tmp_path) == ()


@pytest.mark.parametrize("text", ["[", "{}x", '[{"run": "a"}]', "[1]"])
def test_a_damaged_record_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "teachers.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_taught_by(tmp_path)
