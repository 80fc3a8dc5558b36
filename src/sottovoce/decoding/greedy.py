"""Greedy CTC decoding: the best symbol of every frame, repeats merged, then blanks dropped.

The order matters: dropping blanks first would merge a symbol that was spoken twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from sottovoce.core.hypothesis import Hypothesis, Word
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.trial import valid_mask
from sottovoce.decoding.alignment import Span
from sottovoce.decoding.decoder import Decoder, DecoderParts
from sottovoce.decoding.emissions import Emissions
from sottovoce.decoding.lexicon import Lexicon
from sottovoce.decoding.spelling import spelled_words


@dataclass(frozen=True)
class GreedyConfig:
    """The section `decoding.greedy`: nothing can be set."""

    needs = None

    @property
    def in_training(self) -> GreedyConfig:
        """The same."""
        return self

    def with_beam(self, beam_size: int) -> None:
        """It keeps no beam."""

    def build(self, parts: DecoderParts) -> Decoder:
        """The decoder."""
        return GreedyDecoder(parts.table, parts.lexicon)


@dataclass(frozen=True)
class GreedyDecoder(Decoder):
    """CTC's most probable symbol in every frame.

    Letters are spelled; phonemes give the lexicon's nearest pronunciation, where there is a lexicon.
    """

    table: SymbolTable
    lexicon: Lexicon | None

    name = "greedy"
    needs = None

    def decode(self, emissions: Emissions) -> Hypothesis:
        """Words with their times: from the first frame of the first symbol to the last frame of the last."""
        said = greedy_symbols(emissions, self.table)
        texts = spelled_words(said.symbols, self.table, self.lexicon)
        return Hypothesis(
            said.symbols,
            len(emissions),
            said.blank_frames,
            None if texts is None else " ".join(texts),
            words=tuple(_words(texts or [], said.spans, self.table)),
        )


@dataclass(frozen=True)
class GreedySymbols:
    """CTC's best path of one trial."""

    spans: tuple[Span, ...]
    """Each symbol with its frames."""
    blank_frames: int
    """Frames whose best symbol is the blank."""

    @property
    def symbols(self) -> tuple[int, ...]:
        """The symbols alone."""
        return tuple(span.symbol for span in self.spans)


def greedy_symbols(emissions: Emissions, table: SymbolTable) -> GreedySymbols:
    """The best path of a trial.

    Raises:
        ConfigurationError: the emissions are of another symbol table.
    """
    emissions.check_table(table)
    best_S = emissions.log_probs_1SV[0].argmax(dim=-1)
    return GreedySymbols(tuple(greedy_spans(best_S, table.blank)), int((best_S == table.blank).sum()))


def greedy_spans(best_S: torch.Tensor, blank: int = 0) -> list[Span]:
    """The symbols that the best symbols of the frames say, each with its frames: repeats merged, then blanks dropped.

    >>> greedy_spans(torch.tensor([5, 5, 0, 5]))
    [Span(symbol=5, start=0, end=2), Span(symbol=5, start=3, end=4)]
    """
    merged, counts = torch.unique_consecutive(best_S, return_counts=True)
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    every = (Span(*found) for found in zip(merged.tolist(), starts, ends, strict=False))
    return [span for span in every if span.symbol != blank]


def greedy_ctc(log_probs_BSV: torch.Tensor, lengths_B: torch.Tensor, blank: int = 0) -> list[list[int]]:
    """Symbol ids of each trial, read from its valid frames; logits serve as well as log-probabilities.

    >>> frames = torch.eye(8)[[5, 5, 0, 5, 7]]
    >>> greedy_ctc(frames[None], torch.tensor([5]))
    [[5, 5, 7]]
    """
    best_BS = log_probs_BSV.argmax(dim=-1).cpu()
    trials = zip(best_BS, lengths_B.tolist(), strict=True)
    return [[span.symbol for span in greedy_spans(best_S[:length], blank)] for best_S, length in trials]


def blank_frames(log_probs_BSV: torch.Tensor, lengths_B: torch.Tensor, blank: int = 0) -> torch.Tensor:
    """int64 [B]: how many valid frames of each trial have the blank as their best symbol."""
    valid_BS = valid_mask(lengths_B.to(log_probs_BSV.device), log_probs_BSV.shape[1])
    return ((log_probs_BSV.argmax(dim=-1) == blank) & valid_BS).sum(dim=1)


def blank_fraction(log_probs_BSV: torch.Tensor, lengths_B: torch.Tensor, blank: int = 0) -> float:
    """Share of the batch's valid frames whose best symbol is the blank, in [0, 1]; NaN without valid frames."""
    return float(blank_frames(log_probs_BSV, lengths_B, blank).sum() / lengths_B.sum().to(log_probs_BSV.device))


def _words(texts: Sequence[str], spans: Sequence[Span], table: SymbolTable) -> Iterator[Word]:
    """Each word with the frames of its symbols."""
    spoken = (span for span in spans if span.symbol != table.boundary)
    pieces = table.words([span.symbol for span in spans])
    for text, piece in zip(texts, pieces, strict=False):
        of_word = list(islice(spoken, len(piece)))
        yield Word(text, of_word[0].start, of_word[-1].end)
