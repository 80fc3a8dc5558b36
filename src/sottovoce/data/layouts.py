"""The layouts of data sets, and one clear line when a path holds none of them or not the one that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.signals import SignalKind
from sottovoce.data.config import DataConfig
from sottovoce.data.layout import Layout
from sottovoce.data.recordings_layout import AUDIO_FILE, LISTED_RECORDINGS, LOOSE_RECORDINGS
from sottovoce.data.t12 import T12
from sottovoce.data.t15_layout import T15, T15_FILE, T15_FILES
from sottovoce.data.uaspeech import UASPEECH

LAYOUTS: Final[tuple[Layout, ...]] = (
    T15,
    T12,
    LISTED_RECORDINGS,
    UASPEECH,
    T15_FILES,
    T15_FILE,
    LOOSE_RECORDINGS,
    AUDIO_FILE,
)
"""In the order in which they are asked: the first that recognises a path has it."""
AUTO: Final = "auto"


def detect_layout(path: Path) -> Layout:
    """The layout of `path`, from the names of its files and folders; no file is opened.

    Raises:
        DataError: `path` does not exist, cannot be listed, is empty, or holds nothing known (`not_this_layout`).
    """
    if str(path) == "???":
        raise DataError("data.data_root is not set; give data.data_root=FOLDER")
    if not path.exists():
        raise DataError(f"{path} does not exist; give {_ways(_trainable(LAYOUTS))}, or one file")
    try:
        is_file = path.is_file()
        for layout in LAYOUTS:
            if path.suffix.lower() in layout.suffixes if is_file else layout.is_folder(path):
                return layout
        raise DataError(_nothing_known(path), code="not_this_layout")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


def named_layout(path: Path, name: str) -> Layout:
    """The layout of `path`, which is one that can be read and of the family `name` (`auto`: any).

    Raises:
        DataError: it is another one, one that is not read yet, or none (`not_this_layout`).
        ConfigurationError: there is no such family.
    """
    readable = [layout for layout in LAYOUTS if not layout.unread]
    names = dict.fromkeys(layout.family for layout in readable)
    if name not in (AUTO, *names):
        raise ConfigurationError(f"layout={name}: choose one of {', '.join((AUTO, *names))}")
    accepted = [layout for layout in readable if name in (AUTO, layout.family)]
    expected = "" if name == AUTO else f", expected {accepted[0].looks_like}"
    return _one_of(path, accepted, expected)


def trainable_layout(path: Path, config: DataConfig, accepts: SignalKind) -> Layout:
    """The layout of `path`, which a run with these settings and a front end that `accepts` such signals can train on.

    Raises:
        DataError: it cannot, or `path` holds nothing known (`not_this_layout`).
        ConfigurationError: its labels are stored in other symbols than `data.symbols`.
    """
    accepted = [layout for layout in _trainable(LAYOUTS) if layout.signal == accepts]
    key = f"{'with' if accepts == SignalKind.WAVEFORM else 'without'} preprocessor.log_mel"
    found = _one_of(path, accepted, f", which a recipe for {accepts} ({key}) cannot read")
    if found.stored_symbols not in ("", config.symbols):
        raise ConfigurationError(
            f"data.symbols={config.symbols}: {found.family.upper()} files hold {found.stored_symbols}; "
            f"set data.symbols={found.stored_symbols}"
        )
    return found


def _one_of(path: Path, accepted: Sequence[Layout], contrast: str) -> Layout:
    found = detect_layout(path)
    if found in accepted:
        return found
    recipe = f", or train it with recipe={found.recipe}" if found.recipe else ""
    unread = f" ({found.unread})" if found.unread else ""
    raise DataError(
        f"{path} looks like {found.looks_like}{contrast}; give {_ways(_trainable(accepted))}{recipe}{unread}",
        code="not_this_layout",
    )


def _trainable(layouts: Sequence[Layout]) -> list[Layout]:
    return [layout for layout in layouts if layout.recipe]


def _ways(layouts: Sequence[Layout]) -> str:
    return ", or ".join(dict.fromkeys(layout.give for layout in layouts))


def _nothing_known(path: Path) -> str:
    readable = [layout for layout in LAYOUTS if not layout.unread]
    if path.is_file():
        suffixes = sorted(suffix for layout in readable for suffix in layout.suffixes)
        return f"{path} is not a file ending in {', '.join(suffixes)}; give one, or the folder of a data set"
    names = sorted(child.name for child in path.iterdir())
    found = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing: it is empty"
    marks = ", ".join(dict.fromkeys(layout.marks for layout in readable))
    return f"{path} holds no data set: looked for {marks}, found {found}; give the folder that holds one of these"
