"""The museum's verdict: what falls short of what is asked ends it with 1, and the table is printed either way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import table

Lines = list[dict[str, Any]]


def _pass() -> Lines:
    """A pass that just reaches what is asked: 90 % of 50 faults, 50 rows, 20 healthy runs with one warning."""
    faults = [_line(f"row {i}", "a", ("a", "error") if i >= 5 else ("b", "error")) for i in range(50)]
    return [*faults, *(_line("-", "") for _ in range(19)), _line("-", "", ("w", "warning"))]


def _line(row: str, code: str, *found: tuple[str, str], doctored: bool = False) -> dict[str, Any]:
    return {"row": row, "name": f"fault of {row}", "code": code, "doctored": doctored, "found": list(found)}


def test_a_pass_that_reaches_what_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _verdict(_pass(), tmp_path) == 0
    printed = capsys.readouterr()
    assert "45 of 50 injected faults named first (90.0%), of 50 rows" in printed.out
    assert "| `a` | `b` | 5 |" in printed.out and printed.err == ""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lines: lines[5].update(found=[]), "88.0% of faults named first, 90% are asked"),
        (lambda lines: lines[5].update(row="row 6"), "49 rows of the catalogue, 50 are asked"),
        (lambda lines: lines[5].update(doctored=True), "49 rows of the catalogue, 50 are asked"),
        (lambda lines: lines.pop(), "19 healthy runs, 20 are asked"),
        (lambda lines: lines[50].update(found=[("e", "error")]), "1 errors in healthy runs, 0 allowed"),
        (lambda lines: lines[50].update(found=[("w", "warning")]), "2 warnings in healthy runs, 1 allowed"),
    ],
)
def test_what_falls_short_is_said(
    spoil: Callable[[Lines], object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _pass()
    spoil(lines)
    assert _verdict(lines, tmp_path) == 1
    printed = capsys.readouterr()
    assert f"museum: {said}" in printed.err.splitlines()
    assert "| row | what was injected |" in printed.out


def test_doctored_records_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctored = [_line("I8", "a", ("a", "error"), doctored=True), _line("I9", "a", doctored=True)]
    assert _verdict([*_pass(), *doctored], tmp_path) == 0
    printed = capsys.readouterr().out
    assert "45 of 50 injected faults" in printed and "1 of 2 doctored records named first" in printed
    assert "| I8 | fault of I8 (doctored record) | `a` | yes |" in printed


def test_a_museum_that_showed_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(tmp_path / "none.jsonl") == 1
    assert "0.0% of faults named first" in capsys.readouterr().err


def _verdict(lines: Lines, folder: Path) -> int:
    record = folder / "museum.jsonl"
    record.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return table.main(record)
