"""The pages of `docs/failures/`, made from the catalogue: `python -m sottovoce.diagnosis.pages docs/failures`."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sottovoce.diagnosis.causes import Cause, causes

WIDTH: Final = 120
INDEX: Final = "README.md"
FAMILIES: Final = {
    "A": "Targets, lengths and lattices",
    "B": "Optimiser ownership, scaling and clipping",
    "C": "Number formats",
    "D": "Step size, epsilon and blanks",
    "E": "Several losses",
    "F": "State-space layers, normalisation and recurrences",
    "G": "Metrics, decoding and selection",
    "H": "Data, splits and distillation",
    "I": "Engineering that hides the failure",
}
"""What the letter of a row stands for."""
MEANING: Final = {
    "error": "the run cannot give what it is for",
    "warning": "the run may not give what it is for",
    "note": "nothing is wrong; worth knowing",
}
NO_FAULTS: Final = {
    "F4": (
        "State-space models are unstable",
        "A wrong verdict. Mamba's recurrences have Lyapunov exponents that are never positive (arXiv 2406.00209), so "
        "that the recurrence itself does not explode. What looks like it is "
        "[`ssm_step_size_lost`](ssm_step_size_lost.md), [`learning_rate_too_high`](learning_rate_too_high.md), "
        "[`ssm_low_precision`](ssm_low_precision.md) or [`scan_overflow`](scan_overflow.md), in this order of "
        "suspicion. The one reported explosion (state-spaces/mamba, pull request 962) had a softplus on a "
        "data-dependent A at a high rate.",
    ),
}
"""Rows of the field's list of failures that are no fault of a run: what is said, and what there is to it."""
ALONE: Final = "Nothing else that has a page here: it stands alone."
_SYMPTOMS: Final = "Symptoms, and what a configuration shows"
_DATA: Final = "Faults of the data, as `sottovoce check` reports them"
_DATA_FILE: Final = "data.toml"
_WORD: Final = re.compile(r"(?<![\w`./=-])([a-z0-9_]+)(?![\w`/=(-]|\.\w)")
"""A word that may be a code: no part of a path, a key or a call."""
_KEY: Final = re.compile(
    r"(?<![\w.])((?:data|preprocessor|augmentation|model|training|trainer|decoding)\.[A-Za-z0-9_.]*\w)(=[\w.-]*\w)?(?![\w(])"
)
_NUMBERED: Final = re.compile(r"([A-Z])(\d+)")


def pages() -> dict[str, str]:
    """Every page and the index, by file name."""
    catalogue = causes()
    return {INDEX: _index(catalogue)} | {f"{code}.md": _page(entry, catalogue) for code, entry in catalogue.items()}


def keys_in(text: str) -> list[str]:
    """The configuration keys that `text` names.

    >>> keys_in("Lower training.optimizer.lr, or model.apply(zero).")
    ['training.optimizer.lr']
    """
    return [match[1] for match in _KEY.finditer(text)]


def write_pages(folder: Path) -> int:
    """Write all pages into `folder`, remove those of codes that are gone, and say how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return len(made)


def _page(entry: Cause, catalogue: dict[str, Cause]) -> str:
    def prose(text: str) -> str:
        return _wrapped(_linked(_KEY.sub(r"`\1\2`", text), entry.code, catalogue))

    follows = _listed("Where these are found too, this is the likelier cause:", entry.consequences, catalogue)
    origins = [code for code, other in catalogue.items() if entry.code in other.consequences]
    comes_from = _listed("It can itself follow from:", origins, catalogue)
    sections = {
        "What it is": f"{entry.title}\n\n{_rank(entry)}",
        "How it looks": prose(entry.looks),
        "Why it happens": prose(entry.why),
        "How to fix it": _override(entry) + prose(entry.fix),
        "What tells it from its neighbours": prose(entry.tell_apart),
        "What follows from it": "\n\n".join(part for part in (follows, comes_from) if part) or ALONE,
        "Source": prose(entry.source),
    }
    body = "\n\n".join(f"## {heading}\n{text}" for heading, text in sections.items() if text)
    return f"# `{entry.code}`\n\n{body}\n"


def _rank(entry: Cause) -> str:
    row = f" Row {entry.row} of the [index]({INDEX})." if entry.row else f" See the [index]({INDEX})."
    return _wrapped(f"**{entry.severity.capitalize()}**: {MEANING[entry.severity]}.{row}")


def _override(entry: Cause) -> str:
    return f"```\n{entry.override}\n```\n" if entry.override else ""


def _listed(introduction: str, codes: Iterable[str], catalogue: dict[str, Cause]) -> str:
    lines = [f"- [`{code}`]({code}.md): {catalogue[code].title}" for code in codes]
    return "\n".join([introduction, "", *lines]) if lines else ""


def _linked(text: str, here: str, catalogue: dict[str, Cause]) -> str:
    """`text` with every code but that of the page itself as a link."""

    def link(match: re.Match[str]) -> str:
        code = match[1]
        return f"[`{code}`]({code}.md)" if code in catalogue and code != here else code

    return _WORD.sub(link, text)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _index(catalogue: dict[str, Cause]) -> str:
    lines = [
        "# Why training fails",
        "",
        _wrapped(
            "One page a code: the causes, symptoms and faults that sottovoce names before, during and after training. "
            "A finding's message ends with the command that prints its page, `sottovoce diagnose --explain CODE`. The "
            "pages are made from "
            "`src/sottovoce/diagnosis/catalogue/` by `make pages`; edit them there."
        ),
        "",
        _wrapped(
            "An **error** means that the run cannot give what it is for, a **warning** that it may not, a **note** "
            "that nothing is wrong. Figures called measured were taken on a CPU with PyTorch 2.13, unless a page says "
            "otherwise; those called second hand were reported by others and not repeated."
        ),
    ]
    for letter, family in FAMILIES.items():
        rows = {entry.row: _row(entry) for entry in catalogue.values() if entry.row.startswith(letter)}
        rows |= {
            row: f"| {row} | “{said}” | – | no fault, see below |"
            for row, (said, _) in NO_FAULTS.items()
            if row[0] == letter
        }
        lines += _table(f"{letter}. {family}", [rows[row] for row in sorted(rows, key=_place)], "row")
    unplaced = [entry for entry in catalogue.values() if not entry.row]
    for heading, from_data in ((_SYMPTOMS, False), (_DATA, True)):
        lines += _table(heading, [_row(e) for e in unplaced if (e.file == _DATA_FILE) == from_data])
    lines += ["", "## What is no fault of a run"]
    for row, (said, truth) in NO_FAULTS.items():
        lines += ["", _wrapped(f"**{row}, “{said}”.** {truth}")]
    return "\n".join(lines) + "\n"


def _table(heading: str, rows: list[str], first: str = "") -> list[str]:
    columns = [first] if first else []
    titles = [*columns, "cause" if first else "what", "severity", "page"]
    return ["", f"## {heading}", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *rows]


def _row(entry: Cause) -> str:
    cells = [entry.row] if entry.row else []
    return f"| {' | '.join([*cells, entry.title, entry.severity, f'[`{entry.code}`]({entry.code}.md)'])} |"


def _place(row: str) -> tuple[str, int]:
    match = _NUMBERED.fullmatch(row)
    assert match is not None, row
    return match[1], int(match[2])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m sottovoce.diagnosis.pages FOLDER")
    print(f"{write_pages(Path(sys.argv[1]))} pages in {sys.argv[1]}")
