"""Speaking-mode labels from ground truth and from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from sottovoce.core.errors import DataError
from sottovoce.core.trial import Trial
from sottovoce.data.speaking_modes import BlockModes, read_mode_file, stated_modes
from sottovoce.data.t15 import open_t15
from sottovoce.data.t15_structure import read_t15


def _trial(
    block: int | None,
    mode: Literal["silent", "vocalised", ""] = "",
    session: str = "t15.2023.08.13",
    name: str = "trial_0000",
) -> Trial:
    return Trial(f"{session}/train/{name}", "train", session, 80, None, None, Path("x"), block=block, mode=mode)


TRIALS = [_trial(1, session="a"), _trial(2, session="a"), _trial(2, session="a"), _trial(1, session="b")]


def test_the_simulators_ground_truth_is_found(tiny_t15: Path) -> None:
    trials = open_t15(read_t15(tiny_t15), ("train", "val", "test")).trials
    modes = stated_modes(trials)
    assert modes is not None
    assert modes.origin == "ground_truth"
    assert modes.confidence == 1.0
    lines = (tiny_t15 / "ground_truth.jsonl").read_text(encoding="utf-8").splitlines()
    truth = {(r["session"], r["split"], r["trial"]): r["mode"] for r in map(json.loads, lines)}
    assert len(trials) == len(truth)
    for trial in trials:
        assert modes.of(trial) == float(truth[trial.session, trial.split, trial.key] == "vocalised")


def test_the_sample_s_other_field_layout_is_read_too(shared_data: Path) -> None:
    modes = stated_modes(open_t15(read_t15(shared_data / "t15_sample"), ("train", "val", "test")).trials)
    assert modes is not None
    assert len(modes.vocalised) == 14
    assert modes.vocalised["t15.2023.08.11", 1] == 0.0
    assert modes.vocalised["t15.2023.10.20", 1] == 1.0
    assert sum(modes.vocalised.values()) == 7


def test_no_stated_mode_is_none() -> None:
    assert stated_modes(TRIALS) is None


def test_one_stating_trial_labels_its_block() -> None:
    modes = stated_modes([_trial(1), _trial(1, "vocalised"), _trial(2)])
    assert modes is not None
    assert modes.of(_trial(1)) == 1.0
    assert modes.of(_trial(2)) is None
    assert modes.of(_trial(None)) is None


def test_a_contradiction_names_the_block_and_both_trials() -> None:
    trials = [_trial(7, "silent", name="trial_0003"), _trial(7), _trial(7, "vocalised", name="trial_0009")]
    with pytest.raises(DataError, match=r"block 7 of session t15.2023.08.13 is silent according to .*0003 .*0009"):
        stated_modes(trials)


def test_a_stated_mode_needs_a_block() -> None:
    with pytest.raises(DataError, match="no block number"):
        stated_modes([_trial(None, "silent")])


def test_unknown_blocks_have_no_label_and_count_against_agreement() -> None:
    known = BlockModes({("a", 1): 0.0, ("a", 2): 1.0, ("a", 3): 1.0, ("b", 1): 0.5}, "file")
    guessed = BlockModes({("a", 1): 0.2, ("a", 2): 0.5, ("b", 1): 0.9}, "pseudo")
    assert guessed.of(_trial(2, session="a")) is None
    assert guessed.of(_trial(1, session="a")) == 0.2
    assert guessed.agreement(known) == pytest.approx(1 / 3)
    assert guessed.confidence == pytest.approx((0.8 + 0.5 + 0.9) / 3)


def test_a_label_file(tmp_path: Path) -> None:
    path = tmp_path / "modes.csv"
    path.write_text("session,block,mode\na,1,silent\na, 2 ,vocalised\na,2,vocalised\n", encoding="utf-8")
    modes = read_mode_file(path, TRIALS)
    assert modes == BlockModes({("a", 1): 0.0, ("a", 2): 1.0}, "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("session,mode\na,silent\n", "the column block is missing"),
        ("session,block,mode\na,1,loud\n", r"line 2: mode 'loud' is neither silent nor vocalised"),
        ("session,block,mode\na,3,silent\n", r"line 2: there is no block '3' in session 'a'; its blocks are 1, 2"),
        ("session,block,mode\nc,1,silent\n", "no block '1' in session 'c'; the sessions are a, b"),
        ("session,block,mode\na,one,silent\n", "no block 'one'"),
        ("session,block,mode\na,1\n", "mode '' is neither"),
        (
            "session,block,mode\na,1,silent\na,1,vocalised\n",
            "line 3: block 1 of session a was silent in an earlier line",
        ),
        ("session,block,mode\n", "labels no block"),
    ],
)
def test_a_wrong_label_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "modes.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_mode_file(path, TRIALS)


def test_a_label_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a label file"):
        read_mode_file(tmp_path / "none.csv", TRIALS)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match="cannot be read as a label file"):
        read_mode_file(tmp_path / "binary.csv", TRIALS)
