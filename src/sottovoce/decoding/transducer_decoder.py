"""The transducer's search as a decoder.

Legend: B trials, S encoder frames, H joint size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.hypothesis import Candidate, Hypothesis, Word
from sottovoce.core.symbols import SymbolTable
from sottovoce.decoding.decoder import Decoder, DecoderParts
from sottovoce.decoding.emissions import Emissions
from sottovoce.decoding.greedy import greedy_symbols
from sottovoce.decoding.lexicon import Lexicon
from sottovoce.decoding.spelling import spelled_words
from sottovoce.decoding.transducer import Labels, Transducer, beam_transducer, greedy_transducer


@dataclass(frozen=True)
class TransducerConfig:
    """The section `decoding.transducer`."""

    beam_size: int = 1
    """Hypotheses that the search keeps in a frame; 1: greedy, which is how training validates."""
    max_symbols_per_frame: int = 5
    """The transducer emits at most this many symbols before it goes on to the next frame."""
    length_normalised: bool = False
    """A beam ranks its hypotheses by score / (symbols + 1), which favours long ones."""

    needs = "rnnt_decoder"

    def __post_init__(self) -> None:
        for name in ("beam_size", "max_symbols_per_frame"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"decoding.transducer.{name}={getattr(self, name)}: must be at least 1")

    @property
    def in_training(self) -> TransducerConfig:
        """Greedy search."""
        return replace(self, beam_size=1)

    def with_beam(self, beam_size: int) -> TransducerConfig:
        """With another beam."""
        return replace(self, beam_size=beam_size)

    def build(self, parts: DecoderParts) -> Decoder:
        """The decoder of this model's transducer.

        Raises:
            ConfigurationError: the model has none.
        """
        if parts.transducer is None:
            raise ConfigurationError("the model has no transducer; use the decoder greedy")
        return TransducerDecoder(self, parts.table, parts.lexicon, parts.transducer)


@dataclass(frozen=True)
class TransducerDecoder(Decoder):
    """Search of the transducer; words are spelled as of greedy CTC, without times: the search sums over them."""

    config: TransducerConfig
    table: SymbolTable
    lexicon: Lexicon | None
    head: Transducer

    needs = TransducerConfig.needs

    @property
    def name(self) -> str:
        """`transducer`, with the size of its beam where it has one."""
        return "transducer" if self.config.beam_size == 1 else f"transducer_beam_{self.config.beam_size}"

    def decode(self, emissions: Emissions) -> Hypothesis:
        """A beam gives scores and an n-best list, greedy search neither."""
        (hypothesis,) = self.decode_batch([emissions])
        return hypothesis

    def decode_batch(self, batch: Sequence[Emissions]) -> list[Hypothesis]:
        """The same for several trials; greedy search goes through them together."""
        for emissions in batch:
            emissions.check_table(self.table)
        frames = [_frames(emissions) for emissions in batch]
        config, blank = self.config, self.table.blank
        if config.beam_size == 1:
            padded_BSH = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
            lengths_B = torch.tensor([len(frames_SH) for frames_SH in frames])
            paths = greedy_transducer(padded_BSH, lengths_B, self.head, blank, config.max_symbols_per_frame)
            return [self._hypothesis(emissions, tuple(path)) for emissions, path in zip(batch, paths, strict=True)]
        return [
            self._best_of(emissions, self._search(frames_SH))
            for emissions, frames_SH in zip(batch, frames, strict=True)
        ]

    def _search(self, frames_SH: torch.Tensor) -> list[tuple[Labels, float]]:
        config = self.config
        return beam_transducer(
            frames_SH,
            self.head,
            config.beam_size,
            self.table.blank,
            config.max_symbols_per_frame,
            config.length_normalised,
        )

    def _best_of(self, emissions: Emissions, paths: Sequence[tuple[Labels, float]]) -> Hypothesis:
        path, nats = paths[0]
        n_best = tuple(Candidate(labels, self._text(labels), score) for labels, score in paths)
        return self._hypothesis(emissions, path, nats, n_best)

    def _hypothesis(
        self, emissions: Emissions, symbols: Labels, score: float | None = None, n_best: tuple[Candidate, ...] = ()
    ) -> Hypothesis:
        blank_frames = greedy_symbols(emissions, self.table).blank_frames
        words = spelled_words(symbols, self.table, self.lexicon)
        text = None if words is None else " ".join(words)
        return Hypothesis(
            symbols, len(emissions), blank_frames, text, score, tuple(Word(word) for word in words or ()), n_best
        )

    def _text(self, symbols: Labels) -> str | None:
        words = spelled_words(symbols, self.table, self.lexicon)
        return None if words is None else " ".join(words)


def _frames(emissions: Emissions) -> torch.Tensor:
    """The trial's frames [S, H].

    Raises:
        ConfigurationError: they were not computed.
    """
    if emissions.transducer_SH is None:
        raise ConfigurationError(
            "emissions without the transducer's frames: compute them for this decoder, or use greedy"
        )
    return emissions.transducer_SH
