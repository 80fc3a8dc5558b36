"""Words from CTC log-probabilities: every entry of a lexicon scored exactly, the best one taken.

For closed vocabularies (isolated words, commands) and for symbol models whose words must be real ones. Dimension
legend: S frames, V symbols, N lexicon entries, X = 2U + 1 states of the CTC recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from sottovoce.core.errors import DataError
from sottovoce.core.symbols import SymbolTable

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Lexicon:
    """Words and how each is written in symbols; a word with several pronunciations has several entries.

    >>> from sottovoce.core.symbols import LETTERS
    >>> Lexicon.from_words(["two", "one"], LETTERS.encode).pronunciations[1]
    (15, 14, 5)
    """

    words: tuple[str, ...]
    pronunciations: tuple[tuple[int, ...], ...]
    """Symbol ids of each entry, without word boundary."""

    def __post_init__(self) -> None:
        if not self.words or len(self.words) != len(self.pronunciations):
            raise DataError(
                f"a lexicon needs one pronunciation for each of at least one entry; got {len(self.words)} words and "
                f"{len(self.pronunciations)} pronunciations"
            )
        for word, symbols in zip(self.words, self.pronunciations, strict=True):
            if not symbols:
                raise DataError(
                    f"the lexicon's word {word!r} has a pronunciation without symbols; give it one or drop it"
                )

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_words(cls, words: Iterable[str], spell: Callable[[str], Sequence[int]]) -> Lexicon:
        """One entry for each different word, in the order of first mention, written as `spell` says."""
        different = tuple(dict.fromkeys(words))
        return cls(different, tuple(tuple(spell(word)) for word in different))

    @classmethod
    def from_pronunciations(cls, pronunciations: Mapping[str, Iterable[Sequence[str]]], table: SymbolTable) -> Lexicon:
        """One entry for each pronunciation of each word.

        Raises:
            DataError: a pronunciation is empty or holds a symbol that is not in `table`.
        """
        words, ids = [], []
        for word, variants in pronunciations.items():
            for symbols in variants:
                try:
                    ids.append(table.encode(symbols))
                except DataError as error:
                    raise DataError(f"{error.reason} (the lexicon's word {word!r})", code=error.code) from error
                words.append(word)
        return cls(tuple(words), tuple(ids))

    def subset(self, entries: Iterable[int]) -> Lexicon:
        """The lexicon of these entries only, in the order given."""
        chosen = list(entries)
        return Lexicon(tuple(self.words[i] for i in chosen), tuple(self.pronunciations[i] for i in chosen))

    def first_pronunciation(self, word: str) -> tuple[int, ...]:
        """Symbol ids of the first entry of `word`, which must be there."""
        return self.pronunciations[self.words.index(word)]

    @cached_property
    def _keys(self) -> tuple[str, ...]:
        """Pronunciations as strings with one character a symbol, which rapidfuzz compares fastest."""
        return tuple(_key(symbols) for symbols in self.pronunciations)

    def distances(self, symbols: Sequence[int]) -> npt.NDArray[np.int32]:
        """Edit distance of `symbols` to each entry's pronunciation, [N]."""
        return np.asarray(cdist([_key(symbols)], self._keys, scorer=Levenshtein.distance, dtype=np.int32)[0])


@dataclass(frozen=True)
class DecodedWord:
    """One recognised word."""

    word: str
    start_frame: int
    end_frame: int
    """The frames that were scored are `start_frame` to `end_frame` - 1."""
    log_prob: float
    """Natural logarithm of the CTC probability of the word on these frames, its pronunciations summed."""
    confidence: float
    """Posterior among the words scored (all equally likely beforehand), in [0, 1]."""
    alternatives: tuple[tuple[str, float], ...]
    """The n best words with their log-probabilities, this one first."""


