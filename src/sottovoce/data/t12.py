"""T12 (Willett et al. 2023): recognised, not read yet."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sottovoce.core.signals import SignalKind
from sottovoce.data.layout import Layout, holds_file

_SUFFIXES: Final = frozenset({".mat"})


def _is_folder(folder: Path) -> bool:
    named = folder.name == "competitionData" or (folder / "competitionData").is_dir()
    return named or holds_file(folder, _SUFFIXES, depth=2)


T12: Final = Layout(
    name="t12",
    family="t12",
    what="T12",
    marks="competitionData or *.mat",
    signal=SignalKind.BINNED,
    is_folder=_is_folder,
    suffixes=_SUFFIXES,
    unread="reading T12 is not part of this version yet",
)
