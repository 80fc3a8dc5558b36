"""What a data set is checked for: the targets, the front end and the model's geometry, where they are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.faults import Severity
from sottovoce.core.lengths import conv_length
from sottovoce.core.symbols import LETTERS, PHONEMES, SymbolTable
from sottovoce.features.config import LogMelConfig

Progress = Callable[[int, int], None]
"""Is told how many trials of how many have been looked at."""
Finding = tuple[str, Severity, str]
"""Code, severity and message of a fault whose place is known."""


@dataclass(frozen=True)
class Patching:
    """Steps that become one frame: the model's geometry that feasibility is judged by."""

    size: int = 14
    stride: int = 4

    def __post_init__(self) -> None:
        if self.size < 1 or self.stride < 1:
            raise ConfigurationError(f"patch size and stride must be at least 1; got {self.size} and {self.stride}")

    def frames(self, num_steps: int) -> int:
        """Frames that come out of `num_steps` steps."""
        return conv_length(num_steps, self.size, self.stride)

    def steps_needed(self, frames: int) -> int:
        """The fewest steps that give `frames` frames."""
        return self.size + (max(frames, 1) - 1) * self.stride


@dataclass(frozen=True)
class Purpose:
    """What the trials are for."""

    symbols: SymbolTable = PHONEMES
    """The targets."""
    lexicon: Mapping[str, tuple[str, ...]] | None = None
    """Pronunciations of words, for phonemes from plain text."""
    patching: Patching = field(default_factory=Patching)
    """Of bins; for waveforms, of the frames of `front_end`, and only where that is known."""
    num_channels: int | None = None
    """Binned features: what every trial must have; None: what most have."""
    front_end: LogMelConfig | None = None
    """Waveforms: None where it is not known."""
    audio_channel: int | None = None
    """Waveforms of several channels: see `data.audio_channel`."""

    def __post_init__(self) -> None:
        if self.audio_channel is not None and self.audio_channel < 0:
            raise ConfigurationError(f"audio channel {self.audio_channel}: channels count from 0")

    @property
    def has_targets_of_texts(self) -> bool:
        """Whether a text can be turned into symbols: letters always, phonemes with a lexicon."""
        return self.symbols.name == LETTERS.name or self.lexicon is not None
