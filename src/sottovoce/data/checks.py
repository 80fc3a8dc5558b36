"""The check of a data set before any training: every trial is read, every fault reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.faults import Fault
from sottovoce.core.splits import SPLITS
from sottovoce.core.symbols import PHONEMES, SymbolTable
from sottovoce.data.checks_recordings import Audience, check_audio_file, check_recordings
from sottovoce.data.checks_t15 import CheckedFile, check_t15_files, check_t15_folder
from sottovoce.data.checks_trial import Patching, Progress
from sottovoce.data.config import LAYOUTS
from sottovoce.data.layout import HDF5_SUFFIXES, Layout, detect_layout, refuse_unread, require_layout
from sottovoce.features.config import LogMelConfig


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    layout: Layout
    trials: int
    """Trials that were looked at, sound or not."""
    faults: tuple[Fault, ...]


def fatal_faults(report: CheckReport) -> tuple[Fault, ...]:
    """The faults that make a trial or file unusable."""
    return tuple(fault for fault in report.faults if fault.severity == "error")


def unusable_trials(report: CheckReport) -> dict[str, Fault]:
    """The trials of a folder that hold an error, by the ids that its reader gives them; each with its first error.

    Errors of a whole file, and of a manifest, name no trial: opening the data set finds those again.
    """
    found: dict[str, Fault] = {}
    for fault in fatal_faults(report):
        if report.layout == "t15" and fault.trial:
            file = Path(fault.file)
            found.setdefault(f"{file.parent.name}/{file.stem.removeprefix('data_')}/{fault.trial}", fault)
        elif report.layout == "recordings":
            found.setdefault(f"{fault.file}#{fault.trial}" if fault.trial else fault.file, fault)
    return found


def check_path(
    path: Path,
    layout: str = "auto",
    patch_size: int = 14,
    patch_stride: int = 4,
    num_channels: int | None = None,
    expected_symbols: SymbolTable = PHONEMES,
    max_sessions: int | None = None,
    lexicon: Mapping[str, tuple[str, ...]] | None = None,
    front_end: LogMelConfig | None = None,
    audio_channel: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Read every trial of a folder or a single file and report its faults.

    `patch_size` bins every `patch_stride` are one frame of the model; for recordings this counts only together with
    `front_end`, whose frames are patched. Texts of recordings are checked where `expected_symbols` are letters or
    there is a `lexicon`. `audio_channel` is `data.audio_channel`. `progress` is called with the trials done and their
    number. In the faults, files are named from `path`. Faults of a folder as a whole (missing splits, leaks, duplicates
    across files) are not looked for in a single file, nor among files that belong to no session.

    Raises:
        DataError: `path` does not exist, is empty, or holds no data set of a layout that can be read.
        ConfigurationError: a geometry or layout that does not exist.
    """
    if layout not in LAYOUTS:
        raise ConfigurationError(f"layout={layout}: choose one of {', '.join(LAYOUTS)}")
    if patch_size < 1 or patch_stride < 1:
        raise ConfigurationError(f"patch size and stride must be at least 1; got {patch_size} and {patch_stride}")
    if audio_channel is not None and audio_channel < 0:
        raise ConfigurationError(f"audio channel {audio_channel}: channels count from 0")
    patching = Patching(patch_size, patch_stride)
    audience = Audience(expected_symbols, lexicon, front_end, patching, audio_channel)
    found = detect_layout(path)
    refuse_unread(path, found)
    family = {"t15_file": "t15", "t15_files": "t15", "audio_file": "recordings"}.get(found, found)
    if layout != "auto" and family != layout:
        require_layout(path, layout)
    if found == "t15":
        trials, faults = check_t15_folder(path, patching, expected_symbols, num_channels, max_sessions, progress)
    elif found == "recordings":
        trials, faults = check_recordings(path, audience, progress)
    elif found == "audio_file":
        trials, faults = 1, check_audio_file(path, audience)
    else:
        files = (
            [path] if found == "t15_file" else sorted(p for p in path.iterdir() if p.suffix.lower() in HDF5_SUFFIXES)
        )
        trials, faults = 0, []
        for file in files:
            split = next((split for split in SPLITS if file.stem == f"data_{split}"), None)
            single = CheckedFile(file, file.name, None, split)
            count, of_file = check_t15_files([single], patching, expected_symbols, num_channels, progress)
            trials += count
            faults += of_file
    return CheckReport(found, trials, tuple(faults))
