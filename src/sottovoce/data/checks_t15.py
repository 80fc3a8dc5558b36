"""Faults of a T15 data set, every trial read: structure and labels, then the features, then the set as a whole."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import SPLITS, Split
from sottovoce.core.text import normalise_text
from sottovoce.data.checks_features import DeadChannels, SessionStatistics
from sottovoce.data.checks_trial import Expectation, expected_channels, trial_findings
from sottovoce.data.purpose import Progress, Purpose
from sottovoce.data.t15_file import (
    READ_ERRORS,
    SPIKES,
    StoredTrial,
    missing_numbers,
    non_finite_message,
    read_features,
    unreadable_message,
)
from sottovoce.data.t15_structure import (
    DESCRIPTION_FILE,
    GROUND_TRUTH_FILE,
    T15File,
    T15Structure,
    duplicate_number_faults,
    read_block_corpora,
    read_modes,
)

TRAIN_ONLY_SESSIONS: Final = frozenset({"t15.2023.08.11", "t15.2024.03.03", "t15.2024.04.25", "t15.2024.04.28"})
"""Official sessions without validation and test files (`rnn_args.yaml`: `dataset_probability_val` is 0)."""


def check_t15(structure: T15Structure, purpose: Purpose, progress: Progress | None) -> tuple[int, list[Fault]]:
    """Number of trials and every fault of the sessions of a T15 folder."""
    missing = [fault for folder in structure.sessions for fault in _missing_splits(structure, folder)]
    num_trials, found = check_files(structure.files, purpose, progress)
    return num_trials, [*missing, *found, *_folder_faults(structure)]


def check_files(files: Sequence[T15File], purpose: Purpose, progress: Progress | None) -> tuple[int, list[Fault]]:
    """Number of trials and every fault of `files` as one data set."""
    faults: list[Fault] = []
    for file in files:
        faults += file.unreadable
        gaps = missing_numbers(file.trials)
        if gaps:
            shown = ", ".join(map(str, gaps[:10])) + (" …" if len(gaps) > 10 else "")
            last = file.trials[-1].number_in_file
            message = f"trial numbers {shown} are missing of 0 to {last}; check that none was lost"
            faults.append(file.fault("", "trial_gap", "warning", message))
    channels = expected_channels((trial for file in files for trial in file.trials), purpose.num_channels)
    expected = Expectation(channels, purpose.symbols, purpose.patching)
    for file in files:
        for trial in file.trials:
            faults += [file.fault(trial.key, *f) for f in trial_findings(trial, file.split_of_trials, expected)]
    faults += duplicate_number_faults(files)
    num_trials = sum(len(file.trials) + sum(f.trial != "" for f in file.unreadable) for file in files)
    faults += _check_features(files, channels, progress)
    return num_trials, faults


def _missing_splits(structure: T15Structure, folder: Path) -> Iterator[Fault]:
    present = [file.split for file in structure.files if file.session == folder.name]
    first_day = folder is structure.sessions[0] and len(structure.sessions) > 1 and present == ["train"]
    if folder.name in TRAIN_ONLY_SESSIONS or first_day:  # nothing to hold out yet
        present += ["val", "test"]
    name = folder.relative_to(structure.root).as_posix() if folder != structure.root else folder.name
    for split in SPLITS:
        if split not in present:
            message = f"{folder.name} has no data_{split}.hdf5; download it, or expect no {split} trial of this session"
            yield Fault(name, "", "missing_split_file", "warning", message)


def _check_features(files: Sequence[T15File], channels: int, progress: Progress | None) -> Iterator[Fault]:
    statistics: dict[str, SessionStatistics] = defaultdict(SessionStatistics)
    first_with: dict[bytes, str] = {}
    num_trials = sum(len(file.trials) for file in files)
    done = 0
    for file in files:
        dead = DeadChannels(channels)
        for trial, read in _read_all(file):
            if isinstance(read, Fault):
                yield read
            elif read is not None and read.size:
                yield from _duplicate(first_with, file, trial.key, read)
                if read.shape[1] == channels:
                    dead.add(trial.key, read)
                    outlier = statistics[_session_place(file)].add(read)
                    if outlier is not None:
                        yield file.fault(trial.key, "scale_outlier", "warning", outlier)
            done += 1
            if progress is not None:
                progress(done, num_trials)
        for key, finding in dead.findings():
            yield file.fault(key, *finding)
    for place, summed in statistics.items():
        message = summed.outlier()
        if message is not None:
            yield Fault(place, "", "scale_outlier", "warning", message)


def _read_all(file: T15File) -> Iterator[tuple[StoredTrial, npt.NDArray[np.float32] | Fault | None]]:
    """Each trial with its finite features, or why there are none; None where its structure is at fault."""
    if not file.trials:
        return
    with h5py.File(file.path) as opened:
        for trial in file.trials:
            yield trial, _read(opened, file, trial)


def _session_place(file: T15File) -> str:
    """What the statistics of a session are reported for: its folder, or a file on its own."""
    return file.name if file.session is None else Path(file.name).parent.as_posix().removeprefix(".") or file.session


def _read(opened: h5py.File, file: T15File, trial: StoredTrial) -> npt.NDArray[np.float32] | Fault | None:
    if trial.rows is None or trial.valid_steps is None or trial.valid_steps < 0:
        return None
    try:
        features = read_features(opened, trial.key, trial.features, trial.valid_steps)
    except READ_ERRORS as error:
        return file.fault(trial.key, "unreadable_file", "error", unreadable_message(error))
    message = non_finite_message(features)
    return features if message is None else file.fault(trial.key, "non_finite_features", "error", message)


def _duplicate(first: dict[bytes, str], file: T15File, key: str, features: npt.NDArray[np.float32]) -> Iterator[Fault]:
    digest = hashlib.sha1(features.data, usedforsecurity=False).digest()  # the fastest of the standard library
    earlier = first.setdefault(digest, f"{file.name}:{key}")
    if earlier != f"{file.name}:{key}":
        message = f"the features equal those of {earlier}, value by value; remove one of the two"
        yield file.fault(key, "duplicate_trial", "warning", message)


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, DataError) else str(error)


def _folder_faults(structure: T15Structure) -> Iterator[Fault]:
    try:
        corpora = read_block_corpora(structure.data_root)
    except (DataError, OSError, UnicodeDecodeError) as error:
        yield Fault(DESCRIPTION_FILE, "", "manifest_field", "error", _reason(error))
        corpora = None
    try:
        read_modes(structure.data_root)
    except (DataError, OSError, UnicodeDecodeError) as error:
        yield Fault(GROUND_TRUTH_FILE, "", "manifest_field", "error", _reason(error))
    for file in structure.files:
        unmatched = set[int]()
        for trial in file.trials:
            if trial.session not in (None, file.session) and trial.features != SPIKES:
                message = (
                    f"attribute session is {trial.session!r} in the folder {file.session!r}; correct one of the two"
                )
                yield file.fault(trial.key, "session_attribute_wrong", "warning", message)
            if corpora is not None and trial.block is not None and (file.session, trial.block) not in corpora:
                unmatched.add(trial.block)
        for block in sorted(unmatched):
            message = (
                f"({file.session}, block {block}) is not in {DESCRIPTION_FILE}; its corpus is `unknown`: add a row"
            )
            yield file.fault("", "unmatched_block", "warning", message)
    yield from _sentence_leaks(structure)


def _sentence_leaks(structure: T15Structure) -> Iterator[Fault]:
    sentences: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for file in structure.files:
        sentences[file.split_of_trials] += [normalise_text(t.text) for t in file.trials if t.text]
    trained = set(sentences["train"])
    for split in ("val", "test"):
        leaked = sum(sentence in trained for sentence in sentences[split])
        if leaked:
            share = leaked / len(sentences[split])
            message = (
                f"{leaked} of {len(sentences[split])} {split} sentences ({share:.1%}) also occur in train; "
                "report seen and unseen sentences separately"
            )
            yield Fault(structure.root.resolve().name, "", "sentence_leak", "warning", message)
