"""The official T15 files, and what stands beside them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import DataError
from sottovoce.core.splits import Split
from sottovoce.data.simulate.plan import IMPLANT_DAY, PlannedSession
from sottovoce.data.simulate.settings import SimulationSettings

LABEL_SLOTS: Final = 500
DESCRIPTION: Final = "t15_copyTaskData_description.csv"
GROUND_TRUTH: Final = "ground_truth.jsonl"
CONFIG: Final = "sim_config.json"
UNFINISHED: Final = "simulation_unfinished.json"
"""Stands in the folder while it is being written, in place of the two files above."""

_SESSION_NAME: Final = re.compile(r"t15\.\d{4}\.\d{2}\.\d{2}")
_DATA_NAME: Final = re.compile(r"data_(train|val|test)\.hdf5(\.partial)?")
_BESIDE: Final = frozenset(
    {DESCRIPTION, GROUND_TRUTH, CONFIG, UNFINISHED, f"{GROUND_TRUTH}.partial", f"{CONFIG}.partial"}
)


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial, ready to be written."""

    split: Split
    features_TC: npt.NDArray[np.float32]
    labels: tuple[int, ...]
    sentence: str
    session: str
    block: int
    place: int
    """Index inside the block."""


class SessionWriter:
    """The HDF5 files of one session; each takes its final name when the session is complete."""

    def __init__(self, folder: Path, splits: Iterable[Split]) -> None:
        folder.mkdir(parents=True)
        self._final = {split: folder / f"data_{split}.hdf5" for split in splits}
        self._files = {split: h5py.File(_partial(path), "w") for split, path in self._final.items()}

    def write(self, number: int, record: TrialRecord) -> None:
        """Write trial `number` of the record's split; test trials go without labels."""
        group = self._files[record.split].create_group(f"trial_{number:04d}")
        group.create_dataset("input_features", data=record.features_TC, track_times=False)
        group.attrs["n_time_steps"] = len(record.features_TC)
        group.attrs["session"] = record.session
        group.attrs["block_num"] = record.block
        group.attrs["trial_num"] = record.place
        if record.split != "test":
            text = [ord(letter) for letter in record.sentence]
            group.create_dataset("seq_class_ids", data=_slots(record.labels), track_times=False)
            group.create_dataset("transcription", data=_slots(text), track_times=False)
            group.attrs["seq_len"] = len(record.labels)
            group.attrs["sentence_label"] = record.sentence

    def close(self, complete: bool) -> None:
        """Release the files, and give them their final names if the session is complete."""
        for split, path in self._final.items():
            self._files[split].close()
            if complete:
                _partial(path).replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _slots(values: Iterable[int]) -> npt.NDArray[np.int32]:
    filled = np.zeros(LABEL_SLOTS, np.int32)
    listed = list(values)
    filled[: len(listed)] = listed
    return filled


def claim_folder(directory: Path, overwrite: bool) -> None:
    """Make `directory` ready for a new data set.

    Raises:
        DataError: it holds something, unless all of it is a simulation's and `overwrite` is set.
    """
    if directory.exists() and not directory.is_dir():
        raise DataError(f"{directory} is a file; name a folder for the simulated data set")
    if directory.is_dir() and any(directory.iterdir()):
        if not overwrite:
            raise DataError(
                f"{directory} is not empty; choose another folder, or replace a simulation with --overwrite"
            )
        _remove_simulation(directory)
    directory.mkdir(parents=True, exist_ok=True)


def _remove_simulation(directory: Path) -> None:
    """Delete what a simulation wrote in `directory`, after making sure that nothing else is there."""
    owned = _owned_sessions(directory)
    foreign = []
    for entry in sorted(directory.iterdir()):
        if entry.name in owned and entry.is_dir() and not entry.is_symlink():
            foreign += [inner for inner in sorted(entry.iterdir()) if not _DATA_NAME.fullmatch(inner.name)]
        elif entry.name not in _BESIDE:
            foreign.append(entry)
    if foreign:
        shown = ", ".join(str(path.relative_to(directory)) for path in foreign[:5])
        raise DataError(
            f"{directory} holds {len(foreign)} things that its simulation did not write ({shown}); "
            "nothing was removed; move them or choose another folder"
        )
    # The marks of a complete data set go first: what an interruption leaves is not taken for one.
    (directory / UNFINISHED).write_text(json.dumps({"sessions": sorted(owned)}), encoding="utf-8")
    for name in sorted(_BESIDE - {UNFINISHED}):
        (directory / name).unlink(missing_ok=True)
    for name in sorted(owned):
        if (directory / name).exists():
            shutil.rmtree(directory / name)
    (directory / UNFINISHED).unlink()


def _owned_sessions(directory: Path) -> set[str]:
    """Session folders that the simulation in `directory` lists as its own."""
    for name in (CONFIG, UNFINISHED):
        record = directory / name
        if record.exists():
            try:
                sessions = json.loads(record.read_text(encoding="utf-8"))["sessions"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    f"{record} does not list the sessions of a simulation ({error}); remove the folder by hand"
                ) from error
            return {str(session) for session in sessions if _SESSION_NAME.fullmatch(str(session))}
    raise DataError(f"{directory} holds no {CONFIG}: it is not a simulation, and is left alone; choose another folder")


def write_description(directory: Path, sessions: Iterable[PlannedSession]) -> None:
    """The table of blocks in the official form."""
    with (directory / DESCRIPTION).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["Date", "Post-implant day", "Block number", "Number of sentences", "Corpus", "Split"])
        for session in sessions:
            for block in session.blocks:
                since = (session.day - IMPLANT_DAY).days
                table.writerow([session.day, since, block.number, len(block.trials), "Simulated", block.kind])


def begin(directory: Path, sessions: Iterable[PlannedSession]) -> None:
    """Mark the folder as unfinished, with the list of what will be written."""
    listed = {"sessions": [session.name for session in sessions]}
    (directory / UNFINISHED).write_text(json.dumps(listed) + "\n", encoding="utf-8")


def finish(
    directory: Path, settings: SimulationSettings, sessions: Iterable[PlannedSession], truth: Iterable[dict[str, Any]]
) -> None:
    """Write the ground truth and the settings, the marks of a complete data set."""
    text = "".join(json.dumps(record) + "\n" for record in truth)
    _write_whole(directory / GROUND_TRUTH, text)
    config = {"layout": "t15", "sessions": [session.name for session in sessions], "settings": asdict(settings)}
    _write_whole(directory / CONFIG, json.dumps(config, indent=1) + "\n")
    (directory / UNFINISHED).unlink()


def _write_whole(path: Path, text: str) -> None:
    _partial(path).write_text(text, encoding="utf-8")
    _partial(path).replace(path)
