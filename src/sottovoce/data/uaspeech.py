"""UASpeech (Kim et al. 2008): recognised, not read yet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sottovoce.core.signals import SignalKind
from sottovoce.data.layout import Layout


def _is_folder(folder: Path) -> bool:
    return (folder / "audio").is_dir() and (folder / "mlf").is_dir()


UASPEECH: Final = Layout(
    name="uaspeech",
    family="uaspeech",
    what="UASpeech",
    marks="audio/ and mlf/",
    signal=SignalKind.WAVEFORM,
    is_folder=_is_folder,
    unread="reading UASpeech is not part of this version yet: list its recordings in a manifest.csv beside audio/",
)
