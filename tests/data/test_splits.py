from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.core.errors import ConfigurationError
from sottovoce.data.splits import Row, assign_splits, leaking_events


def digits(speakers: str = "ab", words: str = "xyz", takes: int = 50) -> list[Row]:
    return [Row(s, w, f"{s}/{w}/{t}") for s in speakers for w in words for t in range(takes)]


def test_shares_hold_in_every_stratum() -> None:
    rows = digits()
    splits = assign_splits(rows, val_fraction=0.1, test_fraction=0.2)
    counts = Counter((r.speaker, r.text, s) for r, s in zip(rows, splits, strict=True))
    for speaker in "ab":
        for word in "xyz":
            assert [counts[speaker, word, s] for s in ("train", "val", "test")] == [35, 5, 10]


def test_the_seed_decides() -> None:
    rows = digits()
    assert assign_splits(rows, seed=1) == assign_splits(rows, seed=1)
    assert assign_splits(rows, seed=1) != assign_splits(rows, seed=2)


def test_order_and_other_speakers_do_not_matter() -> None:
    rows = digits()
    more = [*digits("c"), *reversed(rows)]
    by_event = dict(zip((r.event for r in more), assign_splits(more), strict=True))
    assert [by_event[r.event] for r in rows] == assign_splits(rows)


def test_single_sentences_get_their_share_on_average() -> None:
    rows = [Row("a", f"sentence {i}", str(i)) for i in range(1000)]
    counts = Counter(assign_splits(rows, val_fraction=0.1, test_fraction=0.3))
    assert counts["val"] == pytest.approx(100, abs=30) and counts["test"] == pytest.approx(300, abs=45)


def test_a_small_set_still_has_every_split() -> None:
    for seed in range(20):
        rows = [Row("a", f"sentence {i}", str(i)) for i in range(4)]
        assert set(assign_splits(rows, seed=seed)) == {"train", "val", "test"}
    assert assign_splits([Row("a", "x", "1")]) == assign_splits([Row("a", "x", "1")])


def test_held_out_speakers_are_the_test_split_alone() -> None:
    rows = digits("abc", takes=10)
    splits = assign_splits(rows, held_out_speakers=("b",), val_fraction=0.2, test_fraction=0.3)
    counts = Counter((r.speaker, s) for r, s in zip(rows, splits, strict=True))
    assert counts == {("a", "train"): 24, ("a", "val"): 6, ("b", "test"): 30, ("c", "train"): 24, ("c", "val"): 6}


def test_stated_splits_stand_and_draw_their_event_along() -> None:
    rows = [
        Row("a", "x", "1", "val"),
        Row("a", "x", "1"),
        *[Row("a", "x", str(i), "train") for i in range(2, 9)],
        Row("a", "x", "9", "test"),
    ]
    assert assign_splits(rows) == ["val", "val", *["train"] * 7, "test"]


def test_unknown_held_out_speaker() -> None:
    with pytest.raises(
        ConfigurationError, match="'jacksn' is not one of the speakers jackson, theo; did you mean jackson"
    ):
        assign_splits([Row("theo", "x", "1"), Row("jackson", "x", "2")], held_out_speakers=("jacksn",))


def test_held_out_speaker_that_the_manifest_trains_on() -> None:
    with pytest.raises(ConfigurationError, match="the manifest puts 1 recordings of 'theo' into train or val"):
        assign_splits([Row("theo", "x", "1", "train"), Row("jackson", "x", "2")], held_out_speakers=("theo",))


def test_leaking_events() -> None:
    rows = [Row("a", "x", "1", "test"), Row("a", "x", "1", "train"), Row("a", "x", "2", "val")]
    assert leaking_events(rows, assign_splits(rows)) == {"1": ("train", "test")}


ROWS = st.lists(
    st.builds(Row, st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 8).map(str)), min_size=1, max_size=40
)


@settings(deadline=None)
@given(ROWS, st.integers(0, 3), st.sampled_from([(), ("a",)]))
def test_an_event_is_never_cut(rows: list[Row], seed: int, held_out: tuple[str, ...]) -> None:
    rows = [Row(r.speaker, r.text, f"{r.speaker}{r.event}") for r in rows]
    held_out = tuple(s for s in held_out if any(r.speaker == s for r in rows))
    splits = assign_splits(rows, held_out, 0.3, 0.3, seed)
    assert leaking_events(rows, splits) == {}
    for row, split in zip(rows, splits, strict=True):
        assert (split == "test") == (row.speaker in held_out) or not held_out