def word_scores(
    log_probs_SV: npt.NDArray[np.floating], lexicon: Lexicon, blank: int = 0, boundary: int | None = None
) -> FloatArray:
    """Natural-log CTC probability of each entry on these frames [N]; -inf where an entry needs more frames.

    The forward recursion of Graves et al. 2006, section 4.1, in float64 for all entries at once.

    Args:
        boundary: a symbol that must follow each entry; None for none.
    """
    tail = () if boundary is None else (boundary,)
    labels = [(*symbols, *tail) for symbols in lexicon.pronunciations]
    lengths_N = np.array([len(symbols) for symbols in labels])
    states_NX = np.full((len(labels), 2 * int(lengths_N.max()) + 1), blank)
    for row, symbols in zip(states_NX, labels, strict=True):
        assert blank not in symbols
        row[1 : 2 * len(symbols) : 2] = symbols
    may_skip_NX = np.zeros(states_NX.shape, bool)  # over the blank between two different labels
    may_skip_NX[:, 3::2] = states_NX[:, 3::2] != states_NX[:, 1:-2:2]

    log_probs = np.asarray(log_probs_SV, np.float64)
    score_NX = np.full(states_NX.shape, -np.inf)
    if len(log_probs):
        score_NX[:, :2] = log_probs[0, states_NX[:, :2]]
    for frame_V in log_probs[1:]:
        skipped = np.where(may_skip_NX[:, 2:], score_NX[:, :-2], -np.inf)
        arrived = score_NX.copy()
        arrived[:, 1:] = _log_add(arrived[:, 1:], score_NX[:, :-1])
        arrived[:, 2:] = _log_add(arrived[:, 2:], skipped)
        score_NX = arrived + frame_V[states_NX]
    entries = np.arange(len(labels))
    return _log_add(score_NX[entries, 2 * lengths_N], score_NX[entries, 2 * lengths_N - 1])


def nearest_word(symbols: Sequence[int], lexicon: Lexicon) -> str:
    """The word whose pronunciation is the fewest edits away from `symbols`; the first of equals."""
    return lexicon.words[int(lexicon.distances(symbols).argmin())]


def decode_words(
    log_probs_SV: npt.NDArray[np.floating],
    lexicon: Lexicon,
    boundary: int | None = None,
    blank: int = 0,
    shortlist: int = 200,
    num_alternatives: int = 5,
) -> list[DecodedWord]:
    """The best word of the lexicon for each piece of the frames.

    Without `boundary` all frames are one word. With it they are cut after each stretch of frames whose best symbol
    is the boundary, and an entry is scored with its boundary where its piece ends in one; pieces whose best
    symbols are all blank or boundary hold no word. A piece with fewer frames than every entry needs gives no word.

    Args:
        shortlist: score only this many entries, those nearest to the piece's greedy symbols by edit distance.
        num_alternatives: how many words to list in `alternatives`.
    """
    best_S = np.asarray(log_probs_SV).argmax(axis=1)
    words = []
    for start, end in _pieces(best_S, boundary):
        symbols = _merge(best_S[start:end], {blank, boundary})
        if boundary is not None and not symbols:
            continue
        closed = boundary is not None and best_S[end - 1] == boundary
        candidates = lexicon
        if len(lexicon) > shortlist:
            candidates = lexicon.subset(lexicon.distances(symbols).argsort(kind="stable")[:shortlist].tolist())
        scores_N = word_scores(log_probs_SV[start:end], candidates, blank, boundary if closed else None)
        ranked = _rank_words(candidates.words, scores_N)
        if ranked:
            total = np.logaddexp.reduce([score for _, score in ranked])
            word, score = ranked[0]
            confidence = float(np.exp(score - total))
            words.append(DecodedWord(word, start, end, score, confidence, tuple(ranked[:num_alternatives])))
    return words


def _rank_words(words: Sequence[str], scores_N: FloatArray) -> list[tuple[str, float]]:
    """Words with a probability above 0, best first, equals in the lexicon's order; pronunciations summed."""
    sums: dict[str, float] = {}
    for word, score in zip(words, scores_N.tolist(), strict=True):
        if score > -np.inf:
            sums[word] = float(np.logaddexp(sums[word], score)) if word in sums else score
    return sorted(sums.items(), key=lambda item: -item[1])


def _pieces(best_S: npt.NDArray[np.intp], boundary: int | None) -> list[tuple[int, int]]:
    """First and past-the-end frame of each piece; a piece ends with the last of a stretch of boundary frames."""
    is_boundary = best_S == (-1 if boundary is None else boundary)
    last = is_boundary & ~np.append(is_boundary[1:], False)
    cuts = [0, *(np.flatnonzero(last) + 1).tolist(), len(best_S)]
    return [(a, b) for a, b in pairwise(cuts) if a < b]


def _merge(best_S: npt.NDArray[np.intp], dropped: set[int | None]) -> list[int]:
    """Greedy symbols of a piece: repeats merged, then blanks and boundaries dropped."""
    changes = np.append(True, best_S[1:] != best_S[:-1])
    return [int(i) for i in best_S[changes] if i not in dropped]


def _key(symbols: Sequence[int]) -> str:
    return "".join(map(chr, symbols))


def _log_add(a: FloatArray, b: FloatArray) -> FloatArray:
    """ln(exp a + exp b); several times as fast as `np.logaddexp`, which is not vectorised."""
    larger = np.maximum(a, b)
    gap = np.minimum(a, b) - np.where(larger == -np.inf, 0.0, larger)
    total: FloatArray = larger + np.log1p(np.exp(gap))
    return total
