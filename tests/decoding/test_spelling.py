"""Words of symbols, by value."""

from __future__ import annotations

from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.decoding.lexicon import Lexicon
from sottovoce.decoding.spelling import spelled_words


def test_letters_are_joined_whatever_the_lexicon() -> None:
    lexicon = Lexicon.from_words(["other"], LETTERS.encode)
    assert spelled_words(LETTERS.encode("it's||me|"), LETTERS) == ["it's", "me"]
    assert spelled_words(LETTERS.encode("it's||me|"), LETTERS, lexicon) == ["it's", "me"]


def test_phonemes_take_the_nearest_word_or_none() -> None:
    lexicon = Lexicon.from_pronunciations({"cat": [["K", "AE", "T"]], "the": [["DH", "AH"]]}, PHONEMES)
    symbols = PHONEMES.encode("DH IH | K AE D |".split())
    assert spelled_words(symbols, PHONEMES, lexicon) == ["the", "cat"]
    assert spelled_words(symbols, PHONEMES) is None
    assert spelled_words((), PHONEMES, lexicon) == []
