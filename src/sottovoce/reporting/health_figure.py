"""One picture of a run's health: loss, gradient norm, blank share and learning rate over the same steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from sottovoce.core.findings import Finding
from sottovoce.reporting.figures import BAD, GRID, INK, MUTED, SERIES, SURFACE, draw
from sottovoce.reporting.run_files import Curve, RunFiles
from sottovoce.runs.names import LEARNING_RATE, Event, Metric

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEDIAN_OF: Final = 20
"""Records that the running median of the norms looks back on."""
CLOSE: Final = 0.03
"""Marks nearer than this share of the axis stand on one another's toes and are joined."""
NUMBERS_ABOVE: Final = 23
NAMES_ABOVE: Final = 35
"""Points above the first panel, over its title, where the numbers of findings and the names of events stand; names
take the numbers' place where there are none."""
_EVENTS: Final = {Event.STAGE_STARTED: "stage", Event.UNFROZEN: "components", Event.RESUMED: "", Event.RUN_ABORTED: ""}
_COLOURS: Final = {"error": BAD, "warning": SERIES[1], "note": MUTED}
_WORST: Final = tuple(_COLOURS.values())
Panel = tuple[str, float, Callable[["Axes"], None]]
"""Title, height in inches, and what draws it."""


def health_figure(run: RunFiles, findings: Sequence[Finding]) -> str:
    """An SVG with a panel for each of the four that was recorded; empty where none was.

    Numbered marks stand where each finding was first seen, thin lines where a stage or a component began, red ticks
    under the norm where a step was skipped.
    """
    panels = [*_loss(run), *_norm(run), *_blank(run), *_rate(run)]
    if not panels:
        return ""
    last = max(run.last_step, *(finding.step or 0 for finding in findings), 1)

    def paint(figure: Figure) -> None:
        heights = [height for _, height, _ in panels]
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
        axes = [row[0] for row in grid]
        for one, (title, _, fill) in zip(axes, panels, strict=True):
            one.grid(visible=False, axis="x")
            fill(one)
            one.set_title(title, loc="left", fontsize=8, color=INK, pad=4)
            for step, _ in _events(run):
                one.axvline(step, color=MUTED, linewidth=0.7, linestyle=(0, (1, 2)))
            for step, _, colour in _marks(findings, last):
                one.axvline(step, color=colour, linewidth=1.1, alpha=0.75)
        axes[0].set_xlim(-0.01 * last, 1.01 * last)
        numbered = any(finding.step is not None for finding in findings)
        _name_events(axes[0], run, last, NAMES_ABOVE if numbered else NUMBERS_ABOVE - 5)
        _number_findings(axes[0], findings, last)
        _format_steps(axes[-1])

    return draw(9.6, 0.75 + sum(height + 0.24 for _, height, _ in panels), paint, "Health of the run over its steps")


def _loss(run: RunFiles) -> list[Panel]:
    """The decoders' losses, in the unit of the validation's; the total, which may have another, only without them."""
    ours: dict[str, str] = {
        Metric.CTC_LOSS: "CTC",
        Metric.TRANSDUCER_LOSS: "transducer",
        Metric.DISTILLATION_LOSS: "teachers",
    }
    names: dict[str, str] = {Metric.CTC_LOSS: "CTC", Metric.VAL_LOSS: "CTC on validation", **ours}
    unit = ""
    if ours.keys() & run.curves.keys():
        unit = " per utterance"
    else:
        names = {Metric.TRAIN_LOSS: "train", Metric.VAL_LOSS: "validation"}
    lines = [(run.curves[n], c, label) for n, c, label in _named(run, names)]
    if not lines:
        return []

    def fill(axes: Axes) -> None:
        for curve, colour, _ in lines:
            _line(axes, curve, colour)
        _log_where_positive(axes, [value for (_, values), _, _ in lines for value in values])
        _legend(axes, [(label, colour) for _, colour, label in lines])

    return [(f"Loss, nats{unit}", 1.5, fill)]


def _norm(run: RunFiles) -> list[Panel]:
    curve = run.curves.get(Metric.GRADIENT_NORM)
    if curve is None:
        return []
    steps, norms = curve
    medians = [statistics.median(norms[max(0, i + 1 - MEDIAN_OF) : i + 1]) for i in range(len(norms))]
    limit = run.setting("training.max_grad_norm") or None
    skipped = [int(event["step"]) for event in run.events if event["event"] in (Event.STEP_SKIPPED, Event.ROLLED_BACK)]

    def fill(axes: Axes) -> None:
        axes.plot(steps, norms, color=MUTED, linewidth=0.7, marker=".", markersize=3.5, markeredgewidth=0)
        axes.plot(steps, medians, color=SERIES[0])
        entries = [("norm", MUTED), (f"running median of {MEDIAN_OF}", SERIES[0])]
        if limit is not None:
            axes.axhline(limit, color=SERIES[1], linewidth=1.1, linestyle=(0, (4, 3)))
            over = [max(norm, limit) for norm in norms]
            axes.fill_between(steps, [limit] * len(norms), over, color=SERIES[1], alpha=0.14, linewidth=0)
            entries.append((f"clipped above {limit:g}", SERIES[1]))
        if skipped:
            axes.plot(
                skipped, [0.06] * len(skipped), "|", color=BAD, markersize=7, transform=axes.get_xaxis_transform()
            )
            axes.margins(y=0.14)  # the limit is often the lowest line, and the ticks stand below it
            entries.append((f"{len(skipped)} skipped", BAD))
        _log_where_positive(axes, [*norms, *([limit] if limit else [])])
        _legend(axes, entries)

    return [("Gradient norm before clipping", 1.5, fill)]


