"""Figures: colours follow the page, nothing global changes, peaks survive."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from sottovoce.core.symbols import LETTERS, PHONEMES, SymbolTable
from sottovoce.reporting import figures, heatmaps
from sottovoce.reporting.figures import Line

from .conftest import SAID


def line(values: list[float]) -> Line:
    return Line("train", (list(range(1, len(values) + 1)), values), 0)


@pytest.fixture(scope="module")
def chart() -> str:
    values = list(np.linspace(5, 1, 1000))
    values[500] = 40.0
    return figures.curves(
        [line(values)], description="Loss <over> steps", last_step=1000, log=True, limit=2.0, marked_steps=[30]
    )


def test_every_colour_is_a_variable_of_the_page(chart: str) -> None:
    assert "var(--series-0)" in chart
    assert "var(--muted)" in chart
    assert "var(--bad)" in chart
    assert not re.findall("#[0-9a-f]{6}", chart)


def test_a_chart_is_well_formed_scalable_and_described(chart: str) -> None:
    root = ElementTree.fromstring(chart)
    assert root.attrib.keys() == {"viewBox", "role"}
    assert root[0].text == "Loss <over> steps"


def test_the_same_figure_has_the_same_bytes() -> None:
    drawn = [figures.curves([line([3.0, 2.0])], description="x", last_step=9) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_settings_of_matplotlib_stay_as_they_were() -> None:
    before = dict(matplotlib.rcParams)
    figures.curves([line([0.5, 0.25])], description="x", last_step=9, as_percent=True)
    assert dict(matplotlib.rcParams) == before


def test_text_is_no_formula() -> None:
    def paint(figure: Figure) -> None:
        figure.text(0.5, 0.5, "$x_1$")

    drawn = figures.draw(2, 2, paint, "x")
    assert "$x_1$" in drawn


@pytest.mark.parametrize("table", [PHONEMES, LETTERS])
def test_every_symbol_has_one_row(table: SymbolTable) -> None:
    order = [i for members in heatmaps.symbol_order(table) for i in members]
    assert sorted(order) == list(range(len(table)))
    assert order[-1] == table.blank


def test_an_alignment_has_a_box_for_each_label() -> None:
    log_probs = np.full((14, 41), np.log(0.1 / 40))
    log_probs[np.arange(14), [0, *(s for label in SAID[:6] for s in (label, 0)), SAID[6]]] = np.log(0.9)
    drawn = heatmaps.posteriorgram(log_probs, SAID, PHONEMES, 80.0)
    assert drawn.count("stroke: var(--series-1)") == len(SAID)
    too_short = heatmaps.posteriorgram(log_probs[:5], SAID, PHONEMES, 80.0)
    assert too_short.count("stroke: var(--series-1)") == 0


def test_a_short_peak_survives_pooling() -> None:
    probabilities = np.zeros((1500, 2))
    probabilities[[701, 1499], 1] = 0.9
    pooled, width = heatmaps.pool_frames(probabilities)
    assert (pooled.shape, width) == ((500, 2), 3)
    assert pooled[[233, 499], 1].tolist() == [0.9, 0.9]
    assert pooled.sum() == pytest.approx(1.8)
    assert heatmaps.pool_frames(probabilities[:600])[1] == 1
