"""How the training went: curves with their present values, and what happened when."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sottovoce.metrics import percent
from sottovoce.reporting import figures
from sottovoce.reporting.figures import Line
from sottovoce.reporting.html import card, chip, missing, section, table, text
from sottovoce.reporting.run_files import RunFiles
from sottovoce.runs.names import LEARNING_RATE, Event, Metric

_SHOWN_EVENTS = 60
_ROUTINE = Event.CHECKPOINT_SAVED
_KINDS = {
    Event.STEP_SKIPPED: "bad",
    Event.RUN_ABORTED: "bad",
    Event.RUN_FAILED: "bad",
    "blank_collapse": "warn",
    Event.RESUMED: "warn",
}


def training_section(run: RunFiles) -> str:
    """A chart for everything that the run has written metrics for; stages begin where a name stands."""
    branches: dict[str, str] = {
        Metric.CTC_LOSS: "CTC",
        Metric.DISTILLATION_LOSS: "divergence from the teachers",
        Metric.TRANSDUCER_LOSS: "transducer",
        Metric.MODE_LOSS: "speaking mode",
        Metric.FLOW_LOSS: "flow bridge",
    }
    skipped = [int(e["step"]) for e in run.events if e["event"] == Event.STEP_SKIPPED]
    unit = " ".join(["nats", *str(run.setting("training.loss_normalisation") or "").split("_")])
    several = {Metric.TRANSDUCER_LOSS, Metric.DISTILLATION_LOSS} & run.curves.keys()
    same_unit = unit in ("nats", "nats per utterance") and not several
    losses: dict[str, str] = {
        Metric.TRAIN_LOSS: "train",
        Metric.VAL_LOSS: "validation" if same_unit else "validation (CTC, nats per utterance)",
    }
    charts = [
        _chart(run, "Loss", losses, unit=unit, log=_spans_decades(run, losses), marked_steps=skipped),
        _chart(run, "Loss of each branch", branches, unit="nats per utterance", log=True) if several else "",
        _chart(
            run,
            "Error rates on validation",
            {Metric.VAL_PER: "PER", Metric.VAL_WER: "WER", Metric.VAL_WRA: "WRA", Metric.VAL_CTC_PER: "PER of CTC"},
            as_percent=True,
        ),
        _chart(
            run,
            "Speaking mode",
            {
                Metric.VAL_MODE_ACCURACY: "accuracy on validation",
                Metric.MODE_CONFIDENCE: "confidence of estimated labels",
            },
            as_percent=True,
        ),
        _chart(
            run,
            "Blank frames",
            {Metric.TRAIN_BLANK_FRACTION: "train", Metric.VAL_BLANK_FRACTION: "validation"},
            as_percent=True,
        ),
        _chart(
            run,
            "Gradient norm",
            {Metric.GRADIENT_NORM: "before clipping"},
            log=True,
            limit=run.setting("training.max_grad_norm") or None,
            limit_label="clipped above",
            marked_steps=skipped,
        ),
        _chart(run, "Learning rate", _learning_rates(run)),
        _chart(run, "Time of a step", {Metric.STEP_SECONDS: "seconds"}, unit="s"),
    ]
    drawn = "".join(charts)
    if not drawn:
        return section(
            "training", "Training", missing("No metrics yet. They appear while the run trains:", resume(run))
        )
    return section("training", "Training", f'<div class="grid">{drawn}</div>', extra=_summary(run))


def events_section(run: RunFiles) -> str:
    """Counts of each event, and the latest ones but for routine checkpoints."""
    if not run.events:
        return section("events", "Events", '<div class="empty"><p>Nothing has been recorded.</p></div>')
    counts = Counter(e["event"] for e in run.events)
    chips = " ".join(chip(f"{name} × {count}", _KINDS.get(name, "")) for name, count in counts.most_common())
    told = [e for e in run.events if e["event"] != _ROUTINE][-_SHOWN_EVENTS:]
    rows = [
        (
            f"{e['step']:,}",
            chip(e["event"], _KINDS.get(e["event"], "")),
            text(e.get("code") or ""),
            _details({k: v for k, v in e.items() if k not in ("step", "event", "code")}),
        )
        for e in told
    ]
    body = table(("step", "event", "cause", "details"), rows, frozenset({0})) if rows else ""
    return section("events", "Events", card(f'<p class="facts">{chips}</p>', body))


def resume(run: RunFiles) -> str:
    """The command that goes on with the run."""
    return f"sottovoce train resume={run.directory}"


def _chart(run: RunFiles, title: str, names: dict[str, str], *, unit: str = "", **options: Any) -> str:
    present = [name for name in names if name in run.curves]
    if not present:
        return ""
    lines = [Line(names[name], run.curves[name], i % len(figures.SERIES)) for i, name in enumerate(present)]
    as_percent, limit_label = options.get("as_percent", False), options.pop("limit_label", "")
    legend = "".join(
        f'<span><i class="swatch" style="background:var(--series-{line.colour})"></i>{text(line.label)} '
        f"<b>{_value(line.curve[1][-1], as_percent)}</b></span>"
        for line in lines
    )
    if options.get("limit"):
        legend += f'<span><i class="swatch dash"></i>{text(limit_label)} <b>{options["limit"]:g}</b></span>'
    figure = figures.curves(
        lines,
        description=f"{title} over training steps",
        last_step=run.last_step,
        stages=_stages(run),
        **options,
    )
    return card(f'<div class="legend">{legend}</div>', figure, title=title, extra=unit)


def _stages(run: RunFiles) -> list[tuple[int, str]]:
    """First step and name of each stage, where there are several."""
    begun = [(int(e["step"]), str(e["stage"])) for e in run.events if e["event"] == Event.STAGE_STARTED]
    return begun if len(begun) > 1 else []


def _learning_rates(run: RunFiles) -> dict[str, str]:
    """Groups that share a curve share a line."""
    alike: dict[str, list[str]] = {}
    for name in sorted(n for n in run.curves if n.startswith(LEARNING_RATE)):
        first = next((other for other in alike if run.curves[other] == run.curves[name]), name)
        alike.setdefault(first, []).append(name.removeprefix(LEARNING_RATE))
    return {first: ", ".join(groups) for first, groups in alike.items()}


def _spans_decades(run: RunFiles, names: dict[str, str]) -> bool:
    values = [value for name in names for value in run.curves.get(name, ([], []))[1]]
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


def _value(value: float, as_percent: bool) -> str:
    return percent(value) if as_percent else f"{value:.3g}"


def _summary(run: RunFiles) -> str:
    parts = []
    if Metric.VAL_PER in run.curves:
        steps, values = run.curves[Metric.VAL_PER]
        # Decoders before and after a component joins do not compare.
        joined = max((e["step"] for e in run.events if e["event"] in (Event.STAGE_STARTED, Event.UNFROZEN)), default=0)
        comparable = [i for i, step in enumerate(steps) if step > joined] or list(range(len(steps)))
        best = min(comparable, key=lambda i: (values[i], steps[i]))
        parts.append(f"lowest validation PER {percent(values[best])} at step {steps[best]:,}")
    for event in run.events:
        if event["event"] == Event.FLOW_BRIDGE_MEASURED:
            with_bridge, without = percent(event["with_bridge"]), percent(event["without"])
            verdict = "in use" if event["used"] else "left out"
            parts.append(f"flow bridge {verdict}: {with_bridge} with it, {without} without")
    skipped = sum(e["event"] == Event.STEP_SKIPPED for e in run.events)
    parts.append(f"{skipped} skipped step{'' if skipped == 1 else 's'}")
    return " · ".join(parts)


def _details(values: dict[str, Any]) -> str:
    return " ".join(f'<span class="muted">{text(k)}</span> {text(v)}&ensp;' for k, v in values.items() if v is not None)
