"""Which layout a path holds, and one clear line when it is not the one that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from sottovoce.core.errors import DataError
from sottovoce.data.manifest import AUDIO_SUFFIXES, MANIFESTS
from sottovoce.data.t15 import find_sessions

Layout = Literal["t15", "t15_files", "t15_file", "t12", "uaspeech", "recordings", "audio_file"]
"""`t15_file` is one HDF5 file, `t15_files` a folder of such files that belong to no session."""

HDF5_SUFFIXES: Final = frozenset({".hdf5", ".h5"})
_LOOKS_LIKE: Final[dict[str, str]] = {
    "t15": "a T15 data set (folders t15.YYYY.MM.DD)",
    "t15_files": "single T15 files outside session folders (*.hdf5)",
    "t15_file": "a single T15 file (HDF5)",
    "t12": "T12 (competitionData or *.mat)",
    "uaspeech": "UASpeech (audio/ and mlf/)",
    "recordings": "a folder of recordings (audio files, or a manifest)",
    "audio_file": "a single recording",
}
NOT_YET: Final[frozenset[Layout]] = frozenset({"t12", "uaspeech"})
_WAYS_OUT: Final = {
    "t15": "give the folder that holds the session folders",
    "recordings": "give a folder with a manifest.csv (audio,text,speaker) and its recordings",
}
_RECIPES: Final = {"t15": "t15_gru", "recordings": "recordings"}


def detect_layout(path: Path) -> Layout:
    """The layout of `path`, from the names of its files and folders; no file is opened.

    Raises:
        DataError: `path` does not exist, cannot be listed, is empty, or holds nothing known (`not_this_layout`).
    """
    if str(path) == "???":
        raise DataError("data.data_root is not set; give data.data_root=FOLDER")
    if not path.exists():
        raise DataError(
            f"{path} does not exist; give a folder of the T15 layout or a folder of recordings, or one file"
        )
    try:
        found = _file_layout(path) if path.is_file() else _folder_layout(path)
        if found is None:
            raise DataError(_nothing_known(path), code="not_this_layout")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
    return found


def require_layout(path: Path, wanted: str, reader: str = "") -> None:
    """Insist that `path` is a folder of the layout `wanted` (`t15` or `recordings`).

    `reader` names what asks, e.g. `recipe=t15_gru`.

    Raises:
        DataError: it is another layout, or none (`not_this_layout`).
    """
    found = detect_layout(path)
    if found != wanted:
        contrast = f"which {reader} cannot read" if reader else f"expected {_LOOKS_LIKE[wanted]}"
        recipe = f", or train it with recipe={_RECIPES[found]}" if found in _RECIPES else ""
        raise DataError(
            f"{path} looks like {_LOOKS_LIKE[found]}, {contrast}; {_WAYS_OUT[wanted]}{recipe}{_not_yet(found)}",
            code="not_this_layout",
        )


def refuse_unread(path: Path, layout: Layout) -> None:
    """Stop at a layout that is known but that this version does not read.

    Raises:
        DataError: `layout` is T12 or UASpeech (`not_this_layout`).
    """
    if layout in NOT_YET:
        raise DataError(
            f"{path} looks like {_LOOKS_LIKE[layout]}; give a T15 folder or a folder of recordings{_not_yet(layout)}",
            code="not_this_layout",
        )


def _not_yet(layout: Layout) -> str:
    name = _LOOKS_LIKE[layout].split(" (")[0]
    return f" (reading {name} is not part of this version yet)" if layout in NOT_YET else ""


def _file_layout(path: Path) -> Layout | None:
    suffix = path.suffix.lower()
    if suffix in HDF5_SUFFIXES:
        return "t15_file"
    if suffix in AUDIO_SUFFIXES:
        return "audio_file"
    return "t12" if suffix == ".mat" else None


def _folder_layout(path: Path) -> Layout | None:
    children = sorted(path.iterdir())
    if find_sessions(path):
        return "t15"
    if path.name == "competitionData" or (path / "competitionData").is_dir() or _any(path, {".mat"}, depth=2):
        return "t12"
    if any(child.name in MANIFESTS for child in children):
        return "recordings"
    if (path / "audio").is_dir() and (path / "mlf").is_dir():
        return "uaspeech"
    if _any(path, HDF5_SUFFIXES, depth=1):
        return "t15_files"
    return "recordings" if _any(path, AUDIO_SUFFIXES, depth=None) else None


def _any(path: Path, suffixes: frozenset[str] | set[str], depth: int | None) -> bool:
    below = path.rglob("*") if depth is None else (p for n in range(depth) for p in path.glob("/".join("*" * (n + 1))))
    return any(p.suffix.lower() in suffixes and p.is_file() for p in below)


def _nothing_known(path: Path) -> str:
    if path.is_file():
        looked = f"a file ending in {', '.join(sorted(HDF5_SUFFIXES | AUDIO_SUFFIXES))}"
        return f"{path} is not {looked}; give one, or the folder of a data set"
    names = sorted(child.name for child in path.iterdir())
    found = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing: it is empty"
    return (
        f"{path} holds no data set: looked for folders t15.YYYY.MM.DD, {', '.join(MANIFESTS)} and "
        f"recordings, found {found}; give the folder that holds one of these"
    )
