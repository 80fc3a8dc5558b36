"""The structure of T15 data: sessions, files, and the trials of each file with their ids; no feature is read."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault, Severity
from sottovoce.core.splits import SPLITS, Split
from sottovoce.data.t15_file import LABEL_ITEMS, SPIKES, StoredTrial, read_stored_trials

SESSION_NAME: Final = re.compile(r"t15\.\d{4}\.\d{2}\.\d{2}")
HDF5_SUFFIXES: Final = frozenset({".hdf5", ".h5"})
DESCRIPTION_FILE: Final = "t15_copyTaskData_description.csv"
GROUND_TRUTH_FILE: Final = "ground_truth.jsonl"
EVERY_TRIAL: Final = "all"
"""Stands for a trial in a fault that every trial of a file has."""
_Mode = Literal["silent", "vocalised", ""]


@dataclass(frozen=True)
class T15File:
    """One file; its trials are read once, when somebody asks for them."""

    path: Path
    name: str
    """What it is called in faults: its path from the data set's folder."""
    session: str | None
    """Folder name; None for a file on its own, whose trials name their session themselves."""
    split: Split | None
    """None: by its labels, a file without any is taken for a test file."""

    @cached_property
    def _stored(self) -> tuple[tuple[StoredTrial, ...], tuple[Fault, ...]]:
        trials, unreadable = read_stored_trials(self.path)
        return tuple(trials), tuple(self.fault(key, *finding) for key, finding in unreadable)

    @property
    def trials(self) -> tuple[StoredTrial, ...]:
        """What could be read, in the numeric order of the groups."""
        return self._stored[0]

    @property
    def unreadable(self) -> tuple[Fault, ...]:
        """What could not: groups, or the file as a whole."""
        return self._stored[1]

    @property
    def split_of_trials(self) -> Split:
        """The stated split, or what the labels say."""
        if self.split is not None:
            return self.split
        labelled = any(item in trial.items for trial in self.trials for item in LABEL_ITEMS)
        return "train" if labelled or any(t.features == SPIKES for t in self.trials) else "test"

    def trial_id(self, key: str) -> str:
        """The id of the trial in group `key`, e.g. `t15.2023.08.13/val/trial_0007`."""
        return f"{self.name}/{key}" if self.session is None else f"{self.session}/{self.split}/{key}"

    def fault(self, key: str, code: str, severity: Severity, message: str) -> Fault:
        """A fault of the trial in group `key`; with an empty key or `EVERY_TRIAL`, of the file."""
        trial_id = "" if key in ("", EVERY_TRIAL) else self.trial_id(key)
        return Fault(self.name, key, code, severity, message, trial_id)


@dataclass(frozen=True)
class T15Structure:
    """Which sessions and files there are."""

    root: Path
    sessions: tuple[Path, ...]
    """Session folders in chronological order; none of single files."""
    files: tuple[T15File, ...]
    """Every file that is there, by session and then by split."""

    @property
    def data_root(self) -> Path:
        """The folder that holds the session folders; the descriptions of blocks and modes lie in it."""
        return self.sessions[0].parent


def find_sessions(path: Path) -> list[Path]:
    """Session folders in chronological order: children of `path`, of its one child that holds any, or `path` itself."""
    if SESSION_NAME.fullmatch(path.name) and any(split_file(path, split).exists() for split in SPLITS):
        return [path]
    children = sorted(child for child in path.iterdir() if child.is_dir())
    sessions = [child for child in children if SESSION_NAME.fullmatch(child.name)]
    if sessions:
        return sessions
    below = [[g for g in sorted(c.iterdir()) if g.is_dir() and SESSION_NAME.fullmatch(g.name)] for c in children]
    holding = [found for found in below if found]
    return holding[0] if len(holding) == 1 else []


def split_file(session: Path, split: Split) -> Path:
    """Where a session keeps a split."""
    return session / f"data_{split}.hdf5"


def read_t15(root: Path, max_sessions: int | None = None) -> T15Structure:
    """The first `max_sessions` sessions of a T15 folder.

    Raises:
        DataError: there is no session.
    """
    sessions = find_sessions(root)[:max_sessions]
    if not sessions:
        message = f"{root} holds no folder t15.YYYY.MM.DD; set data.data_root to one that does"
        raise DataError(message, code="not_this_layout")
    files = [
        T15File(path, path.relative_to(root).as_posix(), folder.name, split)
        for folder in sessions
        for split in SPLITS
        if (path := split_file(folder, split)).exists()
    ]
    return T15Structure(root, tuple(sessions), tuple(files))


def read_t15_files(path: Path) -> T15Structure:
    """One file of the T15 layout, or those in a folder that belong to no session."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in HDF5_SUFFIXES)
    return T15Structure(path, (), tuple(T15File(file, file.name, None, _stated_split(file)) for file in files))


def _stated_split(file: Path) -> Split | None:
    return next((split for split in SPLITS if file.stem == f"data_{split}"), None)


def duplicate_number_faults(files: Iterable[T15File]) -> list[Fault]:
    """One fault for each (session, block, trial number) that comes again."""
    first: dict[tuple[str, int, int], tuple[T15File, StoredTrial]] = {}
    faults = []
    for file, trial in ((each, trial) for each in files for trial in each.trials):
        session = file.session or trial.session or file.name
        if trial.block is None or trial.number is None:
            continue
        earlier_file, earlier = first.setdefault((session, trial.block, trial.number), (file, trial))
        if earlier is not trial:
            where = earlier.key if earlier_file is file else f"{earlier_file.name}:{earlier.key}"
            message = (
                f"block {trial.block}, trial {trial.number} occurs twice in {session}: {where} and {trial.key}; "
                "number the trials of a block apart, or remove one"
            )
            faults.append(file.fault(trial.key, "duplicate_trial_number", "error", message))
    return faults


def read_block_corpora(root: Path) -> dict[tuple[str, int], str] | None:
    """(session, block) to the corpus its sentences come from; None where `root` has no block description.

    Raises:
        DataError: a column is missing or a block is not a number.
    """
    path = root / DESCRIPTION_FILE
    if not path.exists():
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"Date", "Block number", "Corpus"} - set(reader.fieldnames or ())
        if missing:
            lacking = f"{path} lacks the column {', '.join(sorted(missing))}; restore the file"
            raise DataError(lacking, code="manifest_field")
        corpora = {}
        for row in reader:
            if not row["Block number"].strip().isdigit():
                where = f"{path}, line {reader.line_num}"
                raise DataError(f"{where}: no block number; restore the file", code="manifest_field")
            corpora[f"t15.{row['Date'].replace('-', '.')}", int(row["Block number"])] = row["Corpus"]
    return corpora


def read_modes(root: Path) -> dict[tuple[str, str, str], _Mode]:
    """(session, split, group) to the speaking mode, from `ground_truth.jsonl`; empty where there is none.

    Raises:
        DataError: a line is not a JSON object with session, split and trial, or states another mode.
    """
    path = root / GROUND_TRUTH_FILE
    modes: dict[tuple[str, str, str], _Mode] = {}
    if not path.exists():
        return modes
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                trial, mode = record["trial"], record["mode"]
                key = (record["session"], record["split"], f"trial_{trial:04d}" if isinstance(trial, int) else trial)
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                message = f"{path}, line {number}: {error!r}; write it again or remove it"
                raise DataError(message, code="manifest_field") from error
            if mode not in ("silent", "vocalised"):
                message = f"{path}, line {number}: mode {mode!r} is neither silent nor vocalised"
                raise DataError(message, code="manifest_field")
            modes[key] = mode
    return modes
