"""The one text normaliser: what a sentence is reduced to before word errors are counted."""

from __future__ import annotations

import re

NORMALISER = "nejm-helpers"
"""Name of the rule, printed beside every word error rate."""


def normalise_text(text: str) -> str:
    """`text` in lower case with only letters, apostrophes, hyphens and single spaces.

    The rule is that of `evaluate_model_helpers.py` in Neuroprosthetics-Lab/nejm-brain-to-text; the
    same repository holds two others, which treat hyphens and apostrophes differently.

    >>> normalise_text("Well- that's  it, I'm 'fine'!")
    "well that's it i'm'fine'"
    """
    text = re.sub(r"[^a-zA-Z\- ']", "", text)
    text = text.replace("- ", " ").lower()
    text = text.replace("--", "").replace(" '", "'")
    return " ".join(text.split())


def is_unicode(text: str) -> bool:
    r"""Whether `text` can be written as UTF-8; the name of a file, or a string of JSON, need not be.

    >>> is_unicode("café"), is_unicode("caf\udce9")
    (True, False)
    """
    return all(not "\ud800" <= character <= "\udfff" for character in text)
