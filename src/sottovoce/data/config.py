"""Which trials a run reads and how they become batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sottovoce.core.configuration import MISSING
from sottovoce.core.errors import ConfigurationError
from sottovoce.core.signals import SignalKind

KEYS_WITHOUT_EFFECT: Final[Mapping[SignalKind, tuple[str, ...]]] = {
    SignalKind.BINNED: (
        "augmentation.speed",
        "augmentation.formant",
        "data.held_out_speakers",
        "data.audio_channel",
        "data.val_fraction",
        "data.test_fraction",
    ),
    SignalKind.WAVEFORM: ("data.missing_channel_threshold", "data.channel_stride", "data.max_sessions"),
}
"""By what a recipe accepts: keys that change nothing there, and that only a mistake would set."""


@dataclass(frozen=True)
class DataConfig:
    """Settings of the section `data`."""

    data_root: str = MISSING
    """Folder of the data set: session folders `t15.YYYY.MM.DD`, or a folder of labelled recordings."""
    max_sessions: int | None = None
    """T15: only the first this many sessions in chronological order."""
    symbols: str = "phonemes"
    """Targets: `phonemes` or `letters`."""
    lexicon: str | None = None
    """Pronouncing dictionary (CMUdict form: `WORD  P1 P2 …`); needed for phoneme targets from plain text, and for
    words from phonemes. Absent: the small lexicon of the simulator is used where words are needed."""
    held_out_speakers: tuple[str, ...] = ()
    """Recordings: speakers kept out of training and of model selection; they become the test split."""
    val_fraction: float = 0.1
    """Recordings without a `split` column: share of each speaker's spoken events that becomes the validation split."""
    test_fraction: float = 0.1
    """The same for the test split; not used when speakers are held out."""
    audio_channel: int | None = None
    """Recordings of several channels: the one to read, counted from 0. Absent: the first, and `check` warns."""
    mode_labels: str = "auto"
    """Speaking mode of training trials, where a stage learns it: `known` (stated by the data, or in `mode_file`),
    `pseudo` (estimated from the features of each block, refreshed while the stage goes on) or `auto` (known, else
    pseudo)."""
    mode_file: str | None = None
    """CSV file with the columns session, block, mode (`silent` or `vocalised`), for data that state none."""
    min_sequence_ms: float | None = None
    """Leave out trials shorter than this (mode-ssm: 50); absent: none."""
    max_sequence_ms: float | None = None
    """Leave out trials longer than this (mode-ssm: 30,000); absent: none."""
    missing_channel_threshold: float | None = None
    """Binned features: leave out trials of which a larger share of channels is constant (mode-ssm: 0.1)."""
    on_fault: str = "raise"
    """`raise` stops at the first unusable trial, `skip` leaves such trials out and says which and how many."""
    check: bool = True
    """Read and check every trial before the first step (about 3 ms a trial)."""
    channel_stride: int = 1
    """Binned features: keep every n-th column of the file (a laptop-sized run on 128 of 512: 4)."""
    sessions_per_batch: int = 0
    """Draw each batch from this many sessions (all, where there are fewer), uniformly and with replacement inside a
    session (the official T15 sampler: 4); 0 goes through all trials in shuffled order, each once before any again."""
    use_length_bucketing: bool = False
    """Sort trials by length inside a pool of 8 batches, which keeps padding small."""
    cache_data: bool = False
    """Keep signals in memory once read."""
    num_workers: int = 0
    """Processes that read ahead; 0 reads in the training process."""

    def __post_init__(self) -> None:
        if self.on_fault not in ("raise", "skip"):
            raise ConfigurationError(f"data.on_fault={self.on_fault}: choose raise or skip")
        if self.mode_labels not in ("auto", "known", "pseudo"):
            raise ConfigurationError(f"data.mode_labels={self.mode_labels}: choose auto, known or pseudo")
        if self.mode_labels == "pseudo" and self.mode_file is not None:
            raise ConfigurationError("data.mode_labels=pseudo and data.mode_file contradict each other; drop one")
        if not (0 < self.val_fraction < 1 and 0 <= self.test_fraction < 1 - self.val_fraction):
            raise ConfigurationError(
                "data.val_fraction must lie in (0, 1), data.test_fraction in [0, 1 - val_fraction); "
                f"got {self.val_fraction} and {self.test_fraction}"
            )
        if (self.min_sequence_ms or 0) < 0 or (self.max_sequence_ms or 1) <= (self.min_sequence_ms or 0):
            raise ConfigurationError(
                "data.min_sequence_ms must be at least 0 and data.max_sequence_ms larger; "
                f"got {self.min_sequence_ms} and {self.max_sequence_ms}"
            )
        if not 0 <= (self.missing_channel_threshold or 0) < 1:
            raise ConfigurationError(
                f"data.missing_channel_threshold={self.missing_channel_threshold}: must lie in [0, 1)"
            )
        smallest = {
            "max_sessions": 1,
            "channel_stride": 1,
            "sessions_per_batch": 0,
            "num_workers": 0,
            "audio_channel": 0,
        }
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"data.{name}={value}: must be at least {least}")
