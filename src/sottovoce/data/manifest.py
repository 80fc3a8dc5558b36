"""Which recordings a folder holds: from its manifest, from NAME.wav + NAME.txt pairs, or from their names."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault, Severity
from sottovoce.core.splits import SPLITS, Split
from sottovoce.core.text import is_unicode

MANIFESTS: Final = ("manifest.jsonl", "manifest.csv", "manifest.tsv")
AUDIO_SUFFIXES: Final = frozenset({".wav", ".flac", ".ogg"})
AUDIO_COLUMNS: Final = ("audio", "file", "path")
TEXT_COLUMNS: Final = ("text", "word", "sentence", "transcript")
DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs"}
_DIGIT_NAME: Final = re.compile(r"(\d)_(.+)_(\d+)")
"""`digit_speaker_take`, the names of the Free Spoken Digit Dataset."""


@dataclass(frozen=True)
class Recording:
    """One labelled recording, or a piece of one."""

    name: str
    """Path from the data set's folder, with `/`; unique together with `segment`."""
    file: Path
    text: str | None
    speaker: str
    event: str
    """Shared by recordings of one spoken event; a recording without one is an event of its own."""
    split: Split | None = None
    start_s: float | None = None
    end_s: float | None = None

    @property
    def segment(self) -> str:
        """`START-END` in seconds for a piece of a file, else empty."""
        if self.start_s is None and self.end_s is None:
            return ""
        return f"{self.start_s or 0:g}-{'' if self.end_s is None else f'{self.end_s:g}'}"

    @property
    def trial_id(self) -> str:
        """Name and segment."""
        return f"{self.name}#{self.segment}" if self.segment else self.name

    def fault(self, code: str, severity: Severity, message: str) -> Fault:
        """A fault of this recording."""
        return Fault(self.name, self.segment, code, severity, message, self.trial_id)


