"""Pieces of the page: every text is escaped here, so no name, label or message of a run can become markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from sottovoce.metrics import aligned, percent


def text(value: object) -> str:
    """Any value as harmless text; floats are cut to 6 digits, lists are joined, nothing is a dash."""
    if isinstance(value, list):
        return ", ".join(map(text, value)) or "–"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def card(*parts: str, title: str = "", extra: str = "", kind: str = "") -> str:
    """A box with an optional heading; `extra` is small print beside it."""
    small = f"<small>{text(extra)}</small>" if extra else ""
    heading = f"<h3>{text(title)}{small}</h3>" if title else ""
    return f'<div class="card {kind}">{heading}{"".join(parts)}</div>'


def section(anchor: str, title: str, *parts: str, extra: str = "") -> str:
    """A part of the page that the bar at the top leads to."""
    small = f"<small>{text(extra)}</small>" if extra else ""
    return f'<section id="{anchor}"><h2>{text(title)}{small}</h2>{"".join(parts)}</section>'


def missing(what: str, command: str) -> str:
    """What is not there yet, and the command that makes it."""
    return f'<div class="empty"><p>{text(what)}<br><code>{text(command)}</code></p></div>'


def chip(label: str, kind: str = "") -> str:
    """A small label; `kind` is `good`, `warn`, `bad` or nothing."""
    return f'<span class="chip {kind}">{text(label)}</span>'


def meter(value: float | None, interval: Sequence[float] | None, largest: float, whole: float | None = None) -> str:
    """A track from 0 to `largest` with the value, its interval, and a dashed line at the `whole` set's value."""

    def place(x: float) -> str:
        return f"{100 * min(max(x / largest, 0), 1):.2f}%"

    marks = ""
    if whole is not None:
        marks += f'<i class="whole" style="left:{place(whole)}"></i>'
    if value is not None:
        marks += f'<i class="fill" style="width:{place(value)}"></i>'
        if interval is not None:
            low, high = interval
            width = f"calc({place(high)} - {place(low)})"
            marks += f'<i class="range" style="left:{place(low)};width:{width}"></i>'
        marks += f'<i class="dot" style="left:{place(value)}"></i>'
    return f'<div class="track" aria-hidden="true">{marks}</div>'


def interval_text(interval: Sequence[float] | None) -> str:
    """Both ends of an interval with one unit, e.g. `10.2 – 12.9 %`; empty where there is none."""
    return "" if interval is None else f"{percent(interval[0]).removesuffix(' %')} – {percent(interval[1])}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[int] = frozenset()) -> str:
    """A table of cells that are markup already; columns in `right` are set flush right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        classes = ["num r" if i in right else "" for i in range(len(row))]
        return "".join(f'<{tag} class="{c}">{cell}</{tag}>' for c, cell in zip(classes, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    titles = cells("th", [text(h) for h in head])
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def difference(reference: Sequence[str], hypothesis: Sequence[str], kind: str = "") -> str:
    """The alignment that the error counts come from: said above, decoded below, errors coloured."""
    cells = []
    for said, decoded in aligned(reference, hypothesis):
        if said == decoded:
            cells.append(f'<span class="ok"><b>{text(said)}</b></span>')
        elif decoded is None:
            cells.append(f'<span class="d"><b>{text(said)}</b><i>∅</i></span>')
        elif said is None:
            cells.append(f'<span class="i"><b>∅</b><i>{text(decoded)}</i></span>')
        else:
            cells.append(f'<span class="s"><b>{text(said)}</b><i>{text(decoded)}</i></span>')
    return f'<div class="diff {kind}">{"".join(cells)}</div>'


def difference_key() -> str:
    """How to read `difference`."""
    marks = {
        "substituted": '<span class="s"><b>said</b><i>decoded</i></span>',
        "deleted": '<span class="d"><b>said</b><i>∅</i></span>',
        "inserted": '<span class="i"><b>∅</b><i>decoded</i></span>',
    }
    return '<div class="key">' + "".join(f'<span class="diff">{m}</span>{n}' for n, m in marks.items()) + "</div>"


def settings(values: dict[str, Any]) -> str:
    """A nested mapping as dotted names and values, in columns."""
    rows = "".join(f"<div><span>{text(k)}</span><b>{text(v)}</b></div>" for k, v in _flat(values))
    return f'<div class="settings">{rows}</div>'


def _flat(values: dict[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
