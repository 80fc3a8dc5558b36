"""The benchmark measures what it says; no test depends on how long anything takes."""

import json

import pytest

from sottovoce.bench import guard, train_step
from sottovoce.bench.train_step import Shape
from sottovoce.cli.main import main


def test_guard_and_watch_are_timed_in_every_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "SHAPES", (Shape(1, 4, 6, batch=2, bins=40),))
    monkeypatch.setattr(train_step, "NUM_LABELS", 3)
    bare, watching, whole, mean = guard.bench_guard(rounds=3)
    assert {len(row.seconds) for row in (bare, watching, whole)} == {3}
    assert bare.ratio == 1.0
    assert mean.seconds == pytest.approx([sum(watching.seconds) / 3] * 3)
    assert all(0 < a < b for a, b in zip(watching.seconds, whole.seconds, strict=True))
    capsys.readouterr()
    assert main(["bench", "guard", "--rounds", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row.keys() >= {"name", "shape", "median_ms", "ratio_to_ours", "peak_mib"} for row in rows)
