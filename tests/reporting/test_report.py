"""The page: right figures with right units, nothing from outside, nothing unescaped, useful when unfinished."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sottovoce.reporting import write_report
from sottovoce.reporting.style import STYLE

from .conftest import CONFIG, add_evaluation, add_lines

pytestmark = pytest.mark.slow

VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(run_dir: Path) -> str:
    page = write_report(run_dir).read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return page


def test_a_finished_run(evaluated_dir: Path) -> None:
    page = page_of(evaluated_dir)
    assert write_report(evaluated_dir).read_text(encoding="utf-8") == page
    # 1 substitution, 1 deletion and 1 insertion, 7 deletions of 4 × 7 symbols
    assert '<div class="value">35.7<i>%</i></div>' in page
    assert "<b>4</b> trials" in page
    assert "empty hypotheses <b>25.0 %</b>" in page
    assert "the decoder gives no words" in page
    assert "finished 200 steps" in page
    assert "lowest validation PER 15.0 % at step 200 · 1 skipped step" in page
    assert "bias, other <b>0.001</b>" in page
    assert "clipped above <b>5</b>" in page
    assert "nonfinite_gradient" in page
    assert "Best trial" in page
    assert "<span>training.steps</span><b>200</b>" in page
    anchors = "results training groups confusions posteriors trials events configuration".split()
    assert re.findall('<a href="#([a-z]+)"', page) == anchors
    # names of the data are text, never markup or formulas
    assert "<b>$x$" not in page
    assert "s0&lt;b&gt;$x$" in page
    assert "“the cat”" in page
    assert "norm &lt;inf&gt;" in page
    # nothing is loaded from outside
    references = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in references)
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)
    # every colour of the figures exists in the style sheet
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", page)) <= set(re.findall(r"(--[a-z0-9-]+):", STYLE))


def test_words_and_several_evaluations(run_dir: Path) -> None:
    add_evaluation(run_dir, "greedy")
    add_evaluation(run_dir, "words", text="the cat")
    page = page_of(run_dir)
    assert "All evaluations" in page
    assert "Sentences right" in page
    assert '<div class="value">100.0<i>%</i></div>' in page
    assert "No WER" not in page
    assert f"<code>sottovoce evaluate {run_dir}</code>" in page  # for the missing examples


def test_a_run_that_was_killed_before_any_evaluation(run_dir: Path) -> None:
    (run_dir / "events.jsonl").unlink()
    (run_dir / "config.yaml").write_text(CONFIG.replace("steps: 200", "steps: 5000"))
    page = page_of(run_dir)
    assert "step 200 of 5,000" in page
    assert f"<code>sottovoce train resume={run_dir}</code>" in page
    assert f"<code>sottovoce evaluate {run_dir}</code>" in page
    assert 'id="training"' in page
    assert 'id="trials"' not in page


def test_an_aborted_run_says_so(run_dir: Path) -> None:
    add_lines(run_dir / "events.jsonl", [{"step": 199, "event": "run_failed", "message": "out of memory"}])
    assert "failed after step 199" in write_report(run_dir).read_text(encoding="utf-8")
    add_lines(run_dir / "events.jsonl", [{"step": 200, "event": "run_aborted", "code": "nonfinite_gradient"}])
    assert "aborted at step 200" in page_of(run_dir)


def test_a_run_without_any_metric(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    page = page_of(tmp_path)
    assert "No metrics yet" in page
    assert "Nothing has been recorded" in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme: str) -> None:
    light, dark = (dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", part)) for part in STYLE.split("@media", 2)[:2])
    colours = light if scheme == "light" else light | dark

    def luminance(name: str) -> float:
        channels = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [("ink", "page"), ("ink", "surface"), ("muted", "page"), ("muted", "surface"), ("muted", "faint")]
    pairs += [(kind, f"{kind}-soft") for kind in ("bad", "warn", "good", "insert")]
    for front, back in pairs:
        low, high = sorted((luminance(front), luminance(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{front} on {back} in {scheme}: WCAG asks for 4.5"


def test_a_curriculum_shows_its_stages_its_branches_and_what_became_of_the_bridge(run_dir: Path) -> None:
    stages = [{"step": step, "event": "stage_started", "stage": name} for step, name in ((0, "first"), (100, "second"))]
    measured = {"step": 200, "event": "flow_bridge_measured", "used": False, "with_bridge": 0.2, "without": 0.15}
    add_lines(run_dir / "events.jsonl", [*stages, measured])
    names = ("train/transducer_loss", "val/mode_accuracy")
    add_lines(
        run_dir / "metrics.jsonl",
        [{"step": 200, "split": name.split("/")[0], "name": name, "value": 0.9} for name in names],
    )
    page = page_of(run_dir)
    assert page.count(" second<") == page.count(" first<") > 3
    assert "Loss of each branch" in page
    assert "Speaking mode" in page
    assert "flow bridge left out: 20.0 % with it, 15.0 % without" in page
