"""What a layout of data sets is: one record that recognises a path and reads its structure.

A layout is added by one file with such a record and its place in `layouts.LAYOUTS`; readers, checks, the command line,
training and diagnosis ask the record and name no layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.signals import SignalKind
from sottovoce.core.splits import Split
from sottovoce.core.trial import TrialSet
from sottovoce.data.config import DataConfig
from sottovoce.data.purpose import Progress, Purpose
from sottovoce.features.config import PreprocessorConfig


class OpenedTrials(TrialSet, Protocol):
    """Trials of some splits of a data set, ready to be read."""

    skipped: tuple[Fault, ...]
    """Why trials or files were left out (`data.on_fault=skip`)."""


class DataSet(Protocol):
    """A data set whose structure (files, sessions, splits, trials with their ids) is read once, for check and open.

    Both name a trial by the same id (`Fault.trial_id`, `Trial.trial_id`) and a file by its path from the data set's
    folder (`Fault.file`).
    """

    def check(self, purpose: Purpose, progress: Progress | None) -> tuple[int, list[Fault]]:
        """Read every trial: their number, sound or not, and every fault."""
        ...

    def open(
        self, splits: Sequence[Split], config: DataConfig, preprocessor: PreprocessorConfig, seed: int
    ) -> OpenedTrials:
        """The trials of `splits`; `seed` decides what the data leave to chance (a split that no manifest states).

        Raises:
            DataError: there is no trial, or (unless `on_fault=skip`) one or its description is unusable.
            ConfigurationError: a setting contradicts the data.
        """
        ...


@dataclass(frozen=True)
class Reading:
    """How much of a data set is read; every layout takes what it knows."""

    max_sessions: int | None = None
    """Only the first this many sessions."""
    unlabelled: bool = False
    """Every recording is a test trial, whatever its text."""
    pronunciations: Mapping[str, tuple[str, ...]] | None = None
    """Of words, from where targets are made from text; they stand in for the file `data.lexicon`."""


def _not_read(path: Path, reading: Reading) -> DataSet:
    raise DataError(f"{path} is of a layout that this version does not read", code="not_this_layout")


@dataclass(frozen=True)
class Layout:
    """One way to store trials."""

    name: str
    """What a check calls it."""
    family: str
    """What `check --layout` insists on; several forms of one layout share it."""
    what: str
    """In words, e.g. `a T15 data set`."""
    marks: str
    """What it is recognised by, in words, e.g. `folders t15.YYYY.MM.DD`."""
    signal: SignalKind
    is_folder: Callable[[Path], bool] = lambda folder: False
    """Whether a folder holds this layout, from the names of its files and folders; no file is opened."""
    suffixes: frozenset[str] = frozenset()
    """Endings (in small letters) of the files that are this layout by themselves."""
    read: Callable[[Path, Reading], DataSet] = _not_read
    """The structure of what is at a path."""
    recipe: str = ""
    """A shipped recipe that trains on it; empty where it can only be checked."""
    give: str = ""
    """What to give as `data.data_root` to train on it."""
    unread: str = ""
    """Of a layout that is known but that this version does not read: that, and what to do instead."""
    stored_symbols: str = ""
    """Name of the symbols that its labels are stored in; empty where targets are made from the text."""

    @property
    def looks_like(self) -> str:
        """In words, with what it is recognised by."""
        return f"{self.what} ({self.marks})"


def holds_file(folder: Path, suffixes: frozenset[str], depth: int | None) -> bool:
    """Whether a file with one of `suffixes` is at most `depth` folders deep (1: in `folder` itself; None: anywhere)."""
    below = (
        folder.rglob("*") if depth is None else (p for n in range(depth) for p in folder.glob("/".join("*" * (n + 1))))
    )
    return any(p.suffix.lower() in suffixes and p.is_file() for p in below)
