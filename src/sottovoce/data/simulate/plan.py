"""Where every simulated trial stands: sessions, blocks, modes, splits and sentences, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Final

from sottovoce.core.random import numpy_generator
from sottovoce.core.splits import Split
from sottovoce.data.simulate.articulation import Mode
from sottovoce.data.simulate.sentences import sentences_of
from sottovoce.data.simulate.settings import SimulationSettings

OFFICIAL_DATES: Final = (
    "2023.08.11 2023.08.13 2023.08.18 2023.08.20 2023.08.25 2023.08.27 2023.09.01 2023.09.03 2023.09.24 2023.09.29 "
    "2023.10.01 2023.10.06 2023.10.08 2023.10.13 2023.10.15 2023.10.20 2023.10.22 2023.11.03 2023.11.04 2023.11.17 "
    "2023.11.19 2023.11.26 2023.12.03 2023.12.08 2023.12.10 2023.12.17 2023.12.29 2024.02.25 2024.03.03 2024.03.08 "
    "2024.03.15 2024.03.17 2024.04.25 2024.04.28 2024.05.10 2024.06.14 2024.07.19 2024.07.21 2024.07.28 2025.01.10 "
    "2025.01.12 2025.03.14 2025.03.16 2025.03.30 2025.04.13"
).split()
"""Recording days of T15 in the order of the official model (nejm-brain-to-text, `rnn_args.yaml`)."""
TRAIN_ONLY: Final = frozenset({0, 28, 32, 33})
"""Days without validation and test trials."""
IMPLANT_DAY: Final = date(2023, 7, 17)
NUM_PRACTICE: Final = 2
"""Sentences said before each block and not stored: the statistics that its first trials are z-scored with."""

_SENTENCES, _MODE, _PRACTICE = 10, 11, 12


@dataclass(frozen=True)
class PlannedTrial:
    """One place in a data set."""

    split: Split
    number: int
    """Index in the split's file."""
    sentence: str


@dataclass(frozen=True)
class PlannedBlock:
    """Trials recorded in one go, in the order of recording."""

    number: int
    """From 1."""
    mode: Mode
    trials: tuple[PlannedTrial, ...]
    practice: tuple[str, ...]

    @property
    def kind(self) -> str:
        """`Train` or `Val/Test`, as the description table names it: val and test share their blocks."""
        return "Train" if self.trials[0].split == "train" else "Val/Test"


@dataclass(frozen=True)
class PlannedSession:
    """One recording day."""

    index: int
    name: str
    blocks: tuple[PlannedBlock, ...]

    @property
    def day(self) -> date:
        """Its date."""
        return date.fromisoformat(OFFICIAL_DATES[self.index].replace(".", "-"))

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the session has."""
        present = {trial.split for block in self.blocks for trial in block.trials}
        ordered: tuple[Split, ...] = ("train", "val", "test")
        return tuple(split for split in ordered if split in present)


@cache
def _sentence_order(seed: int, split: Split) -> tuple[int, ...]:
    index = ("train", "val", "test").index(split)
    order = numpy_generator(seed, "simulation", _SENTENCES, index).permutation(len(sentences_of(split)))
    return tuple(order.tolist())


def _sentence(settings: SimulationSettings, session: int, split: Split, number: int, per_session: int) -> str:
    """Sentences of a split in a shuffled order, none twice before each was said once."""
    order = _sentence_order(settings.seed, split)
    return sentences_of(split)[order[(session * per_session + number) % len(order)]]


def _interleaved(num_val: int, num_test: int) -> list[tuple[Split, int]]:
    """Validation and test trials spread evenly over the same blocks."""
    val: list[tuple[float, Split, int]] = [((i + 0.5) / num_val, "val", i) for i in range(num_val)]
    test: list[tuple[float, Split, int]] = [((i + 0.5) / num_test, "test", i) for i in range(num_test)]
    return [(split, number) for _, split, number in sorted(val + test)]


def plan_session(settings: SimulationSettings, session: int) -> PlannedSession:
    """The blocks of one day: train blocks first, then those that validation and test share; modes alternate."""
    per_session = {"train": settings.trials, "val": settings.num_val_trials, "test": settings.num_test_trials}
    train: list[tuple[Split, int]] = [("train", number) for number in range(settings.trials)]
    has_others = session not in TRAIN_ONLY or settings.sessions == 1
    others = _interleaved(per_session["val"], per_session["test"]) if has_others else []
    first_mode = int(numpy_generator(settings.seed, "simulation", _MODE, session).integers(2))
    blocks: list[PlannedBlock] = []
    size = settings.block_trials
    for places in (*_cut(train, size), *_cut(others, size)):
        number = len(blocks) + 1
        mode: Mode = "silent" if (number + first_mode) % 2 else "vocalised"
        drawn = numpy_generator(settings.seed, "simulation", _PRACTICE, session, number)
        practice = drawn.integers(len(sentences_of("train")), size=NUM_PRACTICE).tolist()
        trials = tuple(
            PlannedTrial(split, index, _sentence(settings, session, split, index, per_session[split]))
            for split, index in places
        )
        blocks.append(PlannedBlock(number, mode, trials, tuple(sentences_of("train")[i] for i in practice)))
    return PlannedSession(session, f"t15.{OFFICIAL_DATES[session]}", tuple(blocks))


def _cut(places: list[tuple[Split, int]], size: int) -> list[list[tuple[Split, int]]]:
    return [places[first : first + size] for first in range(0, len(places), size)]
