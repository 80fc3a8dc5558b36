"""What a trial's signal is."""

from __future__ import annotations

from enum import StrEnum


class SignalKind(StrEnum):
    """What a layout stores and a recipe accepts."""

    BINNED = "binned features"
    """[T, C]: features of equal bins, C channels."""
    WAVEFORM = "waveforms"
    """[N]: samples of a recording, from which the front end makes features."""
