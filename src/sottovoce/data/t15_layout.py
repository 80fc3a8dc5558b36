"""The layouts of T15: folders of sessions, and single files outside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sottovoce.core.errors import DataError
from sottovoce.core.faults import Fault
from sottovoce.core.signals import SignalKind
from sottovoce.core.splits import Split
from sottovoce.core.symbols import PHONEMES
from sottovoce.data.checks_t15 import check_files, check_t15
from sottovoce.data.config import DataConfig
from sottovoce.data.layout import Layout, OpenedTrials, holds_file
from sottovoce.data.purpose import Progress, Purpose
from sottovoce.data.t15 import open_t15
from sottovoce.data.t15_structure import HDF5_SUFFIXES, T15Structure, find_sessions, read_t15, read_t15_files
from sottovoce.features.config import PreprocessorConfig


@dataclass(frozen=True)
class _Sessions:
    """A folder of sessions; see `DataSet`."""

    structure: T15Structure

    def check(self, purpose: Purpose, progress: Progress | None) -> tuple[int, list[Fault]]:
        return check_t15(self.structure, purpose, progress)

    def open(
        self, splits: Sequence[Split], config: DataConfig, preprocessor: PreprocessorConfig, seed: int
    ) -> OpenedTrials:
        return open_t15(self.structure, splits, config.on_fault)


@dataclass(frozen=True)
class _Files:
    """Single files; see `DataSet`. Each is checked for itself, whatever lies beside it, and none can be trained on."""

    structure: T15Structure

    def check(self, purpose: Purpose, progress: Progress | None) -> tuple[int, list[Fault]]:
        checked = [check_files([file], purpose, progress) for file in self.structure.files]
        return sum(count for count, _ in checked), [fault for _, faults in checked for fault in faults]

    def open(
        self, splits: Sequence[Split], config: DataConfig, preprocessor: PreprocessorConfig, seed: int
    ) -> OpenedTrials:
        raise DataError(f"{self.structure.root} belongs to no session; give {T15.give}", code="not_this_layout")


T15: Final = Layout(
    name="t15",
    family="t15",
    what="a T15 data set",
    marks="folders t15.YYYY.MM.DD",
    signal=SignalKind.BINNED,
    is_folder=lambda folder: bool(find_sessions(folder)),
    read=lambda path, reading: _Sessions(read_t15(path, reading.max_sessions)),
    recipe="t15_gru",
    give="the folder that holds the session folders",
    stored_symbols=PHONEMES.name,
)
T15_FILES: Final = Layout(
    name="t15_files",
    family=T15.family,
    what="single T15 files outside session folders",
    marks="*.hdf5, *.h5",
    signal=SignalKind.BINNED,
    is_folder=lambda folder: holds_file(folder, HDF5_SUFFIXES, depth=1),
    read=lambda path, reading: _Files(read_t15_files(path)),
    stored_symbols=PHONEMES.name,
)
T15_FILE: Final = Layout(
    name="t15_file",
    family=T15.family,
    what="a single T15 file",
    marks="*.hdf5, *.h5",
    signal=SignalKind.BINNED,
    suffixes=HDF5_SUFFIXES,
    read=T15_FILES.read,
    stored_symbols=PHONEMES.name,
)
