"""The museum of faults: each is put into an otherwise healthy run, and its cause must be named first.

`make museum` shows all of it, writes which cause was taken for which, and counts false alarms on healthy runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sottovoce.diagnosis.causes import causes
from tests.faults import (
    engineering,
    losses_and_layers,
    metrics_and_data,
    numbers_and_steps,
    optimizer,
    targets,
    teachers,
)
from tests.faults.conftest import SceneOn
from tests.faults.scene import Exhibit, findings_of, record
from tests.faults.stories import STORIES

pytestmark = pytest.mark.slow

EXHIBITS = (
    *targets.EXHIBITS,
    *optimizer.EXHIBITS,
    *numbers_and_steps.EXHIBITS,
    *losses_and_layers.EXHIBITS,
    *metrics_and_data.EXHIBITS,
    *teachers.EXHIBITS,
    *engineering.EXHIBITS,
)


def _marked(exhibit: Exhibit) -> object:
    marks = [pytest.mark.museum] if exhibit.slow else []
    if exhibit.missed:
        marks.append(pytest.mark.xfail(strict=True, reason=exhibit.missed))
    return pytest.param(exhibit, id=f"{exhibit.row}-{exhibit.name.replace(' ', '_')}", marks=marks)


@pytest.mark.parametrize("exhibit", [_marked(e) for e in EXHIBITS])
def test_the_cause_is_named_first(exhibit: Exhibit, neural: Path, voices: Path, scene_on: SceneOn) -> None:
    scene = scene_on(voices if exhibit.base == "recordings" else neural)
    findings = findings_of(exhibit, scene)
    record(exhibit, findings)
    assert findings, "nothing was found"
    said = "\n".join(str(f) for f in findings)
    if findings[0].code in exhibit.ambiguous_with:  # then it says so, and names the other one too
        assert exhibit.code in findings[0].tell_apart, said
    else:
        assert findings[0].code == exhibit.code, said


def test_every_exhibit_names_a_cause_of_the_catalogue() -> None:
    assert {exhibit.code for exhibit in EXHIBITS} <= causes().keys()
    assert len({exhibit.row for exhibit in EXHIBITS if exhibit.row != "-"}) >= 50


def test_every_wrong_story_has_its_exhibit() -> None:
    shown = {exhibit.name: exhibit.code for exhibit in EXHIBITS}
    assert {story.exhibit: story.code for story in STORIES}.items() <= shown.items()
