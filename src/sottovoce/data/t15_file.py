"""What is stored in one HDF5 file of the T15 layout, group by group, before any judgement.

Layout: groups `trial_0000`, `trial_0001`, … with `input_features` [T, C] (or `spikes` [C, T] in one public variant),
`seq_class_ids` and `transcription` padded with zeros to a common length, and attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from sottovoce.data.purpose import Finding

FEATURES: Final = "input_features"
SPIKES: Final = "spikes"
"""The variant of GuyNachshon/mode-ssm (`create_test_data.py`): channels first, no `n_time_steps`, unpadded
`seq_class_ids` without `seq_len`; session, block, trial and text as scalar data sets."""
LABEL_ITEMS: Final = ("seq_class_ids", "seq_len", "transcription", "sentence_label")
"""What a trial of the training and validation splits must have and a trial of the test split lacks (the variant: only
the first)."""
READ_ERRORS: Final = (OSError, LookupError, RuntimeError, ValueError, TypeError, MemoryError)
"""What h5py raises for a damaged file or an item of an unexpected type."""

_GROUP = re.compile(r"trial_(\d+)")
_TRUNCATED = re.compile(r"truncated file: eof = (\d+), .*stored_eof = (\d+)")


@dataclass(frozen=True, eq=False)
class StoredTrial:
    """One group as it is stored; whatever the file lacks is None."""

    key: str
    items: tuple[str, ...]
    """Names of all data sets and attributes of the group."""
    features: str
    """`input_features`, `spikes` or empty."""
    shape: tuple[int, ...] | None
    num_steps: int | None
    """Attribute `n_time_steps`."""
    label_length: int | None
    """Attribute `seq_len`."""
    labels: npt.NDArray[Any] | None
    """The whole padded array."""
    transcription: npt.NDArray[Any] | None
    """The whole padded array of character codes."""
    sentence: str | None
    session: str | None
    block: int | None
    number: int | None

    @property
    def number_in_file(self) -> int:
        """The number in the group's name."""
        return int(self.key.removeprefix("trial_"))

    @property
    def rows(self) -> int | None:
        """Bins that are stored, whether valid or padding; None unless the features have two axes."""
        return self._axis(1 if self.features == SPIKES else 0)

    @property
    def channels(self) -> int | None:
        """Columns of the features; None unless they have two axes."""
        return self._axis(0 if self.features == SPIKES else 1)

    def _axis(self, axis: int) -> int | None:
        return self.shape[axis] if self.shape is not None and len(self.shape) == 2 else None

    @property
    def valid_steps(self) -> int | None:
        """Valid bins: `n_time_steps`, or every row where a file does not state it."""
        return self.rows if self.num_steps is None else self.num_steps

    @property
    def missing_label_items(self) -> list[str]:
        """What a labelled trial must have and this one lacks; when there is nothing, it has a `target`."""
        required = LABEL_ITEMS[:1] if self.features == SPIKES else LABEL_ITEMS
        return [item for item in required if item not in self.items]

    @property
    def target(self) -> tuple[int, ...]:
        """Symbol ids cut to `seq_len`.

        Raises:
            AssertionError: the trial has no label.
        """
        assert self.labels is not None and self.label_length is not None
        return tuple(self.labels[: self.label_length].tolist())

    @property
    def text(self) -> str | None:
        """The sentence as written; from the character codes where the attribute is missing."""
        if self.sentence is not None or self.transcription is None:
            return self.sentence
        return "".join(_character(code) for code in self.character_codes)

    @property
    def character_codes(self) -> list[int]:
        """`transcription` up to its first 0."""
        if self.transcription is None:
            return []
        ends = np.flatnonzero(self.transcription == 0)
        codes: list[int] = self.transcription[: ends[0] if len(ends) else None].tolist()
        return codes


def read_stored_trials(path: Path) -> tuple[list[StoredTrial], list[tuple[str, Finding]]]:
    """Every trial of the file in the numeric order of its groups, and by group what could not be read.

    A finding without a group is the whole file's: `unreadable_file` or `no_trials`.
    """
    trials: list[StoredTrial] = []
    unreadable: list[tuple[str, Finding]] = []
    try:
        with h5py.File(path) as file:
            names = [_name(stored) for stored in file]
            keys = sorted((k for k in names if _GROUP.fullmatch(k)), key=lambda k: int(k.removeprefix("trial_")))
            if not keys:
                found = ", ".join(names[:5]) or "nothing"
                message = f"no group trial_NNNN, found {found}; give a file of the T15 layout, or leave this one out"
                unreadable.append(("", ("no_trials", "error", message)))
            for key in keys:
                try:
                    trials.append(_read_group(key, file[key]))
                except READ_ERRORS as error:
                    unreadable.append((key, ("unreadable_file", "error", unreadable_message(error))))
    except READ_ERRORS as error:
        unreadable.append(("", ("unreadable_file", "error", unreadable_message(error))))
    return trials, unreadable


