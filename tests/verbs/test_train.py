"""Training as a function of the package."""

from __future__ import annotations

from pathlib import Path

import pytest

import sottovoce
from tests.training.small_runs import overrides

pytestmark = pytest.mark.slow


def test_without_a_listener_nothing_is_shown(tiny_t15: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = sottovoce.train(overrides(tiny_t15, tmp_path, "silent"))
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
    assert run.metrics.exists() and str(run) == str(tmp_path / "silent")
