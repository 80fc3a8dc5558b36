"""The blank: the plateau that CTC models pass, the collapse that they do not leave, and a label in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from sottovoce.diagnosis.explainer.diagnosed_run import DiagnosedRun
from sottovoce.diagnosis.explainer.rules_schedule import LEARNT, planned_steps
from sottovoce.diagnosis.explainer.suspicion import Suspicion, middle, suspect
from sottovoce.diagnosis.thresholds import BLANK, LARGE_EPS, LEFT
from sottovoce.runs.names import Metric
from sottovoce.runs.record import Series

PATIENCE_STEPS: Final = 500
PATIENCE_SHARE: Final = 0.02
"""A plateau of more than so many steps, or this share of the run, is long: docs/failures/blank_collapse.md."""
NOTED_STEPS: Final = 100
"""A plateau that lasts longer is worth a note. Short runs that end on it are no fault: a GRU of 16 units on 24 trials
stays there for 400 steps."""
NOTHING_DECODED: Final = 0.95
"""An error rate from here on: what is decoded, if anything, is chance."""
STANDS: Final = 0.05
"""A loss that falls by less than this share in the second half of the plateau stands still."""
UNUSED: Final = 0.05
"""Share of blank frames up to which the blank is hardly used. Measured: 0.00 to 0.03 with a label in its place, 0.14 to
0.7 without."""
ROOM: Final = 1.5
"""Frames a label from which a model could use the blank."""
OPENS: Final = 0.25
"""So much more often one label opens hypotheses than texts: 0.31 to 0.75 measured with it in the blank's place, at most
0.08 without."""
DECODES: Final = 0.6
"""Error rate below which a run has learnt; above it hypotheses begin alike for other reasons."""
FEWEST_TRIALS: Final = 10


def all_blank(record: DiagnosedRun) -> Iterator[Suspicion]:
    """D5 and D6: blank everywhere until the end of the record, with the loss falling (a note) or standing (a fault)."""
    blank, loss = record.metric(Metric.TRAIN_BLANK_FRACTION), record.metric(Metric.CTC_LOSS)
    since = _begin_of_plateau(blank)
    rates = record.metric(Metric.VAL_PER)
    if since is None or (rates and rates.values[-1] < NOTHING_DECODED) or record.config is None:
        return
    length = blank.steps[-1] - since
    plateau = loss.between(since, float("inf"))
    if len(plateau) < 4:
        return
    half = len(plateau) // 2
    early, late = middle(plateau.values[: max(1, half // 2)]), middle(plateau.values[-max(2, half // 2) :])
    middle_of = middle(plateau.values[half : half + max(1, half // 2)])
    fall = 1 - late / middle_of if middle_of else 0.0
    evidence = (
        f"At least {BLANK:.0%} of frames are blank since step {since} ({length} steps), and the CTC loss went from "
        f"{early:.4g} to {late:.4g}"
    )
    patience = max(PATIENCE_STEPS, PATIENCE_SHARE * (planned_steps(record) or 0))
    if fall >= STANDS or length <= patience:
        if length > NOTED_STEPS:
            yield suspect("blank_plateau", f"{evidence}, {fall:.0%} in its second half.", step=since)
        return
    left = [step for step, value in blank.between(-1, since) if value <= LEFT]
    if left and _learnt_before(record, since):
        how = f"; it had left the blank by step {left[-1]} and came back"
    else:
        how = f"; in the second half of that time it fell by {max(fall, 0):.1%}"
    optimizer = record.config.training.optimizer
    yield suspect("blank_collapse", f"{evidence}{how}.", step=since, support=0.8, about="all_blank")
    if optimizer.eps >= LARGE_EPS and not left:
        scale = (
            f"{evidence}{how}; eps={optimizer.eps:g} with lr={optimizer.lr:g} and max_grad_norm="
            f"{record.config.training.max_grad_norm:g}: a step of at most "
            f"{optimizer.lr / optimizer.eps * record.config.training.max_grad_norm:.3g}."
        )
        yield suspect("adam_eps_regime", scale, step=since, support=0.85, about="all_blank", severity="error")


def _begin_of_plateau(blank: Series) -> int | None:
    """The step since which the share has stayed high, up to the last record; None where it is not high now."""
    if len(blank) < 4 or blank.values[-1] < BLANK:
        return None
    begin = blank.steps[-1]
    for step, value in reversed(list(blank)):
        if value < LEFT:
            break
        begin = step if value >= BLANK else begin
    return begin


def _learnt_before(record: DiagnosedRun, since: int) -> bool:
    """The model had decoded something: an error rate well under 1 before the plateau."""
    return any(value < LEARNT for value in record.metric(Metric.VAL_PER).between(-1, since).values)


def label_in_the_blanks_place(record: DiagnosedRun) -> Iterator[Suspicion]:
    """The blank is hardly ever the best symbol, and one label is said before nearly every trial's own first one."""
    for evaluation in record.evaluations:
        trials = [h for h in evaluation.hypotheses if h.get("reference_symbols") and h.get("symbols")]
        rate = evaluation.result.get("per")
        if len(trials) < FEWEST_TRIALS or rate is None or rate >= DECODES:
            continue
        frames, blanks = (sum(h[name] for h in trials) for name in ("num_frames", "blank_frames"))
        room = frames / sum(len(h["reference_symbols"]) for h in trials)
        said, meant = (Counter(h[name][0] for h in trials) for name in ("symbols", "reference_symbols"))
        label = max(said, key=lambda symbol: said[symbol] - meant[symbol])
        excess = (said[label] - meant[label]) / len(trials)
        if room >= ROOM and blanks < UNUSED * frames and excess >= OPENS:
            yield suspect(
                "blank_supplanted",
                f"In {evaluation.name} the blank is the best symbol in {blanks / frames:.1%} of the frames, with room "
                f"for {room:.1f} frames a label; {said[label] / len(trials):.0%} of the hypotheses begin with {label}, "
                f"{meant[label] / len(trials):.0%} of the texts do.",
            )
            return
