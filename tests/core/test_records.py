from pathlib import Path

import pytest

from sottovoce.core.errors import CheckpointError
from sottovoce.core.records import JsonLines, read_json_lines


def test_truncation_forgets_later_steps_and_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    for step in (1, 2, 3):
        lines.append({"step": step, "value": 0.1 * step})
    lines.close()
    with path.open("a") as file:
        file.write('{"step": 4, "val')
    assert [r["step"] for r in read_json_lines(path)] == [1, 2, 3]
    lines.truncate_after(2)
    lines.append({"step": 3, "value": 1.0})
    lines.close()
    assert [(r["step"], r["value"]) for r in read_json_lines(path)] == [(1, 0.1), (2, 0.2), (3, 1.0)]


def test_damage_in_the_middle_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match="line 2 is not JSON"):
        read_json_lines(path)
    path.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(CheckpointError, match=r"line 2 is not an object but '\[2\]'"):
        read_json_lines(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json_lines(tmp_path / "events.jsonl")
