"""Which recordings train, select and test: pure functions of the recordings and a seed.

Recordings of one spoken event always stay together. An event's split depends only on the seed and on the other
events of the same speaker and text, so that adding a speaker or a word moves nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rapidfuzz import process

from sottovoce.core.errors import ConfigurationError
from sottovoce.core.random import numpy_generator
from sottovoce.core.splits import SPLITS, Split


@dataclass(frozen=True)
class Row:
    """What decides the split of a recording."""

    speaker: str
    text: str
    event: str
    split: Split | None = None
    """As the manifest states it."""


def assign_splits(
    rows: Sequence[Row],
    held_out_speakers: Collection[str] = (),
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> list[Split]:
    """The split of each of `rows`.

    A stated split stands, for the whole event. Held-out speakers are the test split, and then nobody else is
    drawn into it. The other events are drawn a stratum (speaker and text) at a time: the expected shares are exact,
    and a stratum of n events gives its share of n, rounded up or down. Where that leaves validation (or test) empty,
    the event that was nearest to it moves, as long as training keeps one.

    Raises:
        ConfigurationError: a held-out speaker does not occur, or the manifest puts one of its recordings elsewhere.
    """
    _check_held_out(rows, held_out_speakers)
    stated = {row.event: row.split for row in rows if row.split is not None}
    drawn: dict[str, Row] = {}
    for row in rows:
        if row.event not in stated and row.speaker not in held_out_speakers:
            earlier = drawn.setdefault(row.event, row)
            drawn[row.event] = min(earlier, row, key=lambda r: (r.speaker, r.text))
    shares = (val_fraction, 0.0 if held_out_speakers else test_fraction)
    splits = _draw(drawn, shares, seed)
    _fill_empty(splits, shares, {s for s in stated.values() if s is not None}, seed)

    def split(row: Row) -> Split:
        if row.split is not None:
            return row.split
        if row.speaker in held_out_speakers:
            return "test"
        return stated.get(row.event) or splits[row.event]

    return [split(row) for row in rows]


def leaking_events(rows: Sequence[Row], splits: Sequence[Split]) -> dict[str, tuple[Split, ...]]:
    """Events with recordings in more than one split, and those splits."""
    found: dict[str, set[Split]] = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        found[row.event].add(split)
    return {event: tuple(s for s in SPLITS if s in used) for event, used in found.items() if len(used) > 1}


def _check_held_out(rows: Sequence[Row], held_out_speakers: Collection[str]) -> None:
    speakers = sorted({row.speaker for row in rows})
    for speaker in held_out_speakers:
        if speaker not in speakers:
            nearest = process.extractOne(speaker, speakers)
            suggestion = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigurationError(
                f"data.held_out_speakers: {speaker!r} is not one of the speakers {', '.join(speakers)}{suggestion}"
            )
        elsewhere = sum(row.speaker == speaker and row.split in ("train", "val") for row in rows)
        if elsewhere:
            raise ConfigurationError(
                f"data.held_out_speakers: the manifest puts {elsewhere} recordings of {speaker!r} into train or val; "
                "remove them from its column split, or do not hold this speaker out"
            )


def _uniform(seed: int, *names: str) -> float:
    """A number in [0, 1) that depends on `seed` and `names` only."""
    digest = hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest()
    return float(numpy_generator(seed, "split", int.from_bytes(digest, "big")).random())


def _draw(events: dict[str, Row], shares: tuple[float, float], seed: int) -> dict[str, Split]:
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event, row in events.items():
        strata[row.speaker, row.text].append(event)
    splits: dict[str, Split] = {}
    for (speaker, text), members in strata.items():
        ordered = sorted(members, key=lambda event: (_uniform(seed, "event", event), event))
        start = _uniform(seed, "stratum", speaker, text)  # rounds the shares up or down, both with the same draw
        num_val = math.floor(len(members) * shares[0] + start)
        num_test = math.floor(len(members) * sum(shares) + start) - num_val
        for i, event in enumerate(ordered):
            splits[event] = "val" if i < num_val else "test" if i < num_val + num_test else "train"
    return splits


def _fill_empty(splits: dict[str, Split], shares: tuple[float, float], stated: set[Split], seed: int) -> None:
    wanted: tuple[tuple[Split, float], ...] = (("val", shares[0]), ("test", shares[1]))
    for split, share in wanted:
        training = [event for event, drawn in splits.items() if drawn == "train"]
        if share > 0 and split not in stated and split not in splits.values() and len(training) > 1:
            splits[min(training, key=lambda event: (_uniform(seed, split, event), event))] = split
