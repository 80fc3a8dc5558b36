import pytest

from sottovoce.core.text import normalise_text


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("How does it keep the cost down?", "how does it keep the cost down"),
        ("It's a well-known  fact.", "it's a well-known fact"),
        ("well- that's it", "well that's it"),
        ("yes -- no", "yes - no"),
        ("yes--no", "yesno"),
        ("the dogs' tail", "the dogs' tail"),
        ("rock 'n roll", "rock'n roll"),
        ("\tTabs\nand lines ", "tabsand lines"),
        ("42 things", "things"),
        ("", ""),
    ],
)
def test_the_rule(written: str, compared: str) -> None:
    assert normalise_text(written) == compared
