from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sottovoce.core.errors import DataError
from sottovoce.core.trial import Trial
from sottovoce.data.collation import StepPart, StepParts, collate, step_loader
from sottovoce.data.loading import PreparedTrials
from sottovoce.data.sampling import BatchPlan


class Counting:
    """Trials whose values tell which trial they are; counts the reads."""

    sessions: tuple[str, ...] = ("a", "b")

    def __init__(self, count: int = 24) -> None:
        self.trials = tuple(
            Trial(f"t{i}", "train", "ab"[i % 2], 5 + i, tuple(range(1, 2 + i % 3)), None, Path("x"))
            for i in range(count)
        )
        self.reads = 0

    def signal(self, index: int) -> np.ndarray:
        self.reads += 1
        return np.full((self.trials[index].num_steps, 4), index, np.float32)


def parts(rank: int, world_size: int, micro_batches: int, first_step: int = 0) -> StepParts:
    source = Counting()
    plan = BatchPlan(
        np.array([t.num_steps for t in source.trials]), np.arange(24) % 2, np.arange(24), 8, 0, True, seed=1
    )
    return StepParts(source, plan, first_step, 6, micro_batches, rank, world_size)


def test_collate_pads_and_keeps_lengths() -> None:
    batch = collate(Counting(), [3, 0])
    assert batch.signal.shape == (2, 8, 4)
    assert batch.lengths_B.tolist() == [8, 5]
    assert not batch.signal[1].any()
    assert bool((batch.signal[0] == 3).all())
    assert batch.labels_BU.tolist() == [[1], [1]]
    assert batch.session_B.tolist() == [1, 0]
    assert batch.padding_fraction == pytest.approx(1 - 13 / 16)


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_every_cut_of_the_global_batch_holds_the_same_trials(world_size: int, micro_batches: int) -> None:
    whole = parts(0, 1, 1)
    for step in range(6):
        pieces = [
            parts(rank, world_size, micro_batches)[step * micro_batches + micro]
            for micro in range(micro_batches)
            for rank in range(world_size)
        ]
        assert {piece.step for piece in pieces} == {step}
        assert sum((piece.batch.trial_ids for piece in pieces), ()) == whole[step].batch.trial_ids
        assert sum((piece.positions for piece in pieces), ()) == tuple(range(8))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(num_workers: int) -> None:
    def read(first: int, workers: int) -> list[StepPart]:
        return list(step_loader(parts(0, 1, 2, first), workers, pin_memory=False))

    plain, ahead = read(0, 0), read(0, num_workers)
    assert [p.batch.trial_ids for p in plain] == [p.batch.trial_ids for p in ahead]
    assert all(torch.equal(a.batch.signal, b.batch.signal) for a, b in zip(plain, ahead, strict=True))
    assert [p.batch.trial_ids for p in read(2, num_workers)] == [p.batch.trial_ids for p in plain[4:]]


def test_columns_are_selected_checked_and_cached() -> None:
    source = Counting()
    prepared = PreparedTrials(source, 2, 2, cache=True)
    assert prepared.signal(3).shape == (8, 2)
    assert prepared.signal(3) is prepared.signal(3)
    assert source.reads == 1
    with pytest.raises(DataError, match=r"channel_mismatch.*preprocessor.num_channels=4"):
        PreparedTrials(source, 1, 2, cache=False).signal(0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_trial_stops_with_its_fields(num_workers: int) -> None:
    """Whoever reads it: PyTorch alone would make a loader process's error anew from its text."""

    class Damaged(Counting):
        def signal(self, index: int) -> np.ndarray:
            raise DataError("holds NaN", code="non_finite_features", file="x", trial=f"t{index}")

    loader = step_loader(replace(parts(0, 1, 1), trial_set=Damaged()), num_workers, pin_memory=False)
    with pytest.raises(DataError, match=r"^x:t\d+: non_finite_features: holds NaN$") as stopped:
        next(iter(loader))
    assert (stopped.value.code, stopped.value.file) == ("non_finite_features", "x")
