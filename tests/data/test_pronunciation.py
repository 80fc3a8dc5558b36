from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.data.pronunciation import UnknownSymbolError, read_lexicon, spoken_words, text_labels

HELLO_WORLD = {"hello": ("HH", "AH", "L", "OW"), "world": ("W", "ER", "L", "D")}


def lexicon(tmp_path: Path, text: str | bytes) -> dict[str, tuple[str, ...]]:
    path = tmp_path / "lexicon.dict"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_lexicon(path, PHONEMES)


def test_cmudict_form(tmp_path: Path) -> None:
    words = lexicon(
        tmp_path,
        ";;; a comment\nHELLO  HH AH0 L OW1\nHELLO(2)  HH EH0 L OW1\n\n"
        "read  R EH1 D # past\nread  R IY1 D\n(it)  IH1 T\n",
    )
    assert words == {"hello": ("HH", "AH", "L", "OW"), "read": ("R", "EH", "D"), "(it)": ("IH", "T")}


def test_latin_1_lines_are_read(tmp_path: Path) -> None:
    assert lexicon(tmp_path, "DÉJÀ  D EY1 ZH AA1\n".encode("latin-1")) == {"déjà": ("D", "EY", "ZH", "AA")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a  AH0\nhello\n", "line 2: 'hello' has no pronunciation"),
        ("a  AH0\nb  B IY1\nc  S II1\n", "unknown_symbol: .*line 3: 'II1' of 'c' is not one of the phonemes"),
        ("a  AH0 |\n", r"line 1: '\|' of 'a'"),
        (";;; nothing\n", "holds no word"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        lexicon(tmp_path, text)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unreadable_file: .*none\.dict: No such file"):
        read_lexicon(tmp_path / "none.dict", PHONEMES)


def test_phonemes_have_a_boundary_after_every_word() -> None:
    labels = text_labels("Hello, world!", PHONEMES, HELLO_WORLD, "a.wav")
    assert PHONEMES.decode(labels) == ("HH", "AH", "L", "OW", "|", "W", "ER", "L", "D", "|")


def test_letters_have_a_boundary_between_words_only() -> None:
    labels = text_labels("It’s re-united", LETTERS, None, "a.wav")
    assert "".join(LETTERS.decode(labels)) == "it's|re-united"


def test_text_without_a_word_is_an_empty_target() -> None:
    assert text_labels(" … ", LETTERS, None, "a.wav") == ()
    assert text_labels("", PHONEMES, HELLO_WORLD, "a.wav") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wait—what", ["wait", "what"]),
        ("«Yes», she said…", ["yes", "she", "said"]),
        ("well- that's", ["well", "that's"]),
        ("e\N{COMBINING ACUTE ACCENT}", None),
    ],
)
def test_spoken_words(text: str, words: list[str] | None) -> None:
    if words is None:
        with pytest.raises(UnknownSymbolError, match=r"'é' \(U\+00E9\) in the word"):
            spoken_words(text, "a.wav")
    else:
        assert spoken_words(text, "a.wav") == words


def test_unknown_word_and_letter_name_word_and_trial() -> None:
    with pytest.raises(UnknownSymbolError, match=r"the word 'there' of a\.wav has no pronunciation"):
        text_labels("hello there", PHONEMES, HELLO_WORLD, "a.wav")
    with pytest.raises(UnknownSymbolError, match=r"'5' \(U\+0035\) in the word '5pm' of b\.wav is not a letter"):
        text_labels("at 5pm", LETTERS, None, "b.wav")


def test_phonemes_need_a_lexicon() -> None:
    with pytest.raises(ConfigurationError, match=r"set data\.lexicon=FILE or data\.symbols=letters"):
        text_labels("hello", PHONEMES, None, "a.wav")


@given(st.text(max_size=30))
def test_any_text_becomes_letters_or_a_named_fault(text: str) -> None:
    try:
        labels = text_labels(text, LETTERS, None, "a.wav")
    except UnknownSymbolError as error:
        assert "of a.wav" in str(error)
    else:
        assert LETTERS.blank not in labels
        assert [len(w) for w in LETTERS.words(labels)] == [len(w) for w in spoken_words(text, "a.wav")]
