"""Why a run went wrong, from what it left behind; first the cause, then what follows from it.

Three kinds of evidence: what the checks, the guard and the monitor have recorded, what the guard did, and rules over
the records themselves, so that a run whose monitor was off, or that was killed, is explained too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sottovoce.core.findings import SEVERITIES, Finding
from sottovoce.diagnosis.causes import cause, found
from sottovoce.diagnosis.explainer import (
    rules_blank,
    rules_evaluation,
    rules_failed,
    rules_guard,
    rules_learnt,
    rules_losses,
    rules_schedule,
    rules_selection,
    rules_stages,
    rules_teachers,
)
from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun, read_diagnosed
from sottovoce.diagnosis.explainer.suspicion import Rule, Suspicion
from sottovoce.diagnosis.ranking import PLAIN_SYMPTOMS, ranked

RULES: Final[tuple[Rule, ...]] = (
    rules_guard.recorded_findings,
    rules_guard.guard_actions,
    rules_guard.why_the_loss_is_not_finite,
    rules_guard.why_the_gradient_is_not_finite,
    rules_losses.nonfinite_series,
    rules_losses.zero_terms,
    rules_losses.terms_fit_together,
    rules_losses.one_weight_dwarfs,
    rules_stages.released_part_stands_still,
    rules_stages.held_back_part_is_computed,
    rules_stages.moments_were_lost,
    rules_stages.continuation_is_complete,
    rules_stages.stage_ended_at_once,
    rules_stages.planned_events_happened,
    rules_schedule.schedule_is_followed,
    rules_schedule.steps_are_too_large,
    rules_schedule.metric_turns,
    rules_schedule.clip_leaves_nothing,
    rules_schedule.steps_become_slow,
    rules_blank.all_blank,
    rules_blank.label_in_the_blanks_place,
    rules_learnt.input_is_heard,
    rules_learnt.has_learnt,
    rules_learnt.validation_is_like_training,
    rules_teachers.student_is_far_from_its_teachers,
    rules_selection.kept_checkpoint_is_the_best,
    rules_selection.gate_follows_the_metric,
    rules_selection.selection_metric_exists,
    rules_selection.test_split_was_used,
    rules_selection.records_can_be,
    rules_selection.records_are_whole,
    rules_evaluation.rates_are_counted,
    rules_evaluation.validation_has_its_unit,
    rules_evaluation.symbols_are_shifted,
    rules_evaluation.greedy_order_is_right,
    rules_evaluation.trainer_and_evaluation_agree,
    rules_evaluation.references_are_texts,
    rules_evaluation.seen_sentences,
    rules_failed.run_failed,
)
AMBIGUOUS: Final = 0.15
"""Rivals whose supports are this close cannot be told apart by the records; weaker ones are left out."""


def explain(run_dir: Path, include_notes: bool = False) -> list[Finding]:
    """What went wrong in the run at `run_dir`, the best supported cause first; nothing of a healthy run.

    A run that somebody stopped, or that still trains, is not at fault for that. `include_notes` adds what is worth
    knowing although nothing is wrong.

    Raises:
        CheckpointError: not a run directory, half-written, or of a newer version.
    """
    return explain_record(read_diagnosed(run_dir), include_notes)


def explain_record(record: DiagnosedRun, include_notes: bool = False) -> list[Finding]:
    """What `explain` says of a run that has been read already."""
    suspicions = [suspicion for rule in RULES for suspicion in rule(record)]
    merged = _merged(suspicions)
    findings = ranked(_without_weak_rivals(merged), _alternatives(merged))
    if include_notes:
        if not findings and not record.finished:
            evidence = f"The last record is of step {record.last_step}; the run still trains, or was stopped."
            findings.append(found("clean_run_interrupted", evidence, "explainer", step=record.last_step))
        return findings
    return [finding for finding in findings if finding.severity != "note"]


def pages(findings: Sequence[Finding]) -> dict[str, dict[str, str]]:
    """What the catalogue says of each finding's cause, by code and heading, for a report."""
    texts = {}
    for entry in (cause(finding.code) for finding in findings):
        parts = {"How it looks": entry.looks, "Why": entry.why, "What to do": entry.fix, "Source": entry.source}
        texts[entry.code] = {heading: text for heading, text in parts.items() if text}
    return texts


def _merged(suspicions: Sequence[Suspicion]) -> list[tuple[Finding, set[str]]]:
    """One finding a code with all that speaks for it, and the observations that it explains."""
    by_code: dict[str, list[Suspicion]] = {}
    for suspicion in suspicions:
        by_code.setdefault(suspicion.finding.code, []).append(suspicion)
    merged = []
    for same in by_code.values():
        best = max((s.finding for s in same), key=lambda f: f.support)
        evidence = list(dict.fromkeys([best.evidence, *(s.finding.evidence for s in same)]))
        steps = [s.finding.step for s in same if s.finding.step is not None]
        severity = min((s.finding.severity for s in same), key=SEVERITIES.index)
        trials = tuple(dict.fromkeys(trial for s in same for trial in s.finding.trials))
        seen: dict[str, Any] = {"evidence": " ".join(evidence[:3]), "step": min(steps, default=None), "trials": trials}
        finding = replace(best, severity=severity, **seen)
        merged.append((finding, {s.about for s in same}))
    return merged


def _without_weak_rivals(found: Sequence[tuple[Finding, set[str]]]) -> list[Finding]:
    """Of the causes that could explain one observation, the best supported and those that are hard to tell from it."""
    kept = []
    for finding, abouts in found:
        rivals = [other for other, also in found if other.code != finding.code and also & abouts]
        rivals = [other for other in rivals if other.code not in PLAIN_SYMPTOMS]
        stronger = [other for other in rivals if other.support > finding.support]
        if finding.code not in PLAIN_SYMPTOMS and any(r.support - finding.support > AMBIGUOUS for r in stronger):
            continue
        close = [r for r in rivals if abs(r.support - finding.support) <= AMBIGUOUS]
        if close and not stronger and finding.code not in PLAIN_SYMPTOMS:
            finding = _ambiguous(finding, max(close, key=lambda r: r.support))
        kept.append(finding)
    return kept


def _ambiguous(finding: Finding, rival: Finding) -> Finding:
    how = " ".join(text for text in dict.fromkeys((finding.tell_apart, rival.tell_apart)) if text)
    return replace(finding, tell_apart=f"Ambiguous between {finding.code} and {rival.code}. {how}".strip())


def _alternatives(found: Sequence[tuple[Finding, set[str]]]) -> set[frozenset[str]]:
    """Pairs of causes that explain the same observation: one of them is right, neither follows from the other."""
    return {
        frozenset((finding.code, other.code))
        for finding, abouts in found
        for other, also in found
        if finding.code != other.code and abouts & also and not {finding.code, other.code} & PLAIN_SYMPTOMS
    }
