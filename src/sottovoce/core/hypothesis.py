"""What a decoder makes of one trial, whatever the decoder and whoever asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """One word of a hypothesis."""

    text: str
    start_frame: int | None = None
    """First encoder frame that says it; None where the decoder does not know."""
    end_frame: int | None = None
    """First encoder frame behind it; None where the decoder does not know."""
    confidence: float | None = None
    """Probability that it is right, in [0, 1], as far as the decoder compares words; None where it compares none."""


@dataclass(frozen=True)
class Candidate:
    """One entry of an n-best list."""

    symbols: tuple[int, ...]
    """As decoded; of a word that competed by its CTC probability, its first pronunciation."""
    text: str | None
    score: float
    """Natural-log score; comparable within one list only."""


@dataclass(frozen=True)
class Hypothesis:
    """What a decoder made of one trial."""

    symbols: tuple[int, ...]
    """Ids in the model's symbol table, word boundaries included."""
    num_frames: int
    """Valid encoder frames."""
    blank_frames: int
    """How many of them have the blank as CTC's best symbol."""
    text: str | None = None
    """The words in one line; None where the decoder gives no words, which makes WER, CER and WRA unknown."""
    score: float | None = None
    """Natural-log score of the decoder; None where it does not compute any."""
    words: tuple[Word, ...] = ()
    """Those of `text`, with their times; empty where the decoder gives no words."""
    n_best: tuple[Candidate, ...] = ()
    """Best first; empty where the decoder keeps one hypothesis."""
