"""Errors carry their code and place as fields, and put them into words in one place."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from sottovoce.core.configuration import build, check_key
from sottovoce.core.errors import ConfigurationError, DataError, SottovoceError, UnknownKeyError, in_one_line
from sottovoce.core.faults import Fault
from sottovoce.core.symbols import LETTERS, PHONEMES
from sottovoce.data.layouts import detect_layout, named_layout
from sottovoce.data.manifest import read_recordings
from sottovoce.data.pronunciation import read_lexicon
from sottovoce.data.t15 import open_t15
from sottovoce.data.t15_structure import DESCRIPTION_FILE, GROUND_TRUTH_FILE, read_block_corpora, read_modes, read_t15
from sottovoce.decoding.alignment import align_ctc
from sottovoce.training.config import RunConfig
from sottovoce.training.preparation import NoUsableTrials

FAULT = Fault("data.hdf5", "trial_0005", "non_finite_features", "error", "1 value is NaN")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("nothing there"), "nothing there"),
        (DataError("nothing there", code="no_trials"), "no_trials: nothing there"),
        (DataError("is empty", code="wav_empty", file=Path("a/b.wav")), "a/b.wav: wav_empty: is empty"),
        (DataError("4 channels", trial="s/train/3"), "s/train/3: 4 channels"),
        (DataError("4 channels", file="f", trial="t"), "f:t: 4 channels"),
        (FAULT.as_error(" (2 more)"), "data.hdf5:trial_0005: non_finite_features: 1 value is NaN (2 more)"),
        (UnknownKeyError("a.b", "; did you mean a.c?"), "unknown configuration key a.b; did you mean a.c?"),
    ],
)
def test_place_code_and_message_are_put_together_in_this_order(error: SottovoceError, text: str) -> None:
    assert str(error) == text
    assert in_one_line(error) == text


def test_a_fault_becomes_an_error_with_its_fields() -> None:
    error = FAULT.as_error()
    assert (error.code, error.file, error.trial) == ("non_finite_features", "data.hdf5", "trial_0005")
    assert error.reason == "1 value is NaN"


@pytest.mark.parametrize(
    "error",
    [FAULT.as_error(), UnknownKeyError("a.b", "; hint"), NoUsableTrials("root", [FAULT]), ConfigurationError("x=1")],
)
def test_an_error_crosses_to_another_process_whole(error: SottovoceError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)


def test_an_unknown_key_is_a_kind_of_error_of_its_own() -> None:
    for ask in (lambda: build(RunConfig, {"teleport": 1}), lambda: check_key(RunConfig, "teleport")):
        with pytest.raises(UnknownKeyError) as refused:
            ask()
        assert refused.value.key == "teleport"
    with pytest.raises(UnknownKeyError) as refused:
        check_key(RunConfig, "seed.deeper")
    assert (refused.value.key, refused.value.code) == ("seed.deeper", None)


def code_of(action: object, *arguments: object) -> str | None:
    with pytest.raises(DataError) as refused:
        action(*arguments)  # type: ignore[operator]
    assert f"{refused.value.code}: " in str(refused.value)
    return refused.value.code


def test_each_reader_names_its_fault_in_a_field(tmp_path: Path) -> None:
    empty, two = tmp_path / "empty", tmp_path / "two"
    empty.mkdir()
    two.mkdir()
    for name in ("manifest.csv", "manifest.jsonl"):
        (two / name).write_text("")
    text = tmp_path / "x.txt"
    text.write_text("")
    assert code_of(LETTERS.encode, ["7"]) == "unknown_symbol"
    assert code_of(align_ctc, np.zeros((2, 5)), (1, 2, 3)) == "ctc_infeasible"
    assert code_of(detect_layout, empty) == code_of(detect_layout, text) == "not_this_layout"
    assert code_of(named_layout, two, "t15") == "not_this_layout"
    assert code_of(lambda: open_t15(read_t15(empty), ("train",))) == "not_this_layout"
    assert code_of(read_recordings, empty) == "not_this_layout"
    assert code_of(read_recordings, two) == "manifest_field"
    assert code_of(read_lexicon, tmp_path / "none.dict", PHONEMES) == "unreadable_file"
    text.write_text("WORD  QQ")
    assert code_of(read_lexicon, text, PHONEMES) == "unknown_symbol"
    (empty / GROUND_TRUTH_FILE).write_text("{}")
    (empty / DESCRIPTION_FILE).write_text("Date,Corpus")
    assert code_of(read_modes, empty) == code_of(read_block_corpora, empty) == "manifest_field"
