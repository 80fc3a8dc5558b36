"""One process trains a run at a time: its main process holds `lock.json` in the run's directory meanwhile.

The file says who: host, process, since when. A lock whose process has ended (killed, or its machine was restarted) is
taken over; processes are compared by number and start time, because numbers are used again. Of another host nobody
can tell from here, so its lock is respected until a person removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, TextIO

from sottovoce.core.errors import CheckpointError

FILE_NAME: Final = "lock.json"
PROC: Final = Path("/proc")
_NO_FLOCK: Final = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""File systems of clusters that cannot lock; two takers within a millisecond would both get the lock there."""


class RunIsLockedError(CheckpointError):
    """Another process trains this run."""


@dataclass(frozen=True)
class Holder:
    """The process that trains a run."""

    host: str
    process: int
    started: str
    """When the process began, in clock ticks of its boot, and which boot; empty where the system does not say."""
    since: str
    """When it took the lock, in local time."""

    @classmethod
    def this_process(cls) -> Holder:
        """Taking the lock now."""
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()) or "", since)

    @property
    def is_local(self) -> bool:
        """It runs, or ran, on this host."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Of a process of this host: it still runs."""
        if self.started:
            return _started(self.process) == self.started
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[Holder | None]:
    """Hold the lock of `run_dir`; yields the dead process that it was taken over from, None where nobody held it.

    Raises:
        RunIsLockedError: a process that lives, or that of another host, holds it. Nothing has been changed.
        CheckpointError: the lock cannot be written.
    """
    before, own = None, Holder.this_process()
    with _opened(run_dir) as file:
        before = _read(file, run_dir)
        if before is not None:
            _refuse(run_dir, before)
        file.seek(0)
        file.truncate()
        json.dump(asdict(own), file)
        file.flush()
    try:
        yield before
    finally:
        if os.getpid() == own.process and run_dir.is_dir():  # a run that never began has been removed
            with contextlib.suppress(OSError), _opened(run_dir) as file:
                if _read(file, run_dir) == own:
                    (run_dir / FILE_NAME).unlink()


def _refuse(run_dir: Path, holder: Holder) -> None:
    if not holder.is_local:
        raise RunIsLockedError(
            f"{run_dir} is being trained by {holder}; wait for it or stop it there. Only if that process has ended: "
            f"remove {run_dir / FILE_NAME}, then try again"
        )
    if holder.is_alive:
        raise RunIsLockedError(
            f"{run_dir} is being trained by {holder}; wait for it, or stop it: kill {holder.process}"
        )


@contextlib.contextmanager
def _opened(run_dir: Path) -> Iterator[TextIO]:
    """The lock's file while nobody else reads or writes it; created where it is missing."""
    path = run_dir / FILE_NAME
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written ({error.strerror}); make {run_dir} writable") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
            if _is_still(path, file):
                file.seek(0)
                yield file
                return


def _is_still(path: Path, file: TextIO) -> bool:
    """The open file has not been removed since, by a process that has ended its training."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _read(file: TextIO, run_dir: Path) -> Holder | None:
    """Who holds the lock; None of a new file, or of one whose writer was killed before it wrote."""
    file.seek(0)
    text = file.read()
    if not text:
        return None
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError) as error:
        path = run_dir / FILE_NAME
        raise CheckpointError(f"{path} cannot be read ({error}); if nobody trains {run_dir}, remove it") from error


def _started(process: int) -> str | None:
    """When `process` of this host began, unlike for any other process; None where it has ended, or nothing says so."""
    try:
        fields = (PROC / str(process) / "stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{ticks} of {boot}"
