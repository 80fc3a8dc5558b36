"""The section on a run's health: what was looked at, what was found, and a picture that marks where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.core.findings import Finding
from sottovoce.reporting import write_report
from sottovoce.reporting.figures import BAD, SERIES
from sottovoce.reporting.health_figure import _marks, _short, health_figure
from sottovoce.reporting.health_section import Pages, looked_at
from sottovoce.reporting.run_files import read_files
from sottovoce.reporting.style import STYLE

from .conftest import CONFIG, add_lines
from .test_report import Balance

pytestmark = pytest.mark.slow

FOUND = Finding(
    code="stale_optimizer",
    severity="error",
    evidence="3 of 40 names, <b>first</b> at step 120.",
    explanation="The optimiser does not own what should learn.",
    advice="",
    override="training.max_grad_norm=5",
    source="preflight",
    step=120,
    tell_apart="Refresh the reference alone.",
)
LATER = Finding(
    "data_starvation", "warning", "61 %.", "The steps wait.", "", "monitor", 124, 0.8, override="data.num_workers=2"
)
PAGES = {"stale_optimizer": {"How it looks": "The loss stays at (T + U) ln V.", "Source": "A <i>paper</i>"}}


def health(run_dir: Path, findings: Sequence[Finding] | None, pages: Pages | None = None) -> str:
    page = write_report(run_dir, findings, pages).read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", page)) <= set(re.findall(r"(--[a-z0-9-]+):", STYLE))
    found = re.search(r'<section id="health">.*?</section>', page, re.DOTALL)
    return found[0] if found else ""


def test_a_run_that_nobody_diagnosed_has_no_such_section(run_dir: Path) -> None:
    assert health(run_dir, None) == ""


def test_a_healthy_run_says_what_was_looked_at(run_dir: Path) -> None:
    page = health(run_dir, [])
    assert ">healthy<" in page
    assert (
        "Looked at 200 steps, 1 of them skipped; gradient norm 2 in the median, 2 at most; "
        "0.0 % of its records above the clip limit of 5." in page
    )
    assert page.count("<svg") == 1
    assert "1 skipped" in page


def test_findings_stand_in_order_with_evidence_fix_and_page(run_dir: Path) -> None:
    page = health(run_dir, [FOUND, LATER], PAGES)
    assert "2 findings, the most likely cause first" in page
    assert page.index("stale_optimizer") < page.index("data_starvation")
    assert "&lt;b&gt;first&lt;/b&gt; at step 120." in page
    assert "training.max_grad_norm=5" in page
    assert "Refresh the reference alone." in page
    assert "The loss stays at (T + U) ln V." in page
    assert "A &lt;i&gt;paper&lt;/i&gt;" in page
    assert "docs/failures/stale_optimizer.md" in page
    assert 'class="number bad">1<' in page
    assert 'class="number warn">2<' in page
    assert "href" not in page.replace('href="#', "")  # nothing from outside


def test_marks_close_to_each_other_are_one(run_dir: Path) -> None:
    assert ">1, 2<" in health_figure(read_files(run_dir), [FOUND, LATER])
    far = health_figure(read_files(run_dir), [FOUND, replace(LATER, step=20)])
    assert ">1<" in far
    assert ">2<" in far


def test_a_mark_that_several_share_has_the_colour_of_the_gravest(run_dir: Path) -> None:
    earlier = replace(LATER, step=119)
    assert _marks([FOUND, earlier], 200) == [(119, "1, 2", BAD)]
    assert _marks([earlier], 200) == [(119, "1", SERIES[1])]
    assert ">1, 2<" in health_figure(read_files(run_dir), [FOUND, earlier])


@pytest.mark.parametrize(
    ("value", "label"), [(0.001, "0.001"), (2500.0, "2500"), (1e4, "1e4"), (1e12, "1e12"), (1e-5, "1e-5")]
)
def test_powers_of_ten_are_written_in_one_way(value: float, label: str) -> None:
    assert _short(value) == label


def test_stages_and_releases_are_named(run_dir: Path) -> None:
    stages = [{"step": step, "event": "stage_started", "stage": name} for step, name in ((0, "warm"), (90, "joint"))]
    add_lines(run_dir / "events.jsonl", [*stages, {"step": 150, "event": "unfrozen", "components": ["rnnt_decoder"]}])
    drawn = health_figure(read_files(run_dir), [])
    assert [name in drawn for name in (">warm<", ">joint<", ">+ rnnt_decoder<")] == [True] * 3


def test_the_picture_has_the_colours_of_the_page_and_is_repeatable(run_dir: Path) -> None:
    drawn = [health_figure(read_files(run_dir), [FOUND]) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert not re.findall("#[0-9a-f]{6}", drawn[0])


def test_losses_are_drawn_in_one_unit(run_dir: Path) -> None:
    """The total may be per token, the validation's is per utterance; they never share an axis."""
    names = ("train/ctc_loss", "train/transducer_loss")
    lines = [{"step": step, "split": "train", "name": name, "value": 90.0} for step in (10, 200) for name in names]
    add_lines(run_dir / "metrics.jsonl", lines)
    drawn = health_figure(read_files(run_dir), [])
    assert "Loss, nats per utterance" in drawn
    assert [word in drawn for word in (">CTC<", ">CTC on validation<", ">transducer<")] == [True] * 3


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_loss_that_has_no_logarithm_is_drawn_all_the_same(run_dir: Path, value: float) -> None:
    add_lines(run_dir / "metrics.jsonl", [{"step": 200, "split": "train", "name": "train/loss", "value": value}])
    assert "Loss, nats" in health_figure(read_files(run_dir), [])


def test_a_run_without_records(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    run = read_files(tmp_path)
    assert health_figure(run, [FOUND]) == ""
    assert looked_at(run) == "Looked at 0 steps, none of them skipped."
    assert "stale_optimizer" in health(tmp_path, [FOUND])
