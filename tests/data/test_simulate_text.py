"""Sentences and pronunciations of the simulator."""

from __future__ import annotations

import pytest

from sottovoce.core.errors import DataError
from sottovoce.core.symbols import PHONEMES
from sottovoce.core.text import normalise_text
from sottovoce.data.simulate.lexicon import load_lexicon, pronounce
from sottovoce.data.simulate.sentences import _readings, all_sentences, sentences_of


def test_size_of_the_grammar() -> None:
    sentences = all_sentences()
    assert len(sentences) == len({normalise_text(s) for s in sentences}) >= 2000
    assert len(load_lexicon()) >= 300
    lengths = [len(normalise_text(s).split()) for s in sentences]
    assert min(lengths) >= 3
    assert max(lengths) <= 14


def test_every_word_has_a_pronunciation_and_every_pronunciation_a_use() -> None:
    used = {word for sentence in all_sentences() for word in normalise_text(sentence).split()}
    assert used == set(load_lexicon())


def test_every_phoneme_is_used() -> None:
    used = {phoneme for phonemes in load_lexicon().values() for phoneme in phonemes}
    assert used == set(PHONEMES.printable) - {"|"}


@pytest.mark.parametrize(
    ("word", "phonemes"),
    [
        ("HELLO", "HH AH L OW"),
        ("YESTERDAY", "Y EH S T ER D EY"),
        ("MEASURE", "M EH ZH ER"),
        ("DON'T", "D OW N T"),
        ("THINK", "TH IH NG K"),
    ],
)
def test_pronunciations_are_those_of_cmudict(word: str, phonemes: str) -> None:
    assert " ".join(load_lexicon()[word.lower()]) == phonemes


def test_a_boundary_follows_every_word() -> None:
    assert " ".join(pronounce("Don't know, Anna.")) == "D OW N T | N OW | AE N AH |"


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(DataError, match="the word 'zebra'"):
        pronounce("The zebra.")


def test_choices_and_slots_are_multiplied_out() -> None:
    assert _readings("A [red |]<meal> [b|c]") == [
        f"A {colour}{meal} {end}"
        for colour in ("red ", "")
        for meal in ("breakfast", "lunch", "dinner")
        for end in ("b", "c")
    ]


def test_splits_share_no_sentence_and_leave_none_out() -> None:
    train, val, test = (set(sentences_of(split)) for split in ("train", "val", "test"))
    assert not train & val and not train & test and not val & test
    assert train | val | test == set(all_sentences())
    assert len(val) == len(test) == len(all_sentences()) // 10


def test_sentences_start_with_a_capital_and_end_with_a_mark() -> None:
    assert all(s[0].isupper() and s[-1] in ".?" and s.isascii() and "  " not in s for s in all_sentences())
