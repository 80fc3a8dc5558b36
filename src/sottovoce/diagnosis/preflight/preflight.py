"""Preflight: everything that can be known to be wrong before the first step, on the run's real objects.

Checks run in phases, the most certain first; what a phase cannot be trusted on is not asked once an earlier one has
found an error. Weights, gradients, buffers and the random state are bit for bit the same afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.linter import lint
from sottovoce.diagnosis.preflight.data import (
    check_augmentation,
    check_pipeline,
    check_sampling,
    check_signals,
    check_speakers,
    check_splits,
)
from sottovoce.diagnosis.preflight.exit import check_exit
from sottovoce.diagnosis.preflight.known_answers import known_answers
from sottovoce.diagnosis.preflight.layers import check_layers, check_precision
from sottovoce.diagnosis.preflight.losses import (
    check_batch_dependence,
    check_infinite_targets,
    check_reductions,
    check_rehearsals,
)
from sottovoce.diagnosis.preflight.memory import check_memory
from sottovoce.diagnosis.preflight.optimizer import (
    check_accumulation,
    check_held,
    check_ownership,
    check_reach,
    check_schedule,
)
from sottovoce.diagnosis.preflight.rehearsal import rehearse
from sottovoce.diagnosis.preflight.targets import (
    check_feasibility,
    check_frame_formula,
    check_labels,
    check_transducer_lengths,
)
from sottovoce.diagnosis.preflight.teachers import check_teachers
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.diagnosis.ranking import ranked
from sottovoce.training.preparation import Prepared

Check = Callable[[UntrainedRun], Iterator[Finding]]


def check_weights(untrained: UntrainedRun) -> Iterator[Finding]:
    """Weights and buffers are finite before anything has been learnt."""
    model = untrained.computer.model
    tensors = (*model.named_parameters(), *model.named_buffers())
    # A sum is finite only where all of it is, and costs a tenth.
    bad = [n for n, t in tensors if not bool(t.sum().isfinite()) and not bool(t.isfinite().all())]
    if bad:
        evidence = f"{len(bad)} tensors of the model are not finite before the first step, e.g. {bad[0]}."
        yield found("poisoned_weights", evidence, "preflight")


def check_steps(untrained: UntrainedRun) -> Iterator[Finding]:
    """One rehearsed step of each kind in the curriculum."""
    rehearsals = [rehearse(untrained, step_kind) for step_kind in untrained.step_kinds]
    yield from check_rehearsals(untrained, rehearsals)
    yield from check_reach(untrained, rehearsals)
    yield from check_memory(untrained, rehearsals)


DATA_CHECKS: Final[tuple[Check, ...]] = (
    check_signals,
    check_splits,
    check_sampling,
    check_speakers,
    check_pipeline,
    check_augmentation,
)
"""Those that read signals or compare splits; `preflight(…, data=False)` leaves them out."""
PHASES: Final[tuple[tuple[Check, ...], ...]] = (
    (check_labels,),
    (check_weights, check_precision),
    (check_frame_formula,),
    (check_feasibility, check_transducer_lengths, *DATA_CHECKS),
    (check_teachers,),
    (check_ownership, check_held, check_schedule, check_infinite_targets, check_reductions, check_batch_dependence),
    (known_answers, check_layers),
    (check_steps,),
    (check_accumulation, check_exit),
)


def preflight(prepared: Prepared, data: bool = True) -> list[Finding]:
    """What is wrong with a run before its first step, the cause first; [] or notes for a healthy one.

    What the linter says of the configuration comes with it.

    Takes a few seconds: one or two short forward and backward passes for each stage. `data=False` leaves out what
    reads signals.
    """
    untrained, findings = UntrainedRun.of(prepared), list[Finding]()
    with untrained.untouched():
        for phase in PHASES:
            for check in phase:
                if data or check not in DATA_CHECKS:
                    findings += check(untrained)
            if any(finding.severity == "error" for finding in findings):
                break
    return ranked([*lint(prepared.config, prepared), *findings])
