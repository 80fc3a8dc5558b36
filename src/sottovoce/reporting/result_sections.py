"""What the decoder can do: headline rates, groups, confusions, posteriors and single trials."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from sottovoce.core.symbols import SymbolTable, symbol_table
from sottovoce.metrics import ErrorCounts, confusion_counts, percent
from sottovoce.reporting import heatmaps
from sottovoce.reporting.html import (
    card,
    difference,
    difference_key,
    interval_text,
    meter,
    missing,
    section,
    table,
    text,
)
from sottovoce.reporting.run_files import RunFiles
from sottovoce.runs.examples import Example, Examples
from sottovoce.runs.record import Evaluated

METRICS: Final = ("per", "wer", "cer", "wra")
NUM_WORST, NUM_BEST = 8, 4
NUM_CONFUSIONS: Final = 14
_KINDS: Final = {"session": "session", "speaker": "speaker", "mode": "speaking mode", "text": "text"}
_NAMES: Final = {"seen_text": "also in training", "unseen_text": "new"}


def evaluate_command(run: RunFiles, options: str = "") -> str:
    """The command that writes an evaluation."""
    return f"sottovoce evaluate {run.directory}{options}"


def headline(run: RunFiles) -> str:
    """The rates of the first evaluation, big, and a table where there are several."""
    if not run.evaluations:
        return missing("Not evaluated yet. Error rates with intervals come from:", evaluate_command(run))
    result, trials = run.evaluations[0].result, run.evaluations[0].hypotheses
    sentences = any(" " in (t["reference"] or "") for t in trials)
    singular = result["symbols"].removesuffix("s").capitalize()
    labels = {
        "per": f"{singular} error rate",
        "wer": "Word error rate",
        "cer": "Character error rate",
        "wra": "Sentences right" if sentences else "Words right",
    }
    cards = [_kpi(result, metric, label) for metric, label in labels.items() if result[metric] is not None]
    if len(cards) < len(labels):
        cards.append(_unknown(result, run))
    facts = [
        f"<span><b>{result['num_trials']:,}</b> trials</span>",
        f"<span>split <b>{text(result['split'])}</b></span>",
        f"<span>decoder <b>{text(result['decoder'])}</b></span>",
        f"<span>text rule <b>{text(result['normaliser'])}</b></span>",
        f"<span>blank frames <b>{percent(result['blank_fraction'])}</b></span>",
        f"<span>empty hypotheses <b>{percent(result['empty_fraction'])}</b></span>",
        f"<span>intervals: 95 %, resampled by <b>{text(result['ci95_unit'])}</b></span>",
    ]
    warning = ""
    if (result["empty_fraction"] or 0) > 0.5:
        said = f"{percent(result['empty_fraction'])} of the trials decode to nothing: the model says almost only blank."
        warning = f'<div class="callout">{text(said)} <code>{text(f"sottovoce diagnose {run.directory}")}</code></div>'
    several = _all_evaluations(run) if len(run.evaluations) > 1 else ""
    shown = f'<div class="kpis">{"".join(cards)}</div><p class="facts under">{"".join(facts)}</p>'
    return shown + warning + several


def _kpi(result: dict[str, Any], metric: str, label: str) -> str:
    value, interval = result[metric], result["ci95"][metric]
    top = f'<div class="label"><span>{text(label)}</span><span>{metric.upper()}</span></div>'
    number = percent(value).removesuffix(" %")
    note = f"95 % interval {interval_text(interval)}" if interval else "too few trials for an interval"
    body = f'<div class="value">{number}<i>%</i></div>{meter(value, interval, 1.0)}<div class="note">{note}</div>'
    return card(top, body, kind="kpi")


def _unknown(result: dict[str, Any], run: RunFiles) -> str:
    """One card for every metric that this evaluation has no value for, with the reason and the way out."""
    names = ", ".join(metric.upper() for metric in METRICS if result[metric] is None)
    reasons = "".join(f"<p>{text(n.split('null, ', 1)[1])}</p>" for n in result["notes"] if "null, " in n)
    way_out = f"<code>{text(evaluate_command(run, ' --decoder words'))}</code>" if result["decoder"] == "greedy" else ""
    return card(
        f'<div class="label"><span>No {names}</span></div><div class="note">{reasons}{way_out}</div>', kind="kpi none"
    )


def _all_evaluations(run: RunFiles) -> str:
    rows = []
    for evaluated in run.evaluations:
        result = evaluated.result
        cells = [text(result["split"]), text(result["decoder"]), f"{result['num_trials']:,}"]
        for metric in METRICS:
            interval = interval_text(result["ci95"][metric])
            small = f'<br><span class="muted" style="font-size:12px">{interval}</span>' if interval else ""
            cells.append(percent(result[metric]) + small)
        rows.append(cells)
    head = ("split", "decoder", "trials", "PER", "WER", "CER", "WRA")
    return card(table(head, rows, frozenset(range(2, 7))), title="All evaluations")


def groups_section(run: RunFiles) -> str:
    """Rates of sessions, speakers, modes, and of texts that training has or has not seen."""
    if not run.evaluations:
        return ""
    result = run.evaluations[0].result
    metric = "per"
    if (result["wer"] is not None) and all(" " not in (t["reference"] or "") for t in run.evaluations[0].hypotheses):
        metric = "wer"  # isolated words: the word is what counts
    parts = []
    for kind, groups in result["by_group"].items():
        speakers = result["by_group"].get("speaker", {})
        if len(groups) < 2 or (kind == "session" and groups.keys() == speakers.keys()):
            continue  # one group is the whole; sessions that are speakers are shown as speakers
        rows = _forest(groups, metric, result[metric])
        parts.append(card(rows, title=f"By {_KINDS.get(kind, kind)}", extra=f"{metric.upper()}, dashed: all trials"))
    if not parts:
        return ""
    return section("groups", "Where it works", f'<div class="stack">{"".join(parts)}</div>')


def _forest(groups: dict[str, dict[str, Any]], metric: str, whole: float | None) -> str:
    ends = [(g["ci95"][metric] or [0, g[metric] or 0])[1] for g in groups.values()]
    largest = max(0.05, min(1.5, max([*ends, whole or 0])))
    rows = [
        f'<div class="row"><span class="name" title="{text(name)}">{text(_NAMES.get(name, name))}</span>'
        f"{meter(group[metric], group['ci95'][metric], largest, whole)}"
        f'<span class="num">{percent(group[metric])}</span>'
        f'<span class="num muted">{group["num_trials"]:,} trial{"" if group["num_trials"] == 1 else "s"}</span></div>'
        for name, group in groups.items()
    ]
    return f'<div class="forest">{"".join(rows)}</div>'


def confusions_section(run: RunFiles) -> str:
    """The confusion matrix of the headline evaluation, and its most frequent entries."""
    if not run.evaluations or not run.evaluations[0].hypotheses:
        return ""
    evaluated = run.evaluations[0]
    symbols = symbol_table(evaluated.result["symbols"])
    pairs = [(symbols.encode(t["reference_symbols"]), symbols.encode(t["symbols"])) for t in evaluated.hypotheses]
    counts = confusion_counts(pairs, len(symbols), gap=symbols.blank)
    picture = card(
        f'<div class="wide">{heatmaps.confusions(counts, symbols)}</div>',
        title="Said and decoded",
        extra="share of each row; blue right, orange wrong, ∅ row inserted, ∅ column deleted",
    )
    most = card(_frequent(counts, symbols), title="Most frequent errors", extra="share of the symbol's occurrences")
    return section("confusions", "Confusions", f'<div class="split">{picture}{most}</div>', extra=_subject(evaluated))


def _frequent(counts: np.ndarray[Any, np.dtype[np.int64]], symbols: SymbolTable) -> str:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS]
    places = [(int(said), int(decoded)) for said, decoded in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    shares = {p: float(wrong[p] / counts[p[0]].sum()) for p in places if wrong[p] and p[0] != symbols.blank}
    largest = max(shares.values(), default=1.0)
    rows = []
    for place in (p for p in places if wrong[p]):
        said, decoded = (heatmaps.GAP if i == symbols.blank else symbols.symbols[i] for i in place)
        kind = "i" if said == heatmaps.GAP else "d" if decoded == heatmaps.GAP else "s"
        pair = f'<span class="{kind}"><b>{text(said)}</b> → <i>{text(decoded)}</i></span>'
        share = shares.get(place)  # an insertion is a share of no symbol
        track = "" if share is None else meter(share, None, largest)
        rows.append(
            f'<tr><td><span class="diff flat">{pair}</span></td><td class="num r">{wrong[place]:,} ×</td>'
            f'<td class="meter">{track}</td><td class="num r">{percent(share)}</td></tr>'
        )
    return f"<table>{''.join(rows)}</table>" if rows else "<p>None: every symbol is right.</p>"


def posteriors_section(run: RunFiles) -> str:
    """The best, the median and the worst trial of each split that examples were stored for."""
    if not run.examples:
        if not run.evaluations:
            return ""
        return section(
            "posteriors", "Inside the decoder", missing("No example trials are stored.", evaluate_command(run))
        )
    cards = [_example(stored, example) for stored in run.examples for example in stored.examples]
    return section(
        "posteriors",
        "Inside the decoder",
        f'<div class="stack">{"".join(cards)}</div>',
        extra="probability of each symbol over time; boxes: the frames a forced alignment gives the label",
    )


def _example(stored: Examples, example: Example) -> str:
    symbols = symbol_table(stored.symbols)
    said, decoded = symbols.decode(example.labels), symbols.decode(example.hypothesis)
    picture = heatmaps.posteriorgram(example.log_probs_SV, example.labels, symbols, stored.frame_ms)
    quote = f"<p>“{text(example.reference_text)}”</p>" if example.reference_text else ""
    name = f"{example.role.capitalize()} trial"
    extra = f"{example.trial_id} · {stored.split}"
    return card(quote, f'<div class="wide">{picture}</div>', difference(said, decoded), title=name, extra=extra)


def trials_section(run: RunFiles) -> str:
    """The trials with the most errors for their length and those with the fewest, aligned."""
    if not run.evaluations or not run.evaluations[0].hypotheses:
        return ""
    evaluated = run.evaluations[0]
    ranked = sorted(evaluated.hypotheses, key=lambda t: (-_per(t), -sum(t["counts"]["per"][:3]), t["trial_id"]))
    worst = ranked[:NUM_WORST]
    best = sorted(ranked[NUM_WORST:], key=lambda t: (_per(t), -t["counts"]["per"][3], t["trial_id"]))[:NUM_BEST]
    parts = [difference_key(), card(*map(_trial, worst), title="Worst trials")]
    if best:
        parts.append(card(*map(_trial, best), title="Best trials"))
    return section("trials", "Trials", f'<div class="stack">{"".join(parts)}</div>', extra=_subject(evaluated))


def _trial(trial: dict[str, Any]) -> str:
    counts = trial["counts"]["per"]
    named = zip(counts, ("substituted", "deleted", "inserted"), strict=False)
    wrong = ", ".join(f"{count} {kind}" for count, kind in named if count)
    kinds = f"{wrong} of {counts[3]}" if wrong else f"all {counts[3]} right"
    head = (
        f'<div class="head"><b>{percent(_per(trial))}</b><span class="muted">{kinds}</span>'
        f'<span class="id">{text(trial["trial_id"])}</span></div>'
    )
    words = ""
    if trial["reference"] is not None and trial["hypothesis"] is not None:
        words = difference(trial["reference"].split(), trial["hypothesis"].split(), "words")
    elif trial["reference"]:
        words = f"<div>“{text(trial['reference'])}”</div>"
    return f'<div class="trial">{head}{words}{difference(trial["reference_symbols"], trial["symbols"])}</div>'


def _per(trial: dict[str, Any]) -> float:
    return ErrorCounts(*trial["counts"]["per"]).rate.value or 0.0


def _subject(evaluated: Evaluated) -> str:
    return f"split {evaluated.result['split']}, decoder {evaluated.result['decoder']}"
