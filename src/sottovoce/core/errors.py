"""What can go wrong for a user, as exceptions the command line turns into one line and an exit code."""

from __future__ import annotations

from pathlib import Path


class SottovoceError(Exception):
    """A problem the user can mend; the message says what was found, what was expected, what to do.

    The command line prints the message on stderr, without a traceback, and exits with `exit_code`.
    """

    exit_code = 2


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
