"""The benchmark of teachers measures what it says; no test depends on how long anything takes."""

import pytest

from sottovoce.bench import distillation, train_step
from sottovoce.bench.train_step import Shape


def test_each_number_of_teachers_is_timed_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "SHAPES", (Shape(1, 4, 6, batch=2, bins=40),))
    monkeypatch.setattr(train_step, "NUM_LABELS", 3)
    rows = distillation.bench_distillation(rounds=3)
    assert [row.name for row in rows] == [
        "labels alone",
        "labels and 1 teacher",
        "labels and 2 teachers",
        "labels and 4 teachers",
    ]
    assert {len(row.seconds) for row in rows} == {3}
    assert rows[0].ratio == 1.0
