"""Symbol tables: the only copy of each vocabulary and its order.

The phoneme order is that of the T12 and T15 data sets (Neuroprosthetics-Lab/nejm-brain-to-text,
`evaluate_model_helpers.py`): the index is the logit column, 0 is the CTC blank, 40 the word boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from sottovoce.core.errors import ConfigurationError, DataError

BLANK: Final = "<blank>"
BOUNDARY: Final = "|"
BOUNDARY_SPELLINGS: Final = frozenset({"|", " | ", "SIL", "WB"})
"""The word boundary has three names in public code; every reader of text accepts all of them."""


@dataclass(frozen=True)
class SymbolTable:
    """An ordered vocabulary; a symbol's index is its logit column.

    >>> PHONEMES.encode(["HH", "AH", "L", "OW", "|"])
    (16, 3, 21, 25, 40)
    >>> PHONEMES.decode([16, 3])
    ('HH', 'AH')
    """

    name: str
    symbols: tuple[str, ...]
    blank: int
    boundary: int

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def index(self) -> dict[str, int]:
        """Symbol to id, with every spelling of the word boundary."""
        index = {symbol: i for i, symbol in enumerate(self.symbols)}
        return index | dict.fromkeys(BOUNDARY_SPELLINGS, self.boundary)

    def encode(self, symbols: Iterable[str]) -> tuple[int, ...]:
        """Ids of `symbols`.

        Raises:
            DataError: a symbol is not in the table, or is the blank (a label never holds one).
        """
        ids = []
        for symbol in symbols:
            found = self.index.get(symbol)
            if found is None or found == self.blank:
                allowed = " ".join(self.printable)
                raise DataError(f"{symbol!r} is not one of the {self.name} ({allowed})", code="unknown_symbol")
            ids.append(found)
        return tuple(ids)

    def decode(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Symbols of `ids`, the word boundary printed as `|`."""
        return tuple(self.symbols[i] for i in ids)

    @property
    def printable(self) -> tuple[str, ...]:
        """Every symbol a label may hold."""
        return tuple(s for i, s in enumerate(self.symbols) if i != self.blank)

    def words(self, ids: Sequence[int]) -> list[tuple[int, ...]]:
        """`ids` cut at the word boundaries, which are dropped; empty pieces are left out."""
        words: list[tuple[int, ...]] = []
        piece: list[int] = []
        for i in (*ids, self.boundary):
            if i != self.boundary:
                piece.append(i)
            elif piece:
                words.append(tuple(piece))
                piece = []
        return words


_ARPABET = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P "
    "R S SH T TH UH UW V W Y Z ZH"
).split()  # fmt: skip

PHONEMES: Final = SymbolTable("phonemes", (BLANK, *_ARPABET, BOUNDARY), blank=0, boundary=40)
"""41 classes: blank, 39 ARPAbet phonemes without stress, word boundary. One boundary follows every word."""

LETTERS: Final = SymbolTable("letters", (BLANK, *"abcdefghijklmnopqrstuvwxyz'-", BOUNDARY), blank=0, boundary=29)
"""30 classes: blank, a to z, apostrophe, hyphen, word boundary. The boundary stands between words only."""

TABLES: Final = {table.name: table for table in (PHONEMES, LETTERS)}

WFST_ORDER: Final = (0, 40, *range(1, 40))
"""Columns of our logits in the order of the public WFST decoders: blank, boundary, AA … ZH."""

WFST_INVERSE: Final = tuple(WFST_ORDER.index(i) for i in range(len(WFST_ORDER)))
"""`x[..., WFST_ORDER][..., WFST_INVERSE]` is `x`."""


def symbol_table(name: str) -> SymbolTable:
    """The table called `name` (`phonemes` or `letters`).

    Raises:
        ConfigurationError: there is no such table.
    """
    if name not in TABLES:
        raise ConfigurationError(f"there is no symbol table {name!r}; choose one of {', '.join(TABLES)}")
    return TABLES[name]
