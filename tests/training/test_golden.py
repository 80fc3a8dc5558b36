"""The golden run: twenty steps of the demo recipe on the demo's data, pinned.

A refactoring keeps these numbers. They change only with a change of the computation itself (simulator, features,
model, loss, optimiser, seeds), and then on purpose, in a commit that says why.
"""

from pathlib import Path

import pytest

from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import prepare
from sottovoce.training.run import start
from tests.training.small_runs import comparable_metrics

LOSSES = {5: 141.2334, 10: 114.7647, 15: 94.5280, 20: 104.5798}
GRADIENT_NORMS = {5: 86.7985, 10: 67.2506, 15: 59.8929, 20: 36.8880}


def test_twenty_steps_of_the_demo(tmp_path: Path) -> None:
    settings = SimulationSettings(sessions=2, trials=20, val_trials=4, test_trials=0, electrodes=64, snr=3.0, seed=1)
    simulate_t15(tmp_path / "data", settings)
    overrides = [
        "recipe=demo", f"data.data_root={tmp_path / 'data'}", f"runs_dir={tmp_path}", "run_name=golden",
        "training.steps=20", "training.scheduler.warmup_steps=5", "training.log_every_steps=5",
        "training.num_threads=1",
    ]  # fmt: skip
    metrics = comparable_metrics(start(prepare(compose_config(overrides))))
    losses = {step: value for step, _, name, value in metrics if name == "train/loss"}
    norms = {step: value for step, _, name, value in metrics if name == "train/gradient_norm"}
    assert losses == pytest.approx(LOSSES, rel=1e-3)
    assert norms == pytest.approx(GRADIENT_NORMS, rel=2e-2)
