"""The simulator's pronouncing dictionary, which is also the default lexicon where words are made from phonemes."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from sottovoce.core.errors import DataError
from sottovoce.core.symbols import BOUNDARY, PHONEMES
from sottovoce.data.simulate.sentences import words_of

_FILE: Final = "lexicon.txt"


@cache
def load_lexicon() -> dict[str, tuple[str, ...]]:
    """Phonemes of every word (upper case) of the grammar: ARPAbet without stress, one pronunciation each.

    >>> load_lexicon()["HELLO"]
    ('HH', 'AH', 'L', 'OW')
    """
    text = files("sottovoce.data.simulate").joinpath(_FILE).read_text(encoding="ascii")
    lexicon = {}
    for line in text.splitlines():
        word, *phonemes = line.split()
        PHONEMES.encode(phonemes)
        lexicon[word] = tuple(phonemes)
    return lexicon


def pronounce(sentence: str) -> tuple[str, ...]:
    """Symbols of `sentence`: the phonemes of each word, and a word boundary after every word, the last included.

    Raises:
        DataError: a word is not in the lexicon.
    """
    lexicon = load_lexicon()
    symbols: list[str] = []
    for word in words_of(sentence):
        if word.upper() not in lexicon:
            raise DataError(f"{word!r} in {sentence!r} is not in the lexicon of {len(lexicon)} words ({_FILE})")
        symbols += [*lexicon[word.upper()], BOUNDARY]
    return tuple(symbols)
