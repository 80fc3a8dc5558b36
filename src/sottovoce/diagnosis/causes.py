"""The catalogue of causes: one entry a code, in `catalogue/*.toml`; its pages in `docs/failures/` are made from it."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from sottovoce.core.findings import SEVERITIES, Finding, Severity, Source


@dataclass(frozen=True)
class Cause:
    """Why training fails, in words."""

    code: str
    row: str
    """Row of the catalogue of failures that it comes from (A1 to I8); empty for those with none."""
    title: str
    """The cause in one short sentence."""
    severity: Severity
    looks: str
    """What a run shows."""
    why: str
    """The mechanism."""
    fix: str
    """What to do."""
    source: str
    """Where the cause was seen, or the formula comes from."""
    override: str = ""
    """What mends it, where an override does: `key=value`, or several with blanks between, as on a command line."""
    tell_apart: str = ""
    """What tells it from the next likely cause."""
    consequences: tuple[str, ...] = ()
    """Codes of what follows from it: where both are found, this one is the cause."""
    file: str = ""
    """The file of the catalogue that it is in."""


@functools.cache
def causes() -> dict[str, Cause]:
    """Every cause by its code.

    Raises:
        ValueError: two files of the catalogue define one code, or an entry is not as `Cause` says.
    """
    found: dict[str, Cause] = {}
    for file in sorted((resources.files(__package__) / "catalogue").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        for code, entry in tomllib.loads(file.read_text(encoding="utf-8")).items():
            if code in found or entry["severity"] not in SEVERITIES:
                raise ValueError(f"catalogue/{file.name}: {code} is defined twice or has no known severity")
            consequences = tuple(entry.pop("consequences", ()))
            found[code] = Cause(code=code, consequences=consequences, file=file.name, **entry)
    return found


def cause(code: str) -> Cause:
    """The entry of `code`."""
    return causes()[code]


def found(
    code: str,
    evidence: str,
    source: Source,
    *,
    step: int | None = None,
    support: float = 1.0,
    override: str = "",
    fix: str = "",
    severity: Severity | None = None,
    trials: Iterable[str] = (),
) -> Finding:
    """A finding of `code`: what the catalogue says of it, with this evidence.

    `override` and `fix` (advice in words) replace both of the catalogue's where the evidence gives something better;
    `severity` likewise. A note, where nothing is wrong, does not give the catalogue's override.
    """
    entry = cause(code)
    severity = severity or entry.severity
    own = bool(override or fix)
    usual = entry.override if severity != "note" else ""
    return Finding(
        code=code,
        severity=severity,
        evidence=evidence,
        explanation=entry.title,
        advice=fix if own else entry.fix,
        source=source,
        step=step,
        support=support,
        tell_apart=entry.tell_apart,
        override=override if own else usual,
        own_fix=own,
        trials=tuple(trials),
    )


def recorded(event: Mapping[str, Any]) -> Finding:
    """The finding that an event of `events.jsonl` holds, joined to the catalogue again; its step is the event's."""
    return found(
        event["event"],
        event["evidence"],
        event["source"],
        step=event["step"],
        support=event["support"],
        override=event.get("override", ""),
        fix=event.get("advice", ""),
        severity=event["severity"],
        trials=event.get("trials", ()),
    )


def linted(
    code: str,
    evidence: str,
    severity: Severity | None = None,
    *,
    override: str = "",
    fix: str = "",
    support: float = 1.0,
) -> Finding:
    """A finding of the linter."""
    return found(code, evidence, "linter", severity=severity, override=override, fix=fix, support=support)
