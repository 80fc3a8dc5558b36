"""From written text to target symbols: pronouncing dictionaries, and the labels of phonemes and letters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.symbols import BOUNDARY, LETTERS, SymbolTable
from sottovoce.core.text import normalise_text

_PUNCTUATION: Final = frozenset(".,;:!?…¿¡/_")
_APOSTROPHES: Final = str.maketrans(dict.fromkeys("‘’ʼ`´", "'"))
_ALTERNATIVE: Final = re.compile(r".+\(\d+\)")


class UnknownSymbolError(DataError):
    """A text that holds a word without a pronunciation, or a letter outside the table."""


def read_lexicon(path: Path, table: SymbolTable) -> dict[str, tuple[str, ...]]:
    """Word in lower case to its first pronunciation, from a dictionary in the form of CMUdict.

    A line is `WORD  P1 P2 …`; `WORD(2)` is an alternative, which is left out; stress digits are dropped; a line that
    starts with `;;;` and what follows ` #` are comments. Bytes that are not UTF-8 are read as Latin-1 (CMUdict 0.7b).

    Raises:
        DataError: the file cannot be read or holds no word; a line has no pronunciation or a phoneme outside `table`.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        message = f"{path}: {reason}; set data.lexicon to a pronouncing dictionary"
        raise DataError(message, code="unreadable_file") from error
    lexicon: dict[str, tuple[str, ...]] = {}
    for number, raw in enumerate(lines, 1):
        line = _decode(raw).split(" #")[0].strip()
        if not line or line.startswith(";;;"):
            continue
        word, *phonemes = line.split()
        if not phonemes:
            raise DataError(f"{path}, line {number}: {word!r} has no pronunciation; expected `WORD  P1 P2 …`")
        bare = tuple(phoneme.rstrip("012") for phoneme in phonemes)
        outside = [p for p, b in zip(phonemes, bare, strict=True) if b not in table.printable or b == BOUNDARY]
        if outside:
            raise DataError(
                f"{path}, line {number}: {outside[0]!r} of {word!r} is not one of the {table.name} "
                f"({' '.join(table.printable)}); correct the line or remove it",
                code="unknown_symbol",
            )
        if not _ALTERNATIVE.fullmatch(word):
            lexicon.setdefault(word.lower(), bare)
    if not lexicon:
        raise DataError(f"{path} holds no word; expected lines `WORD  P1 P2 …`")
    return lexicon


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def spoken_words(text: str, trial: str) -> list[str]:
    """The words of `text` in lower case, by the rule of word errors, which keeps letters, apostrophes and hyphens.

    Punctuation is dropped. What that rule would delete although it is spoken (digits, signs, letters with accents)
    is an error, not a silent change of the target.

    Raises:
        UnknownSymbolError: such a character; the message names it, its word and `trial`.

    >>> spoken_words("Well, I’m “fine”!", "a.wav")
    ['well', "i'm", 'fine']
    """
    plain = []
    for word in unicodedata.normalize("NFC", text).translate(_APOSTROPHES).split():
        for character in word:
            if character in _PUNCTUATION or unicodedata.category(character) in ("Ps", "Pe", "Pi", "Pf"):
                continue
            if character == '"':
                continue
            if unicodedata.category(character) == "Pd" and character != "-":
                plain.append(" ")
            elif character.lower() in LETTERS.printable and character != BOUNDARY:
                plain.append(character.lower())
            else:
                raise UnknownSymbolError(
                    f"{character!r} (U+{ord(character):04X}) in the word {word!r} of {trial} is not a letter a to z, "
                    "apostrophe or hyphen; spell the word out in the transcript"
                )
        plain.append(" ")
    return normalise_text("".join(plain)).split()


def text_labels(
    text: str, table: SymbolTable, lexicon: Mapping[str, tuple[str, ...]] | None, trial: str
) -> tuple[int, ...]:
    """Target ids of `text`.

    Letters: the words with one boundary between them. Phonemes: each word's pronunciation and one boundary after it,
    the last included.

    Raises:
        UnknownSymbolError: a word that is not in `lexicon`, or a character that is not a letter.
        ConfigurationError: phonemes without a lexicon.
    """
    words = spoken_words(text, trial)
    if table.name == LETTERS.name:
        return table.encode(BOUNDARY.join(words))
    if lexicon is None:
        raise ConfigurationError(
            f"{table.name} from plain text need a pronouncing dictionary: set data.lexicon=FILE or data.symbols=letters"
        )
    symbols: list[str] = []
    for word in words:
        if word not in lexicon:
            raise UnknownSymbolError(
                f"the word {word!r} of {trial} has no pronunciation; add a line for it to the lexicon (data.lexicon), "
                "or set data.symbols=letters"
            )
        symbols += [*lexicon[word], BOUNDARY]
    return table.encode(symbols)
