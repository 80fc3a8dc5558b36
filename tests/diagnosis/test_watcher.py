"""Several watches as one: what each remembers has a name of its own in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.runs.names import WatchKey
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import prepare
from sottovoce.training.watch import NoWatch
from tests.training.small_runs import overrides


class Counter(NoWatch):
    """Remembers one number."""

    key: str = "counter"

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


def test_each_watch_finds_its_memory_under_its_key(tiny_t15: Path, tmp_path: Path) -> None:
    prepared = prepare(compose_config(overrides(tiny_t15, tmp_path, "run")))
    state = json.loads(json.dumps(RunWatch(prepared, others=[Counter(3)]).state()))
    assert set(state) == {WatchKey.MONITOR, "counter"}  # the writer of capsules has nothing to remember
    assert set(state["monitor"]) > {"floor", "ownership", "blanks"}
    counter = Counter()
    RunWatch(prepared, others=[counter]).restore(state)
    assert counter.count == 3
    RunWatch(prepared, others=[counter]).restore({"monitor": state["monitor"]})
    assert counter.count == 3
    with pytest.raises(AssertionError, match="two watches of one key"):
        RunWatch(prepared, others=[Counter(), Counter()])
