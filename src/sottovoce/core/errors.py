"""What can go wrong for a user, as exceptions the command line turns into one line and an exit code."""

from __future__ import annotations

import copyreg
from pathlib import Path
from typing import Any


class SottovoceError(Exception):
    """A problem the user can mend; the message says what was found, what was expected, what to do.

    The command line prints it on stderr, without a traceback, and exits with `exit_code`.

    >>> print(DataError("1 value is NaN", code="non_finite_features", file="data.hdf5", trial="trial_0005"))
    data.hdf5:trial_0005: non_finite_features: 1 value is NaN
    """

    exit_code = 2

    def __init__(self, message: str, *, code: str | None = None, file: Path | str = "", trial: str = "") -> None:
        """`code` names a fault of a data set or a cause of the catalogue; `file` and `trial` say where it is."""
        super().__init__(message)
        self.code = code
        self.file = str(file)
        self.trial = trial

    def __str__(self) -> str:
        where = ":".join(part for part in (self.file, self.trial) if part)
        return ": ".join(part for part in (where, self.code, self.reason) if part)

    def __reduce__(self) -> tuple[Any, ...]:
        """Without `__init__`, whose arguments subclasses choose: an error crosses from one process to another whole."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    @property
    def reason(self) -> str:
        """The message alone, without the code and the place that stand before it where it is shown."""
        return str(self.args[0])


class ConfigurationError(SottovoceError):
    """An unknown, contradictory or ineffective configuration key."""


class UnknownKeyError(ConfigurationError):
    """A configuration key that there is not."""

    def __init__(self, key: str, hint: str = "") -> None:
        """`key` is dotted; `hint` ends the message, e.g. with the nearest key that there is."""
        super().__init__(f"unknown configuration key {key}{hint}")
        self.key = key


class DataError(SottovoceError):
    """A data set, file or trial that cannot be used."""


class CheckpointError(SottovoceError):
    """A run directory or checkpoint that cannot be read or written."""


class NewerVersionError(CheckpointError):
    """A run directory or checkpoint that a newer version of sottovoce wrote."""


class TrainingAborted(SottovoceError):
    """The guard ended a run because it could not continue; the last good checkpoint is kept."""

    exit_code = 1
    run_dir: Path | None = None
    """Where the run's records are, when it had begun."""


def in_one_line(error: Exception) -> str:
    """The message, of others' errors with their kind; where a loader process raised those, without its traceback.

    >>> in_one_line(RuntimeError("out of\\nmemory"))
    'RuntimeError: out of memory'
    """
    text = str(error)
    if "Original Traceback" in text:
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    kind = "" if isinstance(error, SottovoceError) else f"{type(error).__name__}: "
    return kind + " ".join(text.split())
