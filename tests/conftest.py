"""Fixtures for the whole suite: one thread, and the sample data where a machine has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the sample data sets and real recordings."""
    folder = os.environ.get("SOTTOVOCE_SHARED_DATA")
    if not folder:
        pytest.skip("SOTTOVOCE_SHARED_DATA is not set: the sample data sets are not on this machine")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_t15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small simulated T15 data set: 2 sessions, 16 channels."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    simulate_t15(folder, SimulationSettings(sessions=2, trials=12, val_trials=4, electrodes=8, seed=3))
    return folder
