"""The section `decoding` of a configuration: which decoder, and the settings of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from sottovoce.core.errors import ConfigurationError
from sottovoce.decoding.decoder import Decoder, DecoderParts, DecoderSection
from sottovoce.decoding.greedy import GreedyConfig
from sottovoce.decoding.transducer_decoder import TransducerConfig
from sottovoce.decoding.words import WordsConfig


@dataclass(frozen=True)
class DecodingConfig:
    """Settings used for validation while training and by `evaluate` and `decode`.

    Its sections are the decoders that there are: one more is a file beside this one and a field here.
    """

    decoder: str = "greedy"
    """`greedy`: most probable symbols, merged; `words`: the lexicon's most probable word for every stretch between
    word boundaries, by exact CTC probability; `transducer`: search of the transducer (while it is not trained yet,
    validation uses `greedy`)."""
    batch_size: int = 32
    """Trials in one forward pass without gradients."""
    greedy: GreedyConfig = field(default_factory=GreedyConfig)
    """CTC's best symbol of every frame."""
    words: WordsConfig = field(default_factory=WordsConfig)
    """The lexicon's words."""
    transducer: TransducerConfig = field(default_factory=TransducerConfig)
    """The transducer's search."""

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ConfigurationError(f"decoding.decoder={self.decoder}: choose one of {', '.join(DECODERS)}")
        if self.batch_size < 1:
            raise ConfigurationError(f"decoding.batch_size={self.batch_size}: must be at least 1")

    def section(self, name: str | None = None) -> DecoderSection:
        """The settings of the decoder `name`; without a name, of the one that is configured.

        Raises:
            ConfigurationError: there is no such decoder.
        """
        name = name or self.decoder
        if name not in DECODERS:
            raise ConfigurationError(f"there is no decoder {name!r}; choose one of {', '.join(DECODERS)}")
        section: DecoderSection = getattr(self, name)
        return section

    def build(self, parts: DecoderParts, name: str | None = None) -> Decoder:
        """The decoder `name`; without a name, the one that is configured.

        Raises:
            ConfigurationError: there is no such decoder, or it needs a part that is not there.
        """
        return self.section(name).build(parts)

    def with_beam(self, beam_size: int, names: Sequence[str] = ()) -> DecodingConfig:
        """The same with this beam for those of the decoders `names` (absent: the configured one) that keep one.

        Raises:
            ConfigurationError: none of them does, or the beam is below 1.
        """
        chosen = names or (self.decoder,)
        changed: dict[str, Any] = {
            name: section for name in chosen if (section := self.section(name).with_beam(beam_size)) is not None
        }
        if not changed:
            keep_one = [name for name in DECODERS if self.section(name).with_beam(beam_size) is not None]
            raise ConfigurationError(
                f"a beam of {beam_size}: {', '.join(chosen)} keeps none; choose the decoder {' or '.join(keep_one)}"
            )
        return replace(self, **changed)

    def in_training(self) -> DecodingConfig:
        """The same without what takes long: validation comes often."""
        sections: dict[str, Any] = {name: self.section(name).in_training for name in DECODERS}
        return replace(self, **sections)


DECODERS = tuple(entry.name for entry in fields(DecodingConfig) if entry.default_factory is not MISSING)
"""Their names, in the order of the configuration."""