def _blank(run: RunFiles) -> list[Panel]:
    names: dict[str, str] = {Metric.TRAIN_BLANK_FRACTION: "train", Metric.VAL_BLANK_FRACTION: "validation"}
    lines = [(run.curves[n], c, label) for n, c, label in _named(run, names)]
    if not lines:
        return []

    def fill(axes: Axes) -> None:
        from matplotlib.ticker import PercentFormatter

        for curve, colour, _ in lines:
            _line(axes, curve, colour)
        axes.set_ylim(0, 1.04)
        axes.set_yticks([0, 0.5, 1])
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        _legend(axes, [(label, colour) for _, colour, label in lines])

    return [("Frames that are blank", 0.85, fill)]


def _rate(run: RunFiles) -> list[Panel]:
    rates = {name: curve for name, curve in run.curves.items() if name.startswith(LEARNING_RATE)}
    if not rates:
        return []
    highest = max(rates.values(), key=lambda curve: max(curve[1]))

    def fill(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes.fill_between(*highest, color=SERIES[2], alpha=0.14, linewidth=0)
        axes.plot(*highest, color=SERIES[2])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    return [("Learning rate", 0.6, fill)]


def _named(run: RunFiles, names: dict[str, str]) -> list[tuple[str, str, str]]:
    """Name, colour and label of the curves that there are."""
    return [(name, SERIES[i], names[name]) for i, name in enumerate(names) if name in run.curves]


def _line(axes: Axes, curve: Curve, colour: str) -> None:
    axes.plot(*curve, color=colour, marker="o" if len(curve[0]) < 30 else None, markersize=2.6)


def _legend(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Words in the colour of their lines, above the panel on the right; the last word stands at the edge."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    words: list[Artist] = [TextArea(label, textprops={"color": colour, "fontsize": 7}) for label, colour in entries]
    packed = HPacker(children=words, pad=0, sep=10)
    box = AnchoredOffsetbox(
        "lower right",
        child=packed,
        pad=0.25,
        borderpad=0,
        frameon=False,
        bbox_to_anchor=(1, 1),
        bbox_transform=axes.transAxes,
    )
    axes.add_artist(box)


def _log_where_positive(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    if min(values) <= 0:
        axes.set_ylim(bottom=min(0, min(values)))
        axes.yaxis.set_major_locator(MaxNLocator(3))
        return
    axes.set_yscale("log")
    span = max(values) / min(values)
    subs = (1.0,) if span > 300 else (1.0, 2.0, 5.0) if span > 4 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.minorticks_off()


def _short(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:.4g}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _events(run: RunFiles) -> list[tuple[int, str]]:
    """Where something began, ended or was resumed, in words."""
    staged = sum(event["event"] == Event.STAGE_STARTED for event in run.events) > 1
    found = []
    for event in run.events:
        kind = event["event"]
        if kind not in _EVENTS or (kind == Event.STAGE_STARTED and not staged):
            continue
        what = event.get(_EVENTS[kind], "")
        what = ", ".join(what) if isinstance(what, list) else str(what)
        name = {
            Event.STAGE_STARTED: what,
            Event.UNFROZEN: f"+ {what}",
            Event.RESUMED: Event.RESUMED.value,
            Event.RUN_ABORTED: "aborted",
        }[kind]
        found.append((int(event["step"]), name))
    return found


def _name_events(axes: Axes, run: RunFiles, last: int, above: float) -> None:
    """Names above the first panel, one line; those without room are left to the list of events."""
    free = 0.0
    for step, name in _events(run):
        place = step / last
        if place < free:
            continue
        right = place > 0.9
        axes.annotate(
            name,
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-2 if right else 2, above),
            textcoords="offset points",
            fontsize=6.5,
            color=MUTED,
            ha="right" if right else "left",
        )
        free = place + 0.0065 * len(name) + 0.012


def _marks(findings: Sequence[Finding], last: int) -> list[tuple[int, str, str]]:
    """Step, numbers and colour of each mark; findings that were seen at about one step share one, the gravest's."""
    marks: list[tuple[int, list[int], str]] = []
    placed = sorted((f.step, number, f) for number, f in enumerate(findings, 1) if f.step is not None)
    for step, number, finding in placed:
        colour = _COLOURS[finding.severity]
        if marks and step - marks[-1][0] < CLOSE * last:
            first, numbers, other = marks[-1]
            marks[-1] = (first, [*numbers, number], min(colour, other, key=_WORST.index))
        else:
            marks.append((step, [number], colour))
    return [(step, ", ".join(map(str, sorted(numbers))), colour) for step, numbers, colour in marks]


def _number_findings(axes: Axes, findings: Sequence[Finding], last: int) -> None:
    for step, numbers, colour in _marks(findings, last):
        axes.annotate(
            numbers,
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, NUMBERS_ABOVE),
            textcoords="offset points",
            fontsize=7.5,
            fontweight="bold",
            color=SURFACE,
            ha="center",
            va="center",
            bbox={"boxstyle": "circle,pad=0.25" if len(numbers) == 1 else "round,pad=0.3,rounding_size=0.8",
                  "facecolor": colour, "edgecolor": "none"},
            annotation_clip=False,
        )  # fmt: skip


def _format_steps(axes: Axes) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("step", color=MUTED, loc="right", labelpad=0)
    axes.spines["bottom"].set_color(GRID)
