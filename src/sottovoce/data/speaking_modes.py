"""Speaking-mode labels: the mode is constant within a block, so a block has one label or none.

Known labels come from the data set's ground truth or from a file of the user's; without either, `mode_estimation`
finds pseudo-labels. A label is the probability that the block was vocalised: 0 silent, 1 vocalised.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from sottovoce.core.errors import DataError
from sottovoce.core.trial import Trial

Block = tuple[str, int]
"""Session and block number."""
MODES: Final = ("silent", "vocalised")
MODE_FILE_COLUMNS: Final = ("session", "block", "mode")
UNKNOWN: Final = 0.5


@dataclass(frozen=True)
class BlockModes:
    """The speaking mode of blocks."""

    vocalised: Mapping[Block, float]
    """Probability of vocalised speech in [0, 1]; 0.5 where nothing tells the mode."""
    origin: Literal["ground_truth", "file", "pseudo"]

    def of(self, trial: Trial) -> float | None:
        """The trial's probability of vocalised speech; None where its block has no label."""
        known = None if trial.block is None else self.vocalised.get((trial.session, trial.block))
        return None if known == UNKNOWN else known

    @property
    def confidence(self) -> float:
        """Mean over the blocks of the probability of the likelier mode, in [0.5, 1]."""
        return sum(max(p, 1 - p) for p in self.vocalised.values()) / len(self.vocalised)

    def agreement(self, other: BlockModes) -> float:
        """Share of the other's labelled blocks whose likelier mode is the same here; blocks unknown here count as not.

        >>> known = BlockModes({("day", 1): 0.0, ("day", 2): 1.0}, "ground_truth")
        >>> BlockModes({("day", 1): 0.1, ("day", 2): 0.5}, "pseudo").agreement(known)
        0.5
        """
        compared = {block: p for block, p in other.vocalised.items() if p != UNKNOWN}
        mine = (self.vocalised.get(block, UNKNOWN) for block in compared)
        same = sum(
            (p > UNKNOWN) == (q > UNKNOWN) and p != UNKNOWN for p, q in zip(mine, compared.values(), strict=True)
        )
        return same / len(compared)


def block_of(trial: Trial) -> Block:
    """Session and block of a trial.

    Raises:
        DataError: the trial has no block number.
    """
    if trial.block is None:
        raise DataError(f"{trial.trial_id}: no block number, and the speaking mode is a property of blocks")
    return trial.session, trial.block


def stated_modes(trials: Iterable[Trial]) -> BlockModes | None:
    """The modes that the data set itself states (`ground_truth.jsonl`), or None where no trial has one.

    Raises:
        DataError: two trials of a block state different modes, or a trial that states one has no block number.
    """
    found: dict[Block, tuple[str, str]] = {}
    for trial in trials:
        if not trial.mode:
            continue
        session, block = block_of(trial)
        mode, first = found.setdefault((session, block), (trial.mode, trial.trial_id))
        if mode != trial.mode:
            raise DataError(
                f"block {block} of session {session} is {mode} according to {first} and "
                f"{trial.mode} according to {trial.trial_id}; the mode is constant within a block: correct the file",
                code="mode_contradiction",
            )
    if not found:
        return None
    return BlockModes({block: float(MODES.index(mode)) for block, (mode, _) in found.items()}, "ground_truth")


def read_mode_file(path: Path, trials: Iterable[Trial]) -> BlockModes:
    """The modes of a CSV file with the columns session, block, mode (`silent` or `vocalised`), a line a block.

    Raises:
        DataError: the file cannot be read, a line is wrong or contradicts another, or names a block that no trial has.
    """
    present = {block_of(trial) for trial in trials}
    modes: dict[Block, float] = {}
    for where, session, number, mode in _mode_lines(path):
        if mode not in MODES:
            raise DataError(f"{where}: mode {mode!r} is neither silent nor vocalised")
        if not number.isdecimal() or (session, int(number)) not in present:
            raise DataError(
                f"{where}: there is no block {number!r} in session {session!r}; {_blocks(present, session)}"
            )
        block = session, int(number)
        if modes.setdefault(block, float(MODES.index(mode))) != MODES.index(mode):
            raise DataError(
                f"{where}: block {number} of session {session} was {MODES[int(modes[block])]} in "
                f"an earlier line and is {mode} here",
                code="mode_contradiction",
            )
    if not modes:
        raise DataError(f"{path} labels no block; give a line session,block,mode for each block you know")
    return BlockModes(modes, "file")


def _mode_lines(path: Path) -> list[tuple[str, str, str, str]]:
    """Place, session, block and mode of every line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in MODE_FILE_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: the column {', '.join(missing)} is missing; the first line is session,block,mode"
                )
            lines = []
            for row in reader:
                session, block, mode = ((row[name] or "").strip() for name in MODE_FILE_COLUMNS)
                lines.append((f"{path}, line {reader.line_num}", session, block, mode))
            return lines
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a label file ({error})") from error


def _blocks(present: Iterable[Block], session: str) -> str:
    numbers = sorted(block for name, block in present if name == session)
    if numbers:
        return f"its blocks are {', '.join(map(str, numbers))}"
    return f"the sessions are {', '.join(sorted({name for name, _ in present}))}"
