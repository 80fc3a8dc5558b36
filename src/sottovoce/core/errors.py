"""What can go wrong for a user, as exceptions the command line turns into one line and an exit code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_CODE: Final = re.compile(r"(?:^|: )([a-z][a-z0-9]*(?:_[a-z0-9]+)+): ")


class SottovoceError(Exception):
    """A problem the user can mend; the message says what was found, what was expected, what to do.

    The command line prints the message on stderr, without a traceback, and exits with `exit_code`.
    """

    exit_code = 2

    @property
    def code(self) -> str | None:
        """The code of a fault or cause that the message names, where it names one.

        >>> DataError("error: data.hdf5:trial_0005: non_finite_features: 1 value is NaN").code
        'non_finite_features'
        """
        named = _CODE.search(str(self))
        return named[1] if named else None


class ConfigurationError(SottovoceError):
    """An unknown, contradictory or ineffective configuration key."""


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
    """The message, of others' errors with their kind; where a loader process raised it, without PyTorch's traceback.

    >>> in_one_line(RuntimeError("out of\\nmemory"))
    'RuntimeError: out of memory'
    """
    text = str(error)
    if "Original Traceback" in text:
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    kind = "" if isinstance(error, SottovoceError) else f"{type(error).__name__}: "
    return kind + " ".join(text.split())
