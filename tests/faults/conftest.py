"""The data that every exhibit is shown with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15
from tests.faults.scene import Scene
from tests.faults.teachers import train_teachers
from tests.faults.voices import write_recordings

SceneOn = Callable[[Path], Scene]


@pytest.fixture
def scene_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taught: Callable[[], tuple[Path, Path]]) -> SceneOn:
    """A scene of this test on a data set."""
    return lambda data: Scene(monkeypatch, data, tmp_path, taught)


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


@pytest.fixture(scope="session")
def taught(neural: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Path, Path]]:
    """Trains two teachers at the first call (half a minute)."""
    return functools.cache(lambda: train_teachers(neural, tmp_path_factory.mktemp("faults") / "teachers"))


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `make demo`, with fewer trials a day."""
    folder = tmp_path_factory.mktemp("faults") / "demo"
    simulate_t15(folder, SimulationSettings(sessions=4, trials=40, val_trials=6, electrodes=64, snr=3.0, seed=1))
    return folder


@pytest.fixture(scope="session")
def twelve_trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One session of twelve trials."""
    folder = tmp_path_factory.mktemp("faults") / "twelve"
    simulate_t15(folder, SimulationSettings(sessions=1, trials=12, val_trials=4, electrodes=8, snr=4.0, seed=2))
    return folder


@pytest.fixture(scope="session")
def spoken_digits(shared_data: Path) -> Path:
    """Real recordings (FSDD), where the machine has them."""
    if not (folder := shared_data / "fsdd").exists():
        pytest.skip(f"{folder} is not on this machine")
    return folder
