"""Raise and clear levels, and their state."""

from __future__ import annotations

import json

from sottovoce.diagnosis.monitor.hysteresis import Hysteresis


def test_nothing_is_raised_before_the_window_is_full() -> None:
    condition = Hysteresis(window=5)
    assert [condition.update(True) for _ in range(5)] == [None] * 4 + ["raised"]


def test_a_flickering_condition_is_one_episode() -> None:
    condition = Hysteresis(window=10)
    changes = [condition.update(i % 10 < 8) for i in range(100)]
    assert changes.count("raised") == 1
    assert "cleared" not in changes


def test_it_clears_at_two_fifths_and_can_be_raised_again() -> None:
    condition = Hysteresis(window=10)
    changes = [condition.update(true) for true in [True] * 10 + [False] * 6 + [True] * 10]
    assert [i for i, change in enumerate(changes) if change] == [9, 15, 23]
    assert [change for change in changes if change] == ["raised", "cleared", "raised"]


def test_the_state_survives_json() -> None:
    steps = [i % 3 > 0 for i in range(60)]
    whole, first, second = Hysteresis(7), Hysteresis(7), Hysteresis(7)
    expected = [whole.update(true) for true in steps]
    found = [first.update(true) for true in steps[:31]]
    second.restore(json.loads(json.dumps(first.state())))
    assert found + [second.update(true) for true in steps[31:]] == expected


def test_forgetting_begins_anew() -> None:
    condition = Hysteresis(window=2)
    condition.update(True)
    condition.forget()
    assert condition.share == 0
    assert condition.update(True) is None
