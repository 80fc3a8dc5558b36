"""The layouts of labelled recordings: a folder described by a manifest, one that describes itself, and a single file.

A folder described in another way (a foreign manifest) is one more `Layout` whose `read` gives `FoundRecordings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.faults import Fault
from sottovoce.core.signals import SignalKind
from sottovoce.core.splits import Split
from sottovoce.core.symbols import symbol_table
from sottovoce.data.checks_recordings import check_recordings
from sottovoce.data.config import DataConfig
from sottovoce.data.layout import Layout, OpenedTrials, Reading, holds_file
from sottovoce.data.manifest import AUDIO_SUFFIXES, MANIFESTS, Recording
from sottovoce.data.pronunciation import read_lexicon
from sottovoce.data.purpose import Progress, Purpose
from sottovoce.data.recordings import FoundRecordings, find_recordings, open_recordings
from sottovoce.features.config import PreprocessorConfig

_AUDIO_FILES: Final = ", ".join(f"*{suffix}" for suffix in sorted(AUDIO_SUFFIXES))


@dataclass(frozen=True)
class Recordings:
    """Recordings that were found, however they are described; see `DataSet`."""

    found: FoundRecordings
    pronunciations: Mapping[str, tuple[str, ...]] | None = None
    """Instead of those in the file `data.lexicon`."""

    def check(self, purpose: Purpose, progress: Progress | None) -> tuple[int, list[Fault]]:
        return check_recordings(self.found, purpose, progress)

    def open(
        self, splits: Sequence[Split], config: DataConfig, preprocessor: PreprocessorConfig, seed: int
    ) -> OpenedTrials:
        table = symbol_table(config.symbols)
        lexicon = self.pronunciations
        if lexicon is None and config.lexicon is not None:
            lexicon = read_lexicon(Path(config.lexicon), table)
        if preprocessor.log_mel is None:
            raise ConfigurationError("recordings need preprocessor.log_mel: the rate at which they are read is its")
        rate = preprocessor.log_mel.sample_rate_hz
        return open_recordings(self.found, splits, config, rate, seed, table, lexicon)


def _read_folder(path: Path, reading: Reading) -> Recordings:
    return Recordings(find_recordings(path, reading.unlabelled), reading.pronunciations)


def _read_file(path: Path, reading: Reading) -> Recordings:
    recording = Recording(path.name, path, None, path.parent.name, path.name)
    return Recordings(FoundRecordings(path, (recording,), described_in=path, unlabelled=True))


LISTED_RECORDINGS: Final = Layout(
    name="recordings",
    family="recordings",
    what="a folder of recordings",
    marks=", ".join(MANIFESTS),
    signal=SignalKind.WAVEFORM,
    is_folder=lambda folder: any((folder / name).exists() for name in MANIFESTS),
    read=_read_folder,
    recipe="recordings",
    give="a folder with a manifest.csv (audio,text,speaker) and its recordings",
)
LOOSE_RECORDINGS: Final = Layout(
    name=LISTED_RECORDINGS.name,
    family=LISTED_RECORDINGS.family,
    what="a folder of recordings",
    marks=_AUDIO_FILES,
    signal=SignalKind.WAVEFORM,
    is_folder=lambda folder: holds_file(folder, AUDIO_SUFFIXES, depth=None),
    read=_read_folder,
    recipe="recordings",
    give=LISTED_RECORDINGS.give,
)
AUDIO_FILE: Final = Layout(
    name="audio_file",
    family=LISTED_RECORDINGS.family,
    what="a single recording",
    marks=_AUDIO_FILES,
    signal=SignalKind.WAVEFORM,
    suffixes=AUDIO_SUFFIXES,
    read=_read_file,
)
