"""Append-only JSON lines: the metrics and the events of a run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, TextIO

from sottovoce.core.errors import CheckpointError


class JsonLines:
    """A file with one JSON object a line, each holding the `step` it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Write one object; it reaches the operating system at the next `flush`."""
        try:
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise self._refused(error) from error

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        try:
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.path} cannot be written ({error.strerror}); free some space, then continue with resume="
        )

    def close(self) -> None:
        """Flush and release the file; what a full disk refuses is lost, and a resumed run writes it anew."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()

    def truncate_after(self, step: int) -> None:
        """Forget every record of a later step and a half-written last line, so that a resumed run writes them anew."""
        self.close()
        if not self.path.exists():
            return
        kept = [
            line
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            if _step_of(line) <= step
        ]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the line that was being written when the process was killed


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every object of a JSON-lines file; a half-written last line is left out.

    Raises:
        CheckpointError: the file is missing, or a line (the last excepted) is not a JSON object.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: the run has written no such record")
    records = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise CheckpointError(f"{path}, line {number} is not JSON ({error}); restore the file") from error
        else:
            if not isinstance(record, dict):
                raise CheckpointError(f"{path}, line {number} is not an object but {line[:40]!r}; restore the file")
            records.append(record)
    return records
