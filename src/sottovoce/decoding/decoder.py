"""What every decoder is, and what it is built of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sottovoce.core.hypothesis import Hypothesis
from sottovoce.core.symbols import SymbolTable
from sottovoce.decoding.emissions import Emissions
from sottovoce.decoding.lexicon import Lexicon
from sottovoce.decoding.transducer import Transducer


class Decoder(Protocol):
    """From emissions to hypotheses; no model runs here but the transducer's predictor and joint."""

    @property
    def name(self) -> str:
        """Names the files of its evaluations; another beam is another name."""
        ...

    @property
    def needs(self) -> str | None:
        """The component of the model that has to be trained before it decodes; None: the CTC head, which every model
        has. Emissions for it are computed where somebody's decoder needs them."""
        ...

    def decode(self, emissions: Emissions) -> Hypothesis:
        """The hypothesis of one trial.

        Raises:
            ConfigurationError: the emissions are of another symbol table, or lack the component that is needed.
        """
        ...

    def decode_batch(self, batch: Sequence[Emissions]) -> list[Hypothesis]:
        """The hypothesis of each trial, the same as one by one; a search that is faster over several overrides it."""
        return [self.decode(emissions) for emissions in batch]


class DecoderSection(Protocol):
    """The configuration of one decoder: a frozen dataclass, the section `decoding.NAME`."""

    @property
    def needs(self) -> str | None:
        """As of the decoder: asked before there is a model."""
        ...

    @property
    def in_training(self) -> DecoderSection:
        """The settings to validate with while a run trains, which comes often: without what takes long."""
        ...

    def with_beam(self, beam_size: int) -> DecoderSection | None:
        """The same settings with this beam; None of a decoder that keeps none.

        Raises:
            ConfigurationError: the beam is below 1.
        """
        ...

    def build(self, parts: DecoderParts) -> Decoder:
        """The decoder with these settings.

        Raises:
            ConfigurationError: it needs a part that is not there.
        """
        ...


@dataclass(frozen=True)
class DecoderParts:
    """What a run offers its decoders."""

    table: SymbolTable
    """What the model's outputs stand for."""
    lexicon: Lexicon | None = None
    """The words that there are; None where the run has no vocabulary."""
    isolated_words: bool = False
    """Every trial is one word: the frames are not cut at word boundaries."""
    transducer: Transducer | None = None
    """The model's, where it has one."""
