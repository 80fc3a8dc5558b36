"""What the commands of the documentation are tried on."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
import yaml

from sottovoce.data.simulate.lexicon import load_lexicon
from tests.data.builders import tone, write_wav

WORDS = ("hello", "water", "help", "please", "coffee", "music")


def write_recordings(folder: str) -> None:
    """Two speakers, six words, three takes each, at 16 kHz, with a manifest."""
    Path(folder).mkdir()
    random = np.random.default_rng(0)
    with (Path(folder) / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["audio", "text", "speaker"])
        for speaker in ("anna", "ben"):
            for word in WORDS:
                for take in range(3):
                    name = f"{speaker}_{word}_{take}.wav"
                    noise = random.standard_normal(8000, dtype=np.float32) / np.float32(100)
                    write_wav(Path(folder) / name, tone(0.5, 16000) + noise, 16000)
                    rows.writerow([name, word, speaker])


def write_lexicon(file: str) -> None:
    """The simulator's words, as CMUdict writes them."""
    lines = [f"{word}  {' '.join(symbols)}\n" for word, symbols in load_lexicon().items()]
    Path(file).write_text("".join(lines), encoding="utf-8")


def write_published(folder: str, channels: int = 512, units: int = 8) -> None:
    """A checkpoint in the published form, with random weights, for the first two simulated days."""
    sessions = ["t15.2023.08.11", "t15.2023.08.13"]
    model = {
        "n_input_features": channels,
        "n_units": units,
        "rnn_dropout": 0.4,
        "rnn_trainable": True,
        "n_layers": 1,
        "patch_size": 14,
        "patch_stride": 4,
        "input_network": {
            "n_input_layers": 1,
            "input_layer_sizes": [channels],
            "input_trainable": True,
            "input_layer_dropout": 0.2,
        },
    }
    torch.manual_seed(0)
    gru, out = torch.nn.GRU(14 * channels, units, 1, batch_first=True), torch.nn.Linear(units, 41)
    state = {f"gru.{name}": value for name, value in gru.state_dict().items()}
    state |= {f"out.{name}": value for name, value in out.state_dict().items()} | {"h0": torch.zeros(1, 1, units)}
    for day in range(len(sessions)):
        state |= {f"day_weights.{day}": torch.eye(channels), f"day_biases.{day}": torch.zeros(1, channels)}
    Path(folder).mkdir(parents=True)
    arguments = {"model": model, "dataset": {"n_classes": 41, "sessions": sessions}}
    (Path(folder) / "args.yaml").write_text(yaml.safe_dump(arguments), encoding="utf-8")
    torch.save({"model_state_dict": state}, Path(folder) / "best_checkpoint")