def unreadable_message(error: Exception) -> str:
    """One line for an HDF5 file, or a part of one, that the library cannot read."""
    truncated = _TRUNCATED.search(str(error))
    if truncated:
        present, expected = truncated.groups()
        return (
            f"the file cannot be opened because it is truncated: {present} bytes present, {expected} expected by its "
            "own header; download it again"
        )
    reason = " ".join(str(error).split())
    return f"cannot be read as HDF5 of the T15 layout ({reason}); download it again, or leave it out"


def _read_group(key: str, group: h5py.Group) -> StoredTrial:
    if not isinstance(group, h5py.Group):
        raise TypeError("a data set, expected a group")
    stored = dict(group.items())
    attributes = dict(group.attrs)
    items = tuple(_name(stored_name) for stored_name in (*stored, *attributes))
    features = next((name for name in (FEATURES, SPIKES) if isinstance(stored.get(name), h5py.Dataset)), "")
    if features == SPIKES:
        variant = {"session": "session_id", "block_num": "block_id", "trial_num": "trial_id", "sentence_label": "text"}
        attributes = {name: stored[old][()] for name, old in variant.items() if old in stored} | attributes

    def integer(name: str) -> int | None:
        return int(np.asarray(attributes[name]).reshape(-1)[0]) if name in attributes else None

    def text(name: str) -> str | None:
        return _text(attributes[name]) if name in attributes else None

    labels = np.asarray(stored["seq_class_ids"][()]).reshape(-1) if "seq_class_ids" in stored else None
    label_length = integer("seq_len")
    if features == SPIKES and label_length is None and labels is not None:
        label_length = len(labels)
    return StoredTrial(
        key=key,
        items=items,
        features=features,
        shape=tuple(stored[features].shape) if features else None,
        num_steps=integer("n_time_steps"),
        label_length=label_length,
        labels=labels,
        transcription=_codes(stored["transcription"][()]) if "transcription" in stored else None,
        sentence=text("sentence_label"),
        session=text("session"),
        block=integer("block_num"),
        number=integer("trial_num"),
    )


def _codes(value: object) -> npt.NDArray[Any]:
    codes = np.asarray(value).reshape(-1)
    if not np.issubdtype(codes.dtype, np.integer):
        raise TypeError(f"transcription holds {codes.dtype}, expected whole numbers: character codes")
    return codes


def _text(value: object) -> str:
    value = value.item() if isinstance(value, np.ndarray | np.generic) else value
    encoded = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    return encoded.decode("utf-8", "replace")


def _name(stored: object) -> str:
    """A name as one printable line, whatever its bytes are."""
    name = _text(stored)
    return name if name.isprintable() else ascii(name)


def _character(code: int) -> str:
    return chr(code) if 0 < code <= 0x10FFFF and not 0xD800 <= code < 0xE000 else "\N{REPLACEMENT CHARACTER}"


def read_features(file: h5py.File, key: str, features: str, num_steps: int) -> npt.NDArray[np.float32]:
    """The first `num_steps` bins of a trial as float32 [T, C], contiguous; fewer where fewer are stored.

    Raises:
        OSError, LookupError, RuntimeError, ValueError, TypeError: the data set is damaged or not an array of numbers.
    """
    dataset = file[key][features]
    stored = dataset[:, :num_steps].T if features == SPIKES else dataset[:num_steps]
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and every caller looks for those
        return np.ascontiguousarray(stored, dtype=np.float32)


def non_finite_message(features: npt.NDArray[np.float32]) -> str | None:
    """How many values are not finite and where the first is; None when all are."""
    finite = np.isfinite(features)
    if finite.all():
        return None
    steps, channels = np.nonzero(~finite)
    return (
        f"{len(steps)} non-finite values, the first at time step {steps[0]}, feature {channels[0]}; "
        "repair the file, or leave the trial out (data.on_fault=skip)"
    )


def missing_numbers(trials: Iterable[StoredTrial]) -> list[int]:
    """Numbers missing from the groups' names, which count from 0."""
    present = {trial.number_in_file for trial in trials}
    return [n for n in range(max(present, default=-1) + 1) if n not in present]