def find_manifest(root: Path) -> Path | None:
    """The manifest in `root`.

    Raises:
        DataError: there are several.
    """
    found = [root / name for name in MANIFESTS if (root / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{root} holds {names}; keep the one that is right", code="manifest_field")
    return found[0] if found else None


def find_audio(root: Path) -> list[Path]:
    """Every audio file below `root`, sorted."""
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())


def read_recordings(root: Path, need_text: bool = True) -> tuple[list[Recording], list[Fault]]:
    """The recordings of `root` in their stored order, and what is wrong with their description.

    Whether an audio file exists and can be decoded is not looked at here. Without `need_text` and without a manifest
    every audio file below `root` is taken.

    Raises:
        DataError: several manifests, or neither a manifest nor a recording whose text is known.
    """
    manifest = find_manifest(root)
    if manifest is not None:
        return _from_manifest(root, manifest)
    audio, faults = _named_in_unicode(root, find_audio(root))
    recordings: list[Recording] = []
    if not need_text:
        for path in audio:
            name = path.relative_to(root).as_posix()
            recordings.append(Recording(name, path, None, speaker=path.resolve().parent.name, event=name))
        return recordings, faults
    paired = any(path.with_suffix(".txt").is_file() for path in audio)
    recordings, of_layout = _from_pairs(root, audio) if paired else _from_names(root, audio)
    faults += of_layout
    if not paired and not recordings:
        raise DataError(
            f"{root} holds {len(audio)} recordings whose text is unknown: no {', '.join(MANIFESTS)}, "
            "no NAME.txt beside a NAME.wav, and no name of the form digit_speaker_take.wav; add a manifest with the "
            "columns audio,text,speaker",
            code="not_this_layout",
        )
    return recordings, faults


def _named_in_unicode(root: Path, audio: Iterable[Path]) -> tuple[list[Path], list[Fault]]:
    named: list[Path] = []
    faults: list[Fault] = []
    for path in audio:
        name = path.relative_to(root).as_posix()
        if is_unicode(name):
            named.append(path)
        else:
            message = "the name is not UTF-8; the recording is not used: rename it"
            faults.append(Fault(ascii(name)[1:-1], "", "name_not_parsed", "warning", message))
    return named, faults


def _from_pairs(root: Path, audio: Iterable[Path]) -> tuple[list[Recording], list[Fault]]:
    recordings, faults = [], []
    for path in audio:
        name = path.relative_to(root).as_posix()
        transcript = path.with_suffix(".txt")
        try:
            text = transcript.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            message = (
                f"{transcript.name} is missing although other recordings have theirs; add it, or leave this one out"
            )
            faults.append(Fault(name, "", "label_missing", "error", message, trial_id=name))
        except (OSError, UnicodeDecodeError) as error:
            message = f"{transcript.name} cannot be read as UTF-8 text ({error}); write it again"
            faults.append(Fault(name, "", "label_missing", "error", message, trial_id=name))
        else:
            recordings.append(Recording(name, path, text, speaker=path.resolve().parent.name, event=name))
    return recordings, faults


def _from_names(root: Path, audio: Iterable[Path]) -> tuple[list[Recording], list[Fault]]:
    recordings, faults = [], []
    for path in audio:
        name = path.relative_to(root).as_posix()
        parts = _DIGIT_NAME.fullmatch(path.stem)
        if parts is None:
            message = (
                "the name is not digit_speaker_take; the recording is not used: rename it, or list it in a manifest"
            )
            faults.append(Fault(name, "", "name_not_parsed", "warning", message))
        else:
            digit, speaker, take = parts.groups()
            word = DIGITS[int(digit)]
            recordings.append(Recording(name, path, word, speaker, event=f"{speaker}/{word}/{take}"))
    return recordings, faults


class _RowError(Exception):
    """A row that is not a recording: the code of the fault and its message."""


def _from_manifest(root: Path, manifest: Path) -> tuple[list[Recording], list[Fault]]:
    recordings: list[Recording] = []
    faults: list[Fault] = []
    rows_of: dict[str, int] = {}

    def fault(where: str, code: str, message: str, severity: Severity = "error") -> None:
        faults.append(Fault(manifest.name, where, code, severity, message))

    try:
        for number, row in _rows(manifest):
            try:
                recording = _recording(root, row())
                if recording.trial_id in rows_of:
                    raise _RowError("manifest_field", f"repeats row {rows_of[recording.trial_id]}; remove one")
            except _RowError as error:
                code, message = error.args
                fault(f"row {number}", code, message)
            else:
                rows_of[recording.trial_id] = number
                recordings.append(recording)
    except (OSError, UnicodeDecodeError) as error:
        fault("", "unreadable_file", f"cannot be read as UTF-8 text ({error}); write it again")
    except _RowError as error:
        code, message = error.args
        fault("", code, message)
    if not recordings and not faults:
        fault("", "manifest_field", "holds no row; list the recordings with the columns audio,text,speaker")
    return recordings, faults


def _rows(manifest: Path) -> Iterator[tuple[int, Callable[[], Mapping[str, Any]]]]:
    """Line number, and what gives the fields of that row, without the empty ones, or raises a `_RowError`."""
    with manifest.open(encoding="utf-8-sig", newline="") as file:
        if manifest.suffix == ".jsonl":
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, partial(_json_row, line)
            return
        separator = "\t" if manifest.suffix == ".tsv" else ","
        columns = _columns(manifest.name, file.readline(), separator)
        # strict: otherwise a quote that is never closed swallows every row after it
        reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
        first_line = 2
        try:
            for fields in reader:
                if fields:
                    yield first_line, partial(_table_row, columns, fields, separator)
                first_line = reader.line_num + 2
        except csv.Error as error:
            message = f"not a row of a table ({error}); close its quotes, and write a quote inside quotes twice"
            raise _RowError("manifest_field", f"row {first_line}: {message}") from error


def _columns(name: str, header: str, separator: str) -> list[str]:
    def split(by: str) -> list[str]:
        return [column.strip() for column in next(csv.reader([header], delimiter=by, skipinitialspace=True), [])]

    columns = split(separator)
    if set(AUDIO_COLUMNS) & set(columns):
        return columns
    for other, found in _SEPARATORS.items():
        if set(AUDIO_COLUMNS) & set(split(other)):
            also = ", or call the file manifest.tsv" if other == "\t" else ""
            raise _RowError(
                "manifest_field",
                f"row 1: columns separated by {found}, but {name} needs {_SEPARATORS[separator]}; replace them{also}",
            )
    shown = ", ".join(map(repr, columns)) or "nothing"
    raise _RowError("manifest_field", f"row 1: the column audio (or file, path) is missing, found {shown}; name it")


def _table_row(columns: Sequence[str], fields: Sequence[str], separator: str) -> Mapping[str, Any]:
    if len(fields) > len(columns):
        raise _RowError(
            "manifest_field",
            f"{len(fields)} fields, but row 1 names {len(columns)} columns; put a text that holds "
            f'{_SEPARATORS[separator]} into quotes: "…"',
        )
    row = dict(zip(columns, (field.strip() for field in fields), strict=False))  # the last fields may be left out
    return {name: value for name, value in row.items() if value}


def _json_row(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _RowError("manifest_field", f"not JSON ({error}); correct the line") from error
    if not isinstance(row, dict):
        raise _RowError("manifest_field", f"not an object but {line.strip()[:40]!r}; write {{…}}")
    for name, value in row.items():
        if isinstance(value, str) and not is_unicode(value):
            raise _RowError("manifest_field", f"{name} is {value!a}: half a surrogate pair; write the character")
    return {name: value for name, value in row.items() if value not in (None, "")}


def _field(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((str(row[name]).strip() for name in names if name in row), None)


def _recording(root: Path, row: Mapping[str, Any]) -> Recording:
    audio = _field(row, AUDIO_COLUMNS)
    if audio is None:
        raise _RowError("manifest_field", "the field audio (or file, path) is missing; name the recording")
    if any(ord(character) < 32 for character in audio):
        raise _RowError("manifest_field", f"audio is {audio!r}, which no file can be called; name the recording")
    file = root / audio
    resolved = file.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise _RowError(
            "path_escapes", f"{audio!r} leads out of the folder of the manifest; move the recording into it"
        )
    split = _field(row, ("split",))
    if split not in (None, *SPLITS):
        raise _RowError("manifest_field", f"split is {split!r}; choose {', '.join(SPLITS)}, or leave it empty")
    text = _field(row, TEXT_COLUMNS)
    if text is None and split != "test":
        raise _RowError("manifest_field", "the field text (or word, sentence) is missing; only split=test may lack it")
    speaker = _field(row, ("speaker",)) or resolved.parent.name
    start, end = _seconds(row, "start"), _seconds(row, "end")
    if end is not None and end <= (start or 0.0):
        raise _RowError(
            "manifest_field", f"start {start or 0:g} is not before end {end:g}; both are seconds in the file"
        )
    take = _field(row, ("take",))
    name = Path(os.path.relpath(file, root)).as_posix()
    recording = Recording(name, file, text, speaker, "", _as_split(split), start, end)
    event = _field(row, ("event",)) or (f"{speaker}/{text or ''}/{take}" if take is not None else recording.trial_id)
    return replace(recording, event=event)


def _as_split(split: str | None) -> Split | None:
    return next((known for known in SPLITS if known == split), None)


def _seconds(row: Mapping[str, Any], name: str) -> float | None:
    if name not in row:
        return None
    try:
        seconds = float(row[name])
    except (TypeError, ValueError) as error:
        raise _RowError("manifest_field", f"{name} is {row[name]!r}, expected seconds in the file") from error
    if not 0 <= seconds < float("inf"):
        raise _RowError("manifest_field", f"{name} is {row[name]!r}, expected seconds from 0 on")
    return seconds
