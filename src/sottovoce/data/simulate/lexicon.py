"""The simulator's pronouncing dictionary, which is also the default lexicon where words are made from phonemes."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

from sottovoce.core.symbols import PHONEMES
from sottovoce.data.pronunciation import read_lexicon, text_labels


@cache
def load_lexicon() -> dict[str, tuple[str, ...]]:
    """Phonemes of every word (lower case) of the grammar: ARPAbet without stress, one pronunciation each.

    >>> load_lexicon()["hello"]
    ('HH', 'AH', 'L', 'OW')
    """
    with as_file(files("sottovoce.data.simulate").joinpath("lexicon.txt")) as path:
        return read_lexicon(path, PHONEMES)


def pronounce(sentence: str) -> tuple[str, ...]:
    """Symbols of `sentence`: the phonemes of each word, and a word boundary after every word, the last included.

    Raises:
        UnknownSymbolError: a word is not in the lexicon.
    """
    return PHONEMES.decode(text_labels(sentence, PHONEMES, load_lexicon(), "the simulator's grammar"))
