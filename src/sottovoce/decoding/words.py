"""The words of a lexicon compete by their exact CTC probability."""

from __future__ import annotations

from dataclasses import dataclass

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.hypothesis import Candidate, Hypothesis, Word
from sottovoce.core.symbols import SymbolTable
from sottovoce.decoding.decoder import Decoder, DecoderParts
from sottovoce.decoding.emissions import Emissions
from sottovoce.decoding.greedy import greedy_symbols
from sottovoce.decoding.lexicon import Lexicon, decode_words


@dataclass(frozen=True)
class WordsConfig:
    """The section `decoding.words`."""

    shortlist: int = 200
    """Entries of the lexicon that are scored for a word: those nearest to its greedy symbols by edit distance."""
    alternatives: int = 5
    """Words in the n-best list of a trial that is one word."""

    needs = None

    def __post_init__(self) -> None:
        for name in ("shortlist", "alternatives"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"decoding.words.{name}={getattr(self, name)}: must be at least 1")

    @property
    def in_training(self) -> WordsConfig:
        """The same."""
        return self

    def with_beam(self, beam_size: int) -> None:
        """It keeps no beam."""

    def build(self, parts: DecoderParts) -> Decoder:
        """The decoder of this lexicon.

        Raises:
            ConfigurationError: there is no lexicon.
        """
        if parts.lexicon is None:
            raise ConfigurationError("the decoder 'words' needs a lexicon: train with data.lexicon=FILE, or use greedy")
        return WordsDecoder(self, parts.table, parts.lexicon, parts.isolated_words)


@dataclass(frozen=True)
class WordsDecoder(Decoder):
    """The lexicon's most probable word for every stretch between word boundaries.

    The symbols are those of the greedy path. A word's confidence is its posterior among the words scored.
    """

    config: WordsConfig
    table: SymbolTable
    lexicon: Lexicon
    isolated_words: bool

    name = "words"
    needs = None

    def decode(self, emissions: Emissions) -> Hypothesis:
        """The score is the words' log-probability; an n-best list where the trial is one word."""
        said = greedy_symbols(emissions, self.table)
        boundary = None if self.isolated_words else self.table.boundary
        config = self.config
        words = decode_words(
            emissions.log_probs_SV, self.lexicon, boundary, self.table.blank, config.shortlist, config.alternatives
        )
        alternatives = words[0].alternatives if self.isolated_words and words else ()
        return Hypothesis(
            said.symbols,
            len(emissions),
            said.blank_frames,
            " ".join(word.word for word in words),
            sum(word.log_prob for word in words),
            tuple(Word(word.word, word.start_frame, word.end_frame, word.confidence) for word in words),
            tuple(Candidate(self.lexicon.first_pronunciation(word), word, nats) for word, nats in alternatives),
        )
