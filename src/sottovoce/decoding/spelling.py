"""From symbols to the words they spell."""

from __future__ import annotations

from collections.abc import Sequence

from sottovoce.core.symbols import SymbolTable
from sottovoce.decoding.lexicon import Lexicon, nearest_word


def spelled_words(symbols: Sequence[int], table: SymbolTable, lexicon: Lexicon | None = None) -> list[str] | None:
    """A word for each piece of `table.words(symbols)`.

    Letters are joined as they stand; phonemes give the lexicon's nearest pronunciation, and without a lexicon None.

    >>> from sottovoce.core.symbols import LETTERS
    >>> spelled_words(LETTERS.encode("it's|me"), LETTERS)
    ["it's", 'me']
    """
    if table.name == "letters":
        return ["".join(table.decode(word)) for word in table.words(symbols)]
    if lexicon is None:
        return None
    return [nearest_word(word, lexicon) for word in table.words(symbols)]
