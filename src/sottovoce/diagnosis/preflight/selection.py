"""What the best checkpoint is chosen by: trials that nobody trains or reports on, and a metric that exists."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from sottovoce.core.errors import ConfigurationError, DataError
from sottovoce.core.findings import Finding
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.known_outputs import labels_of, rehearsal_trials, rehearsed
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.evaluation.scoring import METRICS
from sottovoce.runs.names import Metric, validation_rate

MOST_READ: Final = 64
"""Signals read to look for copies; only trials of equal length and labels are candidates at all."""


def selection_trials(untrained: UntrainedRun) -> Iterator[Finding]:
    """Validation decodes trials of the split `val` alone, and none of them is trained on."""
    prepared = untrained.prepared
    trials, chosen = prepared.trial_set.trials, untrained.loop.validation.indices
    foreign = [trials[i] for i in chosen if trials[i].split != "val"]
    if foreign:
        splits = " and ".join(sorted({trial.split for trial in foreign}))
        yield found(
            "selection_on_test",
            f"{len(foreign)} of the {len(chosen)} trials that choose the best checkpoint are of the split {splits}, "
            f"for example {foreign[0].trial_id}.",
            "preflight",
        )
        return
    trained = {trials[i].trial_id for i in prepared.train_indices}
    both = [trials[i].trial_id for i in chosen if trials[i].trial_id in trained]
    if both:
        yield found(
            "selection_on_test",
            f"{len(both)} of the {len(chosen)} trials that choose the best checkpoint are trained on, for example "
            f"{both[0]}.",
            "preflight",
        )


def copied_trials(untrained: UntrainedRun) -> Iterator[Finding]:
    """No signal of validation is, sample by sample, one of training."""
    trial_set = untrained.prepared.trial_set
    kinds: dict[tuple[object, ...], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, places in enumerate((untrained.prepared.train_indices, untrained.loop.validation.indices)):
        for i in places:
            trial = trial_set.trials[i]
            kinds[trial.num_steps, trial.labels][side].append(i)
    read, copies = 0, []
    for train, val in kinds.values():
        if not (train and val) or read >= MOST_READ:
            continue
        digests = {hashlib.blake2b(trial_set.signal(i).tobytes()).digest(): i for i in train}
        copies += [
            (i, digests[d]) for i in val if (d := hashlib.blake2b(trial_set.signal(i).tobytes()).digest()) in digests
        ]
        read += len(train) + len(val)
    if copies:
        one, other = (trial_set.trials[i].trial_id for i in copies[0])
        yield found(
            "split_leak",
            f"{len(copies)} signals of validation are copies of training trials, sample by sample: {one} is {other}.",
            "preflight",
        )


def selection_metrics(untrained: UntrainedRun) -> Iterator[Finding]:
    """The metric of the run, and that of each stage, comes out of validation and is a number."""
    prepared, loop = untrained.prepared, untrained.loop
    default = prepared.config.training.selection_metric
    wanted = {validation_rate(stage.config.metric or default): stage.name for stage in prepared.curriculum.stages}
    if not loop.validation.indices:
        yield found(
            "metric_missing",
            f"There are no validation trials, so that {', '.join(wanted)} is never computed and no checkpoint is "
            "chosen as the best.",
            "preflight",
            severity="warning",
        )
        return
    places = rehearsal_trials(untrained)
    trials = prepared.trial_set.trials
    incomplete = [i for i in loop.validation.indices if trials[i].text is None or trials[i].labels is None]
    said = labels_of(untrained, list(dict.fromkeys([*places, *incomplete[:1]])))
    for trained in (True, False):  # a transducer that has not learnt yet lets CTC decode
        try:
            values = rehearsed(untrained, said, trained)
        except (DataError, ConfigurationError) as error:
            yield found("metric_missing", f"Validation cannot be scored: {error}.", "preflight")
            return
        bad = [name for name in (*wanted, Metric.VAL_LOSS) if not math.isfinite(values.get(name, math.nan))]
        if bad:
            whose = f"stage {wanted[bad[0]]} selects by" if bad[0] in wanted else "ties are decided by"
            got = "is not among" if bad[0] not in values else f"is {values[bad[0]]} in"
            yield found(
                "metric_missing",
                f"{whose} {bad[0]}, which {got} what validation gives with this data and decoder: {', '.join(values)}.",
                "preflight",
                override=_other_metric(values),
            )
            return


def _other_metric(values: dict[str, float]) -> str:
    there = [name for name in METRICS if validation_rate(name) in values]
    return f"training.selection_metric={there[0]}" if there else ""
