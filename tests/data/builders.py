"""Small files in the layouts of the readers, for tests of readers and checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import soundfile

from sottovoce.core.symbols import PHONEMES

HELLO = PHONEMES.encode("HH AH L OW |".split())


def noise(num_steps: int = 80, channels: int = 512, seed: int = 0) -> npt.NDArray[np.float32]:
    """Standard normal features [T, C]."""
    return np.random.default_rng(seed).standard_normal((num_steps, channels), dtype=np.float32)


def padded(values: Iterable[int], size: int = 500) -> npt.NDArray[np.int32]:
    """`values` and then zeros."""
    values = list(values)
    return np.array(values + [0] * (size - len(values)), dtype=np.int32)


@dataclass
class T15Trial:
    """A sound trial; change a field, or override and drop what is stored."""

    features: npt.NDArray[Any] = field(default_factory=noise)
    labels: tuple[int, ...] = HELLO
    text: str = "Hello."
    block: int = 1
    labelled: bool = True
    stored: Mapping[str, Any] = field(default_factory=dict)
    """Data sets and attributes by name, instead of the sound ones; None leaves one out."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the data set `input_features`: chunks, compression."""

    def write(self, group: h5py.Group, session: str, number: int) -> None:
        """Store the trial in an empty group."""
        data: dict[str, Any] = {"input_features": self.features}
        attributes: dict[str, Any] = {
            "n_time_steps": len(self.features),
            "session": session,
            "block_num": self.block,
            "trial_num": number,
        }
        if self.labelled:
            data |= {"seq_class_ids": padded(self.labels), "transcription": padded(map(ord, self.text))}
            attributes |= {"seq_len": len(self.labels), "sentence_label": self.text}
        for name, value in self.stored.items():
            (data if name in data or isinstance(value, np.ndarray) else attributes)[name] = value
        for name, value in data.items():
            if value is not None:
                options = self.options if name == "input_features" else {}
                group.create_dataset(name, data=value, **options)
        group.attrs.update({name: value for name, value in attributes.items() if value is not None})


def write_t15_file(path: Path, trials: Iterable[T15Trial], session: str = "t15.2023.08.13") -> Path:
    """An HDF5 file with `trials` as trial_0000, trial_0001, …"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, trial in enumerate(trials):
            trial.write(file.create_group(f"trial_{number:04d}"), session, number)
    return path


def write_session(root: Path, session: str, splits: Mapping[str, list[T15Trial]]) -> Path:
    """A session folder with a file for each of `splits`."""
    for split, trials in splits.items():
        write_t15_file(root / session / f"data_{split}.hdf5", trials, session)
    return root / session


def write_sound_folder(root: Path) -> Path:
    """Two sessions with all splits, two trials each; every trial differs in its features and its sentence."""
    texts = iter(f"{''.join(chr(97 + int(d)) for d in str(i))}" for i in range(1, 100))
    seeds = iter(range(100))
    blocks = {"train": 1, "val": 2, "test": 3}
    for session in ("t15.2023.08.13", "t15.2023.08.18"):
        write_session(
            root,
            session,
            {
                split: [
                    T15Trial(noise(seed=next(seeds)), text=next(texts), block=block, labelled=split != "test")
                    for _ in range(2)
                ]
                for split, block in blocks.items()
            },
        )
    return root


def tone(seconds: float = 0.5, rate_hz: int = 8000, level: float = 0.3) -> npt.NDArray[np.float32]:
    """A sine of 440 Hz."""
    return (level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def write_wav(path: Path, samples: npt.NDArray[np.float32] | None = None, rate_hz: int = 8000) -> Path:
    """A 16-bit wav file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), tone(rate_hz=rate_hz) if samples is None else samples, rate_hz, subtype="PCM_16")
    return path
