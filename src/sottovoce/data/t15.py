"""Reader of the T15 layout: session folders with one HDF5 file a split, a group a trial.

Opening reads lengths, labels and texts of every trial; a signal is read when it is asked for.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import h5py
import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import SPLITS, Split
from sottovoce.core.trial import Trial
from sottovoce.data.checks_trial import (
    Expectation,
    duplicate_number_faults,
    expected_channels,
    trial_faults,
)
from sottovoce.data.t15_file import (
    READ_ERRORS,
    StoredTrial,
    non_finite_message,
    read_features,
    read_stored_trials,
    unreadable_message,
)

SESSION_NAME: Final = re.compile(r"t15\.\d{4}\.\d{2}\.\d{2}")
DESCRIPTION_FILE: Final = "t15_copyTaskData_description.csv"
GROUND_TRUTH_FILE: Final = "ground_truth.jsonl"
UNKNOWN_CORPUS: Final = "unknown"
_MOST_OPEN_FILES: Final = 128
_Mode = Literal["silent", "vocalised", ""]


def split_file(session: Path, split: Split) -> Path:
    """Where a session keeps a split."""
    return session / f"data_{split}.hdf5"


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


class T15Trials:
    """Trials of a T15 folder; a `TrialSet` of binned features."""

    def __init__(
        self,
        trials: tuple[Trial, ...],
        sessions: tuple[str, ...],
        features: tuple[str, ...],
        num_channels: int,
        skipped: tuple[Fault, ...] = (),
    ) -> None:
        self.trials = trials
        self.sessions = sessions
        self.num_channels = num_channels
        """Columns that every trial's features have."""
        self.skipped = skipped
        """Why trials or files were left out (`on_fault="skip"`)."""
        self._features = features
        self._files = _OpenFiles()

    def signal(self, index: int) -> npt.NDArray[np.float32]:
        """Features [T, C] of trial `index`, C-contiguous, T = `num_steps`.

        Raises:
            DataError: the file cannot be read, has changed since it was opened, or holds values that are not finite.
        """
        trial = self.trials[index]
        try:
            features = read_features(self._files.open(trial.file), trial.key, self._features[index], trial.num_steps)
        except READ_ERRORS as error:
            raise _unreadable(trial, "unreadable_file", unreadable_message(error)) from error
        if features.shape != (trial.num_steps, self.num_channels):
            raise DataError(
                f"features are {features.shape}, but were {(trial.num_steps, self.num_channels)} when the data set "
                "was opened; start again, and leave the files alone while a run reads them",
                file=trial.file,
                trial=trial.key,
            )
        problem = non_finite_message(features)
        if problem is not None:
            raise _unreadable(trial, "non_finite_features", problem)
        return features


def _unreadable(trial: Trial, code: str, message: str) -> DataError:
    return DataError(message, code=code, file=trial.file, trial=trial.key)


class _OpenFiles:
    """HDF5 files held open by this process; a copy in another process starts empty."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: dict[Path, h5py.File] = {}

    def open(self, path: Path) -> h5py.File:
        if self._process != os.getpid():  # forked: the handles belong to the parent
            self.__init__()  # type: ignore[misc]
        if path not in self._files:
            if len(self._files) >= _MOST_OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            self._files[path] = h5py.File(path)
        return self._files[path]

    def __reduce__(self) -> tuple[type[_OpenFiles], tuple[()]]:
        return _OpenFiles, ()


def open_t15(
    root: Path, splits: Sequence[Split], max_sessions: int | None = None, on_fault: str = "raise"
) -> T15Trials:
    """The trials of `splits` in the first `max_sessions` sessions of `root`, in the order session, split, group.

    Labels are cut to `seq_len`; trials of the test split have none unless the file states them. The speaking mode
    is filled in only from a `ground_truth.jsonl`, the corpus from the block description. A session that lacks a
    split contributes nothing to it. Faults that show only in the features are found by a check, or by `signal`.

    Raises:
        DataError: there is no session or no trial, or (with `on_fault="raise"`) a trial or file is unusable.
    """
    folders = find_sessions(root)
    if not folders:
        message = f"{root} holds no folder t15.YYYY.MM.DD; set data.data_root to one that does"
        raise DataError(message, code="not_this_layout")
    folders = folders[:max_sessions]
    stored: list[tuple[Path, str, Split, StoredTrial]] = []
    faults: list[Fault] = []
    for folder in folders:
        for split in splits:
            path = split_file(folder, split)
            if path.exists():
                trials, unreadable = read_stored_trials(path, str(path))
                stored += [(path, folder.name, split, trial) for trial in trials]
                faults += unreadable
    expected = Expectation(channels=expected_channels(trial for *_, trial in stored))
    for path, _, split, trial in stored:
        faults += trial_faults(str(path), trial, split, expected)
    faults += duplicate_number_faults((str(path), session, trial) for path, session, _, trial in stored)

    errors = tuple(fault for fault in faults if fault.severity == "error")
    if errors and on_fault == "raise":
        raise errors[0].as_error()
    bad = {(fault.file, fault.trial) for fault in errors}
    kept = [item for item in stored if (str(item[0]), item[3].key) not in bad]
    if not kept:
        raise DataError(
            f"{root}: no usable trial of {', '.join(splits)} in {len(folders)} sessions ({len(errors)} errors); "
            "run `sottovoce check` on the folder"
        )
    describe = _Descriptions(folders[0].parent)
    return T15Trials(
        trials=tuple(describe.trial(*item) for item in kept),
        sessions=tuple(folder.name for folder in folders),
        features=tuple(trial.features for *_, trial in kept),
        num_channels=expected.channels,
        skipped=errors,
    )


class _Descriptions:
    """What stands beside the sessions: the corpus of a block and the speaking mode of a trial."""

    def __init__(self, root: Path) -> None:
        self._corpora = read_block_corpora(root)
        self._modes = read_modes(root)

    def trial(self, path: Path, session: str, split: Split, stored: StoredTrial) -> Trial:
        steps = stored.valid_steps
        assert steps is not None, "a trial without features was kept"
        corpus = ""
        if self._corpora is not None:
            known = stored.block is not None and (session, stored.block) in self._corpora
            corpus = self._corpora[session, stored.block] if known and stored.block is not None else UNKNOWN_CORPUS
        return Trial(
            trial_id=f"{session}/{split}/{stored.key}",
            split=split,
            session=session,
            num_steps=steps,
            labels=None if stored.missing_label_items else stored.target,
            text=stored.text,
            file=path,
            key=stored.key,
            block=stored.block,
            number=stored.number,
            event=f"{session}/{split}/{stored.key}",
            corpus=corpus,
            mode=self._modes.get((session, split, stored.key), ""),
        )


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
