"""The benchmark measures what it says; no test depends on how long anything takes."""

from pathlib import Path

import pytest
import torch

from sottovoce.bench import train_step
from sottovoce.bench.rows import Row
from sottovoce.bench.train_step import RandomTrials, Shape, bench_train_step
from sottovoce.cli.main import main
from sottovoce.data.loading import PreparedTrials
from sottovoce.training.composition import compose_config

pytestmark = pytest.mark.slow


def test_every_contestant_takes_a_step_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(1, 4, 6, batch=2, bins=40)
    monkeypatch.setattr(train_step, "SHAPES", (shape,))
    monkeypatch.setattr(train_step, "NUM_LABELS", 3)
    rows = bench_train_step(rounds=3)
    assert [row.name for row in rows] == [
        "sottovoce, whole step", "bare forward + backward + AdamW", "nejm-brain-to-text step, re-created"
    ]  # fmt: skip
    assert {len(row.seconds) for row in rows} == {3}
    assert rows[0].ratio == 1.0
    assert all(row.as_dict()["shape"] == str(shape) for row in rows)
    assert main(["bench", "train-step", "--rounds", "3", "--json"]) == 0


def test_ratios_are_taken_round_by_round() -> None:
    row = Row("x", "y", seconds=[2.0, 40.0, 6.0], ours=[1.0, 10.0, 6.0])
    assert row.ratio == 2.0
    assert row.as_dict()["median_ms"] == 6000.0


def test_batches_are_equal_work() -> None:
    trials = RandomTrials(Shape(1, 4, 6, bins=40))
    assert {trial.num_steps for trial in trials.trials} == {40}
    assert {trials.signal(i).shape for i in range(64)} == {(40, 6)}
    assert all(trial.file == Path("memory") for trial in trials.trials)
    assert torch.from_numpy(trials.signal(0)).std().item() == pytest.approx(1.0, abs=0.2)


def test_the_published_forward_pass_gives_our_logits() -> None:
    shape = Shape(2, 5, 6, batch=4, bins=40)
    config = compose_config(
        ["recipe=demo", "data.data_root=memory", "preprocessor.num_channels=6", "model.gru.units=5"]
    )
    contestant = train_step._Published(config, PreparedTrials(RandomTrials(shape), 1, 6, cache=True))
    contestant.model.eval()
    batch = contestant.batch
    ours, _ = contestant.model(batch.signal, batch.lengths_B, batch.session_B)
    torch.testing.assert_close(contestant._logits(batch.signal, batch.session_B), ours)
