"""What is measured is what is held."""

import pytest
import torch

from sottovoce.bench.memory import PROC, in_new_process, peak_rise_mib

pytestmark = pytest.mark.slow


def _hungry(mib: int) -> float | None:
    return peak_rise_mib(lambda: torch.ones(mib * 2**18).sum())


@pytest.mark.skipif(not (PROC / "clear_refs").exists(), reason="the system does not tell a process's peak memory")
def test_memory_that_is_held_for_a_moment_shows_up() -> None:
    alone = in_new_process(_hungry, 64)
    assert alone is not None
    assert 60 < alone < 80
    used_before = torch.ones(2**26)
    del used_before  # what this process has held and freed earlier does not hide it
    here = _hungry(64)
    assert here is not None
    assert 60 < here < 80
