"""Faults of a T15 data set, every trial read: structure and labels, then the features, then the set as a whole."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import SPLITS, Split
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.text import normalise_text
from sottovoce.data.checks_features import DeadChannels, SessionStatistics
from sottovoce.data.checks_trial import (
    Expectation,
    Patching,
    Progress,
    duplicate_number_faults,
    expected_channels,
    trial_faults,
)
from sottovoce.data.t15 import (
    DESCRIPTION_FILE,
    GROUND_TRUTH_FILE,
    find_sessions,
    read_block_corpora,
    read_modes,
    split_file,
)
from sottovoce.data.t15_file import (
    LABEL_ITEMS,
    READ_ERRORS,
    SPIKES,
    StoredTrial,
    missing_numbers,
    non_finite_message,
    read_features,
    read_stored_trials,
    unreadable_message,
)

TRAIN_ONLY_SESSIONS: Final = frozenset({"t15.2023.08.11", "t15.2024.03.03", "t15.2024.04.25", "t15.2024.04.28"})
"""Official sessions without validation and test files (`rnn_args.yaml`: `dataset_probability_val` is 0)."""


@dataclass(frozen=True)
class CheckedFile:
    """One file, what it is called in the findings, and which session and split it belongs to."""

    path: Path
    name: str
    session: str | None
    """Folder name; None for a file on its own, whose trials name their session themselves."""
    split: Split | None
    """None: by its labels, a file without any is taken for a test file."""
    trials: list[StoredTrial] = field(default_factory=list)

    def split_of_trials(self) -> Split:
        """The stated split, or what the labels say."""
        if self.split is not None:
            return self.split
        labelled = any(item in trial.items for trial in self.trials for item in LABEL_ITEMS)
        return "train" if labelled or any(t.features == SPIKES for t in self.trials) else "test"


def check_t15_folder(
    root: Path,
    patching: Patching,
    symbols: SymbolTable,
    num_channels: int | None,
    max_sessions: int | None,
    progress: Progress | None,
) -> tuple[int, list[Fault]]:
    """Number of trials and every fault of the first `max_sessions` sessions of a T15 folder."""
    sessions = find_sessions(root)[:max_sessions]
    files, faults = [], list[Fault]()
    for folder in sessions:
        present = [split for split in SPLITS if split_file(folder, split).exists()]
        first_day = folder is sessions[0] and len(sessions) > 1 and present == ["train"]  # nothing to hold out yet
        wanted: tuple[Split, ...] = ("train",) if folder.name in TRAIN_ONLY_SESSIONS or first_day else SPLITS
        name = folder.relative_to(root).as_posix() if folder != root else folder.name
        for split in wanted:
            if split not in present:
                message = (
                    f"{folder.name} has no data_{split}.hdf5; download it, or expect no {split} trial of this session"
                )
                faults.append(Fault(name, "", "missing_split_file", "warning", message))
        for split in present:
            path = split_file(folder, split)
            files.append(CheckedFile(path, path.relative_to(root).as_posix(), folder.name, split))
    num_trials, found = check_t15_files(files, patching, symbols, num_channels, progress)
    return num_trials, faults + found + list(_folder_faults(root, sessions, files))


def check_t15_files(
    files: Sequence[CheckedFile],
    patching: Patching,
    symbols: SymbolTable,
    num_channels: int | None,
    progress: Progress | None,
) -> tuple[int, list[Fault]]:
    """Number of trials and every fault of `files` as one data set; fills in their `trials`."""
    faults: list[Fault] = []
    for file in files:
        trials, unreadable = read_stored_trials(file.path, file.name)
        file.trials.extend(trials)
        faults += unreadable
        gaps = missing_numbers(trials)
        if gaps:
            shown = ", ".join(map(str, gaps[:10])) + (" …" if len(gaps) > 10 else "")
            message = f"trial numbers {shown} are missing of 0 to {trials[-1].number_in_file}; check that none was lost"
            faults.append(Fault(file.name, "", "trial_gap", "warning", message))
    channels = expected_channels((trial for file in files for trial in file.trials), num_channels)
    expected = Expectation(channels, symbols, patching)
    for file in files:
        split = file.split_of_trials()
        for trial in file.trials:
            faults += trial_faults(file.name, trial, split, expected)
    faults += duplicate_number_faults(
        (file.name, file.session or trial.session or file.name, trial) for file in files for trial in file.trials
    )
    num_trials = sum(len(file.trials) for file in files) + sum(
        f.fault == "unreadable_file" and f.trial != "" for f in faults
    )
    faults += _check_features(files, channels, progress)
    return num_trials, faults


def _check_features(files: Sequence[CheckedFile], channels: int, progress: Progress | None) -> Iterator[Fault]:
    statistics: dict[str, SessionStatistics] = defaultdict(SessionStatistics)
    first_with: dict[bytes, str] = {}
    num_trials = sum(len(file.trials) for file in files)
    done = 0
    for file in files:
        dead = DeadChannels(file.name, channels)
        for trial, read in _read_all(file):
            if isinstance(read, Fault):
                yield read
            elif read is not None and read.size:
                yield from _duplicate(first_with, file.name, trial.key, read)
                if read.shape[1] == channels:
                    dead.add(trial.key, read)
                    outlier = statistics[_session_place(file)].add(read)
                    if outlier is not None:
                        yield Fault(file.name, trial.key, "scale_outlier", "warning", outlier)
            done += 1
            if progress is not None:
                progress(done, num_trials)
        yield from dead.faults()
    for place, summed in statistics.items():
        message = summed.outlier()
        if message is not None:
            yield Fault(place, "", "scale_outlier", "warning", message)


def _read_all(file: CheckedFile) -> Iterator[tuple[StoredTrial, npt.NDArray[np.float32] | Fault | None]]:
    """Each trial with its finite features, or why there are none; None where its structure is at fault."""
    if not file.trials:
        return
    with h5py.File(file.path) as opened:
        for trial in file.trials:
            yield trial, _read(opened, file.name, trial)


def _session_place(file: CheckedFile) -> str:
    """What the statistics of a session are reported for: its folder, or a file on its own."""
    return file.name if file.session is None else Path(file.name).parent.as_posix().removeprefix(".") or file.session


def _read(opened: h5py.File, name: str, trial: StoredTrial) -> npt.NDArray[np.float32] | Fault | None:
    if trial.rows is None or trial.valid_steps is None or trial.valid_steps < 0:
        return None
    try:
        features = read_features(opened, trial.key, trial.features, trial.valid_steps)
    except READ_ERRORS as error:
        return Fault(name, trial.key, "unreadable_file", "error", unreadable_message(error))
    message = non_finite_message(features)
    return features if message is None else Fault(name, trial.key, "non_finite_features", "error", message)


def _duplicate(first: dict[bytes, str], name: str, key: str, features: npt.NDArray[np.float32]) -> Iterator[Fault]:
    digest = hashlib.sha1(features.data, usedforsecurity=False).digest()  # the fastest of the standard library
    earlier = first.setdefault(digest, f"{name}:{key}")
    if earlier != f"{name}:{key}":
        message = f"the features equal those of {earlier}, value by value; remove one of the two"
        yield Fault(name, key, "duplicate_trial", "warning", message)


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, DataError) else str(error)


def _folder_faults(root: Path, sessions: Sequence[Path], files: Sequence[CheckedFile]) -> Iterator[Fault]:
    data_root = sessions[0].parent
    try:
        corpora = read_block_corpora(data_root)
    except (DataError, OSError, UnicodeDecodeError) as error:
        yield Fault(DESCRIPTION_FILE, "", "manifest_field", "error", _reason(error))
        corpora = None
    try:
        read_modes(data_root)
    except (DataError, OSError, UnicodeDecodeError) as error:
        yield Fault(GROUND_TRUTH_FILE, "", "manifest_field", "error", _reason(error))
    for file in files:
        unmatched = set[int]()
        for trial in file.trials:
            if trial.session not in (None, file.session) and trial.features != SPIKES:
                message = (
                    f"attribute session is {trial.session!r} in the folder {file.session!r}; correct one of the two"
                )
                yield Fault(file.name, trial.key, "session_attribute_wrong", "warning", message)
            if corpora is not None and trial.block is not None and (file.session, trial.block) not in corpora:
                unmatched.add(trial.block)
        for block in sorted(unmatched):
            message = (
                f"({file.session}, block {block}) is not in {DESCRIPTION_FILE}; its corpus is `unknown`: add a row"
            )
            yield Fault(file.name, "", "unmatched_block", "warning", message)
    yield from _sentence_leaks(root, files)


def _sentence_leaks(root: Path, files: Sequence[CheckedFile]) -> Iterator[Fault]:
    sentences: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for file in files:
        sentences[file.split_of_trials()] += [normalise_text(t.text) for t in file.trials if t.text]
    trained = set(sentences["train"])
    for split in ("val", "test"):
        leaked = sum(sentence in trained for sentence in sentences[split])
        if leaked:
            share = leaked / len(sentences[split])
            message = (
                f"{leaked} of {len(sentences[split])} {split} sentences ({share:.1%}) also occur in train; "
                "report seen and unseen sentences separately"
            )
            yield Fault(root.resolve().name, "", "sentence_leak", "warning", message)
