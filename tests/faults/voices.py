"""A small folder of recordings: three invented speakers, four words, each a chord that glides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 8000
WORDS = {"one": (400, 700), "two": (900, 500), "three": (600, 1500), "four": (1800, 1200)}
"""Frequencies in Hz that each word glides between."""
SPEAKERS = {"ada": 1.0, "ben": 0.8, "cleo": 1.25}
"""What each speaker multiplies them by."""
TAKES = 8


def write_recordings(folder: Path) -> None:
    """WAV files and their manifest."""
    generator = np.random.default_rng(0)
    rows = ["file,speaker,word"]
    folder.mkdir(parents=True)
    for speaker, factor in SPEAKERS.items():
        for word, (first, last) in WORDS.items():
            for take in range(TAKES):
                seconds = 0.35 + 0.15 * generator.random()
                time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
                pitch_hz = np.linspace(first * factor, last * factor, len(time_s))
                phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ
                tone = np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.05 * generator.standard_normal(len(time_s))
                name = f"{speaker}_{word}_{take}.wav"
                soundfile.write(folder / name, (0.3 * tone).astype(np.float32), RATE_HZ)
                rows.append(f"{name},{speaker},{word}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
