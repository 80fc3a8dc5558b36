"""The data that every exhibit is shown with."""

from __future__ import annotations

from pathlib import Path

import pytest

from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15
from tests.faults.voices import write_recordings


@pytest.fixture(scope="session")
def neural(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "neural"
    settings = SimulationSettings(sessions=2, trials=60, val_trials=16, electrodes=16, snr=4.0, seed=5)
    simulate_t15(folder, settings)
    return folder


@pytest.fixture(scope="session")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "voices"
    write_recordings(folder)
    return folder
