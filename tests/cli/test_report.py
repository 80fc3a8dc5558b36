"""`sottovoce report`: where the file is, as a line and as JSON; what is no run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from sottovoce.cli import report
from sottovoce.cli.main import build_parser
from sottovoce.core.errors import CheckpointError
from tests.diagnosis.run_directories import RunDirectory

pytestmark = pytest.mark.slow


def arguments(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["report", *words])


def test_it_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunDirectory(tmp_path).write()
    chosen = arguments(str(tmp_path), "--json")
    assert chosen.run(chosen) == 0
    path = tmp_path / "report.html"
    assert json.loads(capsys.readouterr().out) == {"file": str(path)}
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert ">healthy<" in page
    assert report.run(arguments(str(tmp_path))) == 0
    assert capsys.readouterr().out == f"report: {path}\n"


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is empty"):
        report.run(arguments(str(tmp_path)))
