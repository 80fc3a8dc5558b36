"""The report of a run: one HTML file that needs nothing beside it.

Read from files of the run directory only, so it can be written while the run trains and after it was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sottovoce.core.files import replace_text
from sottovoce.core.findings import Finding
from sottovoce.reporting.health_section import Pages, health_section
from sottovoce.reporting.html import card, chip, section, settings, text
from sottovoce.reporting.result_sections import (
    confusions_section,
    groups_section,
    headline,
    posteriors_section,
    trials_section,
)
from sottovoce.reporting.run_files import RunFiles, read_files
from sottovoce.reporting.style import STYLE
from sottovoce.reporting.training_section import events_section, resume, training_section
from sottovoce.runs.directory import RunDirectory
from sottovoce.runs.names import Event

_BAR = {
    "results": "Results",
    "health": "Health",
    "training": "Training",
    "groups": "Groups",
    "confusions": "Confusions",
    "posteriors": "Posteriors",
    "trials": "Trials",
    "events": "Events",
    "configuration": "Configuration",
}


def write_report(run_dir: Path, findings: Sequence[Finding] | None = None, pages: Pages | None = None) -> Path:
    """Write `report.html` into `run_dir` and return its path.

    Args:
        findings: what `diagnosis.explainer.explain` says of the run, for the section on its health; none is written
            where the run has not been diagnosed.
        pages: what is known of each code, by heading; folded in under its finding.

    Raises:
        CheckpointError: `run_dir` is not a run directory, or one of its files is damaged.
    """
    page = render(read_files(run_dir), findings, pages or {})
    path = RunDirectory(run_dir).report
    replace_text(path, page)
    return path


def render(run: RunFiles, findings: Sequence[Finding] | None, pages: Pages) -> str:
    """The whole page; the same files give the same bytes."""
    name = run.directory.resolve().name
    sections = [
        f'<section id="results">{headline(run)}</section>',
        "" if findings is None else health_section(run, findings, pages),
        training_section(run),
        groups_section(run),
        confusions_section(run),
        posteriors_section(run),
        trials_section(run),
        events_section(run),
        _configuration(run),
    ]
    body = "".join(sections)
    links = "".join(f'<a href="#{a}">{text(t)}</a>' for a, t in _BAR.items() if f'<section id="{a}">' in body)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(name)} · sottovoce</title><style>{STYLE}</style></head><body>"
        f'<nav class="bar"><div><b>sottovoce</b>{links}</div></nav><main>'
        f'<header><h1>{text(name)}</h1><div class="facts">{_status(run)}{_facts(run)}</div></header>{body}'
        "<footer>Rates are errors summed over all trials, divided by the summed reference length. "
        "Intervals are percentile bootstraps.</footer></main></body></html>\n"
    )


def _status(run: RunFiles) -> str:
    planned, done = run.setting("training.steps"), run.last_step
    happened = {e["event"] for e in run.events}
    if Event.RUN_ABORTED in happened:
        return chip(f"aborted at step {done:,}", "bad")
    if run.events and run.events[-1]["event"] == Event.RUN_FAILED:
        return chip(f"failed after step {run.events[-1]['step']:,}", "bad")
    if Event.RUN_FINISHED in happened:
        return chip(f"finished {done:,} steps", "good")
    stopped = chip(f"step {done:,}" + (f" of {planned:,}" if planned else ""), "warn")
    return f"{stopped}<span>training, or stopped; <code>{text(resume(run))}</code> continues</span>"


def _facts(run: RunFiles) -> str:
    facts = {"recipe": run.setting("recipe"), "seed": run.setting("seed"), "data": run.setting("data.data_root")}
    facts["trials left out"] = sum(event["event"] == Event.TRIAL_SKIPPED for event in run.events) or None
    return "".join(f"<span>{k} <b>{text(v)}</b></span>" for k, v in facts.items() if v is not None)


def _configuration(run: RunFiles) -> str:
    parts = [("Configuration", run.record.values), ("Environment", run.record.environment)]
    cards = "".join(
        card(f"<details><summary>{title}</summary>{settings(values)}</details>") for title, values in parts if values
    )
    return section("configuration", "Configuration", f'<div class="stack">{cards}</div>')
