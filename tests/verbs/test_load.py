"""A run in a program decodes a signal as `sottovoce decode` decodes the trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile

import sottovoce
from sottovoce.cli.main import main
from sottovoce.core.errors import ConfigurationError, DataError
from tests.docs.material import write_recordings
from tests.training.small_runs import overrides

pytestmark = pytest.mark.slow
SOUND = [
    "recipe=recordings",
    "training.steps=30",
    "training.scheduler.warmup_steps=2",
    "training.batch_size=4",
    "training.preflight=false",
    "model.conv.width=16",
]


@pytest.fixture(scope="module")
def binned_run(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    return sottovoce.train(overrides(tiny_t15, runs, "binned", "model.blank_bias=0")).path


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sound")
    write_recordings(str(folder / "data"))
    return sottovoce.train([*SOUND, f"data.data_root={folder / 'data'}", f"runs_dir={folder}"]).path, folder / "data"


def written_by_decode(run: Path, data: Path, out: Path, *options: str) -> dict[str, dict[str, Any]]:
    assert main(["decode", str(run), str(data), "--out", str(out), *options]) == 0
    return {record["trial_id"]: record for record in map(json.loads, out.read_text().splitlines())}


def features_of(data: Path, trial_id: str) -> np.ndarray:
    session, split, key = trial_id.split("/")
    with h5py.File(data / session / f"data_{split}.hdf5") as file:
        return file[key]["input_features"][()]


@pytest.mark.parametrize("decoder", ["greedy", "words"])
def test_binned_features_as_decode_does(binned_run: Path, tiny_t15: Path, tmp_path: Path, decoder: str) -> None:
    loaded = sottovoce.load(binned_run, decoder)
    assert loaded.num_channels == 16
    assert loaded.sessions == ("t15.2023.08.11", "t15.2023.08.13")
    for trial_id, record in written_by_decode(binned_run, tiny_t15, tmp_path / "out", "--decoder", decoder).items():
        found = loaded.decode(features_of(tiny_t15, trial_id), session=record["session"])
        assert list(loaded.run.table.decode(found.symbols)) == record["symbols"]
        assert found.text == record["text"]
        assert [word.text for word in found.words] == [word["text"] for word in record["words"]]


def test_waveforms_of_another_rate_as_decode_does(sound_run: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = sound_run
    loaded = sottovoce.load(run)
    assert (loaded.num_channels, loaded.sessions) == (None, ())
    for name, record in list(written_by_decode(run, data, tmp_path / "out").items())[::6]:
        samples, rate = soundfile.read(data / name, dtype="float32")
        found = loaded.decode(samples, sample_rate_hz=rate)
        (word,) = found.words
        assert found.text == record["text"] == word.text
        assert word.confidence == pytest.approx(record["words"][0]["confidence"], abs=1e-4)
        times = loaded.seconds(word)
        assert times is not None and 0 <= times[0] < times[1] <= 0.5 + loaded.run.frame_ms / 1000


def test_a_decoder_that_the_run_lacks(binned_run: Path) -> None:
    with pytest.raises(ConfigurationError, match="the model has no transducer"):
        sottovoce.load(binned_run, "transducer")


@pytest.mark.parametrize(
    ("signal", "options", "error", "message"),
    [
        (np.zeros((80, 15)), {}, DataError, r"has the shape \[80, 15\], the model takes \[bins, 16\]"),
        (np.zeros(80), {}, DataError, r"has the shape \[80\]"),
        (np.zeros((80, 16), int), {}, DataError, "holds int64; give floats"),
        (np.full((80, 16), np.nan), {}, DataError, "1280 of the 1280 values of the signal are not finite"),
        (np.zeros((5, 16)), {}, DataError, "the signal has 5 bins, the model needs at least 14"),
        (
            np.zeros((80, 16)),
            {"session": None},
            ConfigurationError,
            r"session=… \(it has t15.2023.08.11, t15.2023.08.13\)",
        ),
        (np.zeros((80, 16)), {"session": "x"}, ConfigurationError, "there is none for 'x'"),
        (np.zeros((80, 16)), {"sample_rate_hz": 50}, ConfigurationError, "have no sample rate"),
    ],
)
def test_binned_features_that_cannot_be_decoded(
    binned_run: Path, signal: np.ndarray, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sottovoce.load(binned_run).decode(signal, **({"session": "t15.2023.08.11"} | options))


@pytest.mark.parametrize(
    ("signal", "rate", "error", "message"),
    [
        (np.zeros((800, 2)), 8000, DataError, r"has the shape \[800, 2\], the model takes a waveform"),
        (np.zeros(800, np.int16), 8000, DataError, "16-bit samples: divide by 32768"),
        (np.zeros(800), None, ConfigurationError, "sample_rate_hz=…"),
        (np.zeros(0), 8000, DataError, "the signal has 0 samples at 8000 Hz, the model needs at least"),
    ],
)
def test_waveforms_that_cannot_be_decoded(
    sound_run: tuple[Path, Path], signal: np.ndarray, rate: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sottovoce.load(sound_run[0]).decode(signal, sample_rate_hz=rate)
