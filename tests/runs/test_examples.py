"""Stored examples come back as they were; anything else is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sottovoce.core.errors import CheckpointError
from sottovoce.runs.examples import Example, Examples, read_examples, write_examples


def make_examples() -> Examples:
    log_probs = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], np.float32))
    best = Example("best", "s1/val/trial_0001", (1, 2), (1,), "a b", None, log_probs)
    worst = Example("worst", "s1/val/trial_0002", (2,), (), "b", "", log_probs[:1])
    return Examples("val", "greedy", "letters", 80.0, (best, worst))


def test_round_trip(tmp_path: Path) -> None:
    written = make_examples()
    path = write_examples(tmp_path, written)
    assert path == tmp_path / "evaluation" / "examples.val.npz"
    found = read_examples(path)
    assert found == written
    for ours, theirs in zip(found.examples, written.examples, strict=True):
        assert ours.log_probs_SV.dtype == np.float32
        np.testing.assert_allclose(ours.log_probs_SV, theirs.log_probs_SV, atol=2e-3)
    assert [p.name for p in path.parent.iterdir()] == ["examples.val.npz"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples.val.npz"
    np.savez(path, other=np.zeros(3))
    with pytest.raises(CheckpointError, match="does not hold examples"):
        read_examples(path)
    path.write_bytes(b"not a zip archive")
    with pytest.raises(CheckpointError, match="evaluate again"):
        read_examples(path)
