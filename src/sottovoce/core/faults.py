"""Faults: what a check of a data set finds, each with a code that stays put."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from sottovoce.core.errors import DataError

Severity = Literal["error", "warning"]
SHOWN_PER_CODE = 5


@dataclass(frozen=True)
class Fault:
    """One finding: an error makes its trial or file unusable, a warning does not."""

    file: str
    trial: str
    """Trial key inside the file; empty when the fault is the file's."""
    fault: str
    """Code, e.g. `ctc_infeasible`."""
    severity: Severity
    message: str
    """What was found, what was expected, what to do; one line."""
    trial_id: str = ""
    """Id that the trial has in its data set (`Trial.trial_id`); empty when the fault is no single trial's."""

    def as_dict(self) -> dict[str, str]:
        """The fault as `check --json` prints it."""
        return asdict(self)

    def as_error(self, more: str = "") -> DataError:
        """What stops a reader at this fault, its code, file and trial as fields; `more` ends the message."""
        return DataError(self.message + more, code=self.fault, file=self.file, trial=self.trial)

    def __str__(self) -> str:
        where = f"{self.file}:{self.trial}" if self.trial else self.file
        return f"{self.severity}: {where}: {self.fault}: {self.message}"


def summary_lines(faults: Iterable[Fault]) -> list[str]:
    """One line a fault, errors first; of many with the same code and file, the first five and the count.

    Of many files that say the same, again the first five and the count.
    """
    lines: list[str] = []
    in_file, in_words = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for fault in sorted(faults, key=lambda f: f.severity):
        in_file[fault.file, fault.fault] += 1
        if in_file[fault.file, fault.fault] > SHOWN_PER_CODE:
            continue
        in_words[fault.fault, fault.message] += 1
        if in_words[fault.fault, fault.message] <= SHOWN_PER_CODE:
            lines.append(str(fault))
    for (file, code), count in in_file.items():
        if count > SHOWN_PER_CODE:
            lines.append(f"… {file}: {code}: {count - SHOWN_PER_CODE} more of {count}")
    for (code, message), count in in_words.items():
        if count > SHOWN_PER_CODE:
            lines.append(f"… {code}: {message}: {count - SHOWN_PER_CODE} more files of {count}")
    return lines
