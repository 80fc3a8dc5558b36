"""Reader of the T15 layout: session folders with one HDF5 file a split, a group a trial.

Opening takes lengths, labels and texts of every trial; a signal is read when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import Split
from sottovoce.core.trial import Trial
from sottovoce.data.checks_trial import Expectation, expected_channels, trial_findings
from sottovoce.data.t15_file import READ_ERRORS, StoredTrial, non_finite_message, read_features, unreadable_message
from sottovoce.data.t15_structure import (
    T15File,
    T15Structure,
    duplicate_number_faults,
    read_block_corpora,
    read_modes,
)

UNKNOWN_CORPUS: Final = "unknown"
_MOST_OPEN_FILES: Final = 128


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


def open_t15(structure: T15Structure, splits: Sequence[Split], on_fault: str = "raise") -> T15Trials:
    """The trials of `splits`, in the order session, split, group.

    Labels are cut to `seq_len`; trials of the test split have none unless the file states them. The speaking mode
    is filled in only from a `ground_truth.jsonl`, the corpus from the block description. A session that lacks a
    split contributes nothing to it. Faults that show only in the features are found by a check, or by `signal`.

    Raises:
        DataError: there is no trial, or (with `on_fault="raise"`) a trial or file is unusable.
    """
    files = [file for file in structure.files if file.split in splits]
    faults = [fault for file in files for fault in file.unreadable]
    expected = Expectation(channels=expected_channels(trial for file in files for trial in file.trials))
    for file in files:
        for trial in file.trials:
            faults += [file.fault(trial.key, *f) for f in trial_findings(trial, file.split_of_trials, expected)]
    faults += duplicate_number_faults(files)

    errors = tuple(fault for fault in faults if fault.severity == "error")
    if errors and on_fault == "raise":
        raise replace(errors[0], file=str(structure.root / errors[0].file)).as_error()
    bad = {fault.trial_id for fault in errors}
    kept = [(file, t) for file in files for t in file.trials if file.trial_id(t.key) not in bad]
    if not kept:
        raise DataError(
            f"{structure.root}: no usable trial of {', '.join(splits)} in {len(structure.sessions)} sessions "
            f"({len(errors)} errors); run `sottovoce check` on the folder"
        )
    describe = _Descriptions(structure.data_root)
    return T15Trials(
        trials=tuple(describe.trial(*item) for item in kept),
        sessions=tuple(folder.name for folder in structure.sessions),
        features=tuple(trial.features for _, trial in kept),
        num_channels=expected.channels,
        skipped=errors,
    )


class _Descriptions:
    """What stands beside the sessions: the corpus of a block and the speaking mode of a trial."""

    def __init__(self, root: Path) -> None:
        self._corpora = read_block_corpora(root)
        self._modes = read_modes(root)

    def trial(self, file: T15File, stored: StoredTrial) -> Trial:
        steps = stored.valid_steps
        assert steps is not None, "a trial without features was kept"
        assert file.session is not None and file.split is not None, "a file outside the sessions was opened"
        corpus = ""
        if self._corpora is not None:
            known = stored.block is not None and (file.session, stored.block) in self._corpora
            corpus = self._corpora[file.session, stored.block] if known and stored.block is not None else UNKNOWN_CORPUS
        trial_id = file.trial_id(stored.key)
        return Trial(
            trial_id=trial_id,
            split=file.split,
            session=file.session,
            num_steps=steps,
            labels=None if stored.missing_label_items else stored.target,
            text=stored.text,
            file=file.path,
            key=stored.key,
            block=stored.block,
            number=stored.number,
            event=trial_id,
            corpus=corpus,
            mode=self._modes.get((file.session, file.split, stored.key), ""),
        )
