"""What the museum has shown: share of faults whose cause was named first, and which cause was taken for which.

`python -m tests.faults.table RECORD` prints it as Markdown, and ends with 1 where the museum shows less than is asked.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.faults.stories import STORIES

LEAST_NAMED: Final = 0.9
"""Share of the injected faults whose cause is named first."""
LEAST_ROWS: Final = 50
"""Rows of the catalogue of failures that are injected."""
LEAST_HEALTHY: Final = 20
"""Healthy runs."""
MOST_ERRORS: Final = 0
MOST_WARNINGS: Final = 1
"""In all healthy runs together."""
Line = dict[str, Any]
"""What `scene.record` writes of an exhibit or a healthy run (whose code is empty)."""


def main(record: Path) -> int:
    """Print the figures of one pass through the museum; 1 where they fall short of what is asked."""
    lines: list[Line] = []
    if record.exists():
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    faults, healthy = [line for line in lines if line["code"]], [line for line in lines if not line["code"]]
    injected = [line for line in faults if not line["doctored"]]
    doctored = [line for line in faults if line["doctored"]]
    named, rows, alarms = sum(map(_is_right, injected)), _rows(injected), Counter(map(_severity, _alarms(healthy)))
    print(f"{named} of {len(injected)} injected faults named first ({_share(injected):.1%}), of {len(rows)} rows")
    print(f"{sum(map(_is_right, doctored))} of {len(doctored)} doctored records named first, counted apart")
    print(f"{len(healthy)} healthy runs: {alarms['error']} errors, {alarms['warning']} warnings {_alarms(healthy)}\n")
    _print_tables(faults)
    short = shortfalls(lines)
    for line in short:
        print(f"museum: {line}", file=sys.stderr)
    return int(bool(short))


def shortfalls(lines: Sequence[Line]) -> list[str]:
    """Where a pass through the museum shows less than is asked; [] where nowhere. Doctored records do not count."""
    injected = [line for line in lines if line["code"] and not line["doctored"]]
    healthy = [line for line in lines if not line["code"]]
    severities = Counter(map(_severity, _alarms(healthy)))
    asked = (
        (_share(injected) >= LEAST_NAMED, f"{_share(injected):.1%} of faults named first, {LEAST_NAMED:.0%} are asked"),
        (len(_rows(injected)) >= LEAST_ROWS, f"{len(_rows(injected))} rows of the catalogue, {LEAST_ROWS} are asked"),
        (len(healthy) >= LEAST_HEALTHY, f"{len(healthy)} healthy runs, {LEAST_HEALTHY} are asked"),
        (severities["error"] <= MOST_ERRORS, f"{severities['error']} errors in healthy runs, {MOST_ERRORS} allowed"),
        (
            severities["warning"] <= MOST_WARNINGS,
            f"{severities['warning']} warnings in healthy runs, {MOST_WARNINGS} allowed",
        ),
    )
    return [what for reached, what in asked if not reached]


def _print_tables(faults: Sequence[Line]) -> None:
    print("| row | what was injected | its cause | named first |\n|---|---|---|---|")
    for line in faults:
        what = f"{line['name']} (doctored record)" if line["doctored"] else line["name"]
        verdict = "yes" if _is_right(line) else f"`{_first(line)}`"
        print(f"| {line['row']} | {what} | `{line['code']}` | {verdict} |")
    wrong = Counter((line["code"], _first(line)) for line in faults if not _is_right(line))
    print("\n| cause | taken for | times |\n|---|---|---|")
    for (code, other), times in wrong.most_common():
        print(f"| `{code}` | `{other}` | {times} |")
    first = {line["name"]: _first(line) for line in faults}
    print("\n| what the report blames | what is found |\n|---|---|")
    for story in STORIES:
        print(f"| {story.told} | `{first.get(story.exhibit, 'not shown')}` |")


def _first(line: Line) -> str:
    """The code that was named first."""
    return str(line["found"][0][0]) if line["found"] else "nothing"


def _is_right(line: Line) -> bool:
    return _first(line) == line["code"]


def _share(faults: Sequence[Line]) -> float:
    return sum(map(_is_right, faults)) / len(faults) if faults else 0.0


def _rows(faults: Sequence[Line]) -> set[str]:
    return {line["row"] for line in faults} - {"-"}


def _alarms(healthy: Sequence[Line]) -> list[tuple[str, str]]:
    """(code, severity) of everything found in healthy runs."""
    return [(code, severity) for line in healthy for code, severity in line["found"]]


def _severity(alarm: tuple[str, str]) -> str:
    return alarm[1]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
