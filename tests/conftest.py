"""Fixtures for the whole suite: one thread, and the sample data where a machine has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the sample data sets and real recordings."""
    folder = os.environ.get("SOTTOVOCE_SHARED_DATA")
    if not folder:
        pytest.skip("SOTTOVOCE_SHARED_DATA is not set: the sample data sets are not on this machine")
    return Path(folder)
