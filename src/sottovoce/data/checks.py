"""The check of a data set before any training: every trial is read, every fault reported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sottovoce.core.faults import Fault
from sottovoce.data.layout import DataSet, Layout, Reading
from sottovoce.data.layouts import AUTO, named_layout
from sottovoce.data.purpose import Progress, Purpose


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    layout: str
    """Its name."""
    trials: int
    """Trials that were looked at, sound or not."""
    faults: tuple[Fault, ...]
    data_set: DataSet
    """What was checked, for whoever opens it next."""


def fatal_faults(report: CheckReport) -> tuple[Fault, ...]:
    """The faults that make a trial or file unusable."""
    return tuple(fault for fault in report.faults if fault.severity == "error")


def unusable_trials(report: CheckReport) -> dict[str, Fault]:
    """The trials that hold an error, by their ids; each with its first error.

    Errors of a whole file, and of a manifest, name no trial: opening the data set finds those again.
    """
    found: dict[str, Fault] = {}
    for fault in fatal_faults(report):
        if fault.trial_id:
            found.setdefault(fault.trial_id, fault)
    return found


def check_path(
    path: Path,
    layout: str = AUTO,
    purpose: Purpose | None = None,
    max_sessions: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Read every trial of a folder or a single file and report its faults.

    `purpose`: what for; absent: phonemes, and the geometry of the official T15 model. `progress` is called with the
    trials done and their number. In the faults, files are named from `path`. Faults of a folder as a whole (missing
    splits, leaks, duplicates across files) are not looked for in a single file, nor among files that belong to no
    session.

    Raises:
        DataError: `path` does not exist, is empty, or holds no data set of a layout that can be read.
        ConfigurationError: a layout that does not exist.
    """
    found = named_layout(path, layout)
    return check_data_set(found, found.read(path, Reading(max_sessions)), purpose or Purpose(), progress)


def check_data_set(
    layout: Layout, data_set: DataSet, purpose: Purpose, progress: Progress | None = None
) -> CheckReport:
    """The same for a data set whose structure has been read."""
    trials, faults = data_set.check(purpose, progress)
    return CheckReport(layout.name, trials, tuple(faults), data_set)
