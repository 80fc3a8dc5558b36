from functools import partial

import numpy as np
import pytest

from sottovoce.data.sampling import POOL_STEPS, BatchPlan

LENGTHS = np.random.default_rng(0).integers(100, 500, 60)
SESSIONS = np.repeat([0, 1, 2, 3], [30, 20, 9, 1])


def plan(*, batch_size: int = 8, sessions_per_batch: int = 0, bucketing: bool = False, seed: int = 5) -> BatchPlan:
    trials = np.arange(60) + 1000
    return BatchPlan(LENGTHS, SESSIONS, trials, batch_size, sessions_per_batch, bucketing, seed=seed)


@pytest.mark.parametrize("bucketing", [False, True])
@pytest.mark.parametrize("sessions_per_batch", [0, 2])
def test_a_step_does_not_depend_on_the_steps_before(bucketing: bool, sessions_per_batch: int) -> None:
    asked = partial(plan, bucketing=bucketing, sessions_per_batch=sessions_per_batch)
    in_order = [asked().step(n).tolist() for n in range(20)]
    one = asked()
    assert [one.step(n).tolist() for n in range(20)] == in_order
    assert asked().step(17).tolist() == in_order[17]
    assert asked(seed=6).step(17).tolist() != in_order[17]


def test_every_trial_once_before_any_again() -> None:
    drawn = np.concatenate([plan().step(n) for n in range(15)])
    assert sorted(drawn[:60]) == sorted(drawn[60:120]) == list(range(1000, 1060))
    assert drawn[:60].tolist() != drawn[60:120].tolist()


def test_the_official_sampler_draws_sessions_uniformly() -> None:
    one = plan(sessions_per_batch=2)
    counts = np.zeros(4)
    for n in range(400):
        sessions = SESSIONS[one.step(n) - 1000]
        present, sizes = np.unique(sessions, return_counts=True)
        assert len(present) == 2
        assert sizes.tolist() == [4, 4]
        counts[present] += 1
    assert counts / 400 == pytest.approx(np.full(4, 0.5), abs=0.08)


def test_bucketing_keeps_the_trials_and_cuts_the_padding() -> None:
    plain = [plan().step(n) for n in range(POOL_STEPS)]
    bucketed = [plan(bucketing=True).step(n) for n in range(POOL_STEPS)]
    assert sorted(np.concatenate(plain)) == sorted(np.concatenate(bucketed))

    def padding(batches: list[np.ndarray]) -> float:
        lengths = [LENGTHS[b - 1000] for b in batches]
        return 1 - sum(x.sum() for x in lengths) / sum(len(x) * x.max() for x in lengths)

    assert padding(plain) > 0.2
    assert padding(bucketed) < 0.08


def test_fewer_sessions_than_asked_for() -> None:
    assert {*SESSIONS[plan(sessions_per_batch=9).step(0) - 1000]} == {0, 1, 2, 3}
    assert len(plan(sessions_per_batch=4, batch_size=3).step(0)) == 3
