import pytest

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.symbols import LETTERS, PHONEMES, WFST_INVERSE, WFST_ORDER, symbol_table


def test_phoneme_order_is_the_published_one() -> None:
    assert len(PHONEMES) == 41
    assert PHONEMES.symbols[:4] == ("<blank>", "AA", "AE", "AH")
    assert (PHONEMES.symbols[20], PHONEMES.symbols[31], PHONEMES.symbols[39]) == ("K", "T", "ZH")
    assert PHONEMES.symbols[40] == "|"


@pytest.mark.parametrize("spelling", ["|", " | ", "SIL", "WB"])
def test_every_spelling_of_the_boundary(spelling: str) -> None:
    assert PHONEMES.encode([spelling]) == (40,)


@pytest.mark.parametrize("wrong", ["XX", "<blank>", "AH0", ""])
def test_unknown_symbols_are_errors(wrong: str) -> None:
    with pytest.raises(DataError, match="unknown_symbol"):
        PHONEMES.encode([wrong])


def test_round_trip_and_words() -> None:
    ids = PHONEMES.encode("HH AH L OW | W ER L D |".split())
    assert ids == (16, 3, 21, 25, 40, 36, 12, 21, 9, 40)
    assert PHONEMES.encode(PHONEMES.decode(ids)) == ids
    assert PHONEMES.words(ids) == [(16, 3, 21, 25), (36, 12, 21, 9)]
    assert PHONEMES.words((40, 40, 5)) == [(5,)]
    assert LETTERS.decode(LETTERS.encode("it's|a-b")) == tuple("it's|a-b")


def test_wfst_permutation_and_its_inverse_compose_to_identity() -> None:
    columns = list(range(41))
    moved = [columns[i] for i in WFST_ORDER]
    assert moved[:3] == [0, 40, 1]
    assert [moved[i] for i in WFST_INVERSE] == columns


def test_unknown_table() -> None:
    with pytest.raises(ConfigurationError, match="phonemes, letters"):
        symbol_table("graphemes")
