"""Preflight of the losses: each is computed, in the same unit as the others, and weighs a trial for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.core.trial import Batch
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.rehearsal import Rehearsal
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.features.augmentation import Draws
from sottovoce.models.compose import Encoded
from sottovoce.training.branches import BRANCHES, CTC, DISTILLATION, SPEAKING_MODE, PartInputs

LARGEST_FACTOR: Final = 2.0
"""Between the normalisations of two losses; row E1 of the catalogue."""
SHARE_TOLERANCE: Final = 1e-4
"""On the weight of a trial beside other partners; row E2."""
LARGEST_SHARE: Final = 0.95
"""Of all gradient into the encoder, from one loss (row E4). The shipped curriculum's transducer, with 1 to .3 for CTC,
sends .75 before training."""
KNOWN_FRAMES: Final = 24
KNOWN_LABELS: Final = 5


def check_infinite_targets(untrained: UntrainedRun) -> Iterator[Finding]:
    """An impossible target alone has an infinite loss: nothing replaces it by a number."""
    logits_BSV = torch.zeros(1, 4, untrained.computer.model.head.out_features)
    label = 1 if untrained.computer.blank != 1 else 2
    targets = torch.tensor([[label] * 3]), torch.tensor([4]), torch.tensor([3])
    loss = untrained.computer.branches[CTC.name].functions["ctc_loss"]
    nats = float(loss(logits_BSV, *targets, untrained.computer.blank).sum())
    if math.isfinite(nats):
        evidence = f"Three equal labels in 4 frames, which need 5, have a CTC loss of {nats:g}, not infinity."
        yield found("zero_infinity", evidence, "preflight")


def check_reductions(untrained: UntrainedRun) -> Iterator[Finding]:
    """Each likelihood on uniform logits against its closed form, then the weight each gives a trial."""
    weighed = {name for step_kind in untrained.step_kinds for name in step_kind.activity.weights}
    names = [n for n, branch in untrained.computer.branches.items() if branch.is_likelihood and n in weighed]
    factors = dict(_factors(untrained, names))
    wrong = {name: factor for name, factor in factors.items() if not 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR}
    if zero := [name for name, factor in wrong.items() if factor == 0]:
        evidence = (
            f"On uniform logits the loss {zero[0]} of {KNOWN_LABELS} labels in {KNOWN_FRAMES} frames is exactly 0."
        )
        yield found("zero_loss", evidence, "preflight")
    elif wrong:
        name, factor = next(iter(wrong.items()))
        evidence = (
            f"On uniform logits the loss {name} of {KNOWN_LABELS} labels in {KNOWN_FRAMES} frames is {factor:.3g} "
            "times its closed form in nats a target."
        )
        yield found("reduction_mismatch", evidence, "preflight")
    elif CTC.name in names:
        for name in names:
            yield from _relative_scale(untrained, name)


def _factors(untrained: UntrainedRun, names: Sequence[str]) -> Iterator[tuple[str, float]]:
    """What the run's own loss says, divided by the closed form, by loss."""
    computer, model, blank = untrained.computer, untrained.computer.model, untrained.computer.blank
    outputs = [output for name in names if (output := computer.branches[name].output(model)) is not None]
    kept = [(p, p.detach().clone()) for output in outputs for p in output.parameters()]
    num_symbols = model.head.out_features
    labels = [symbol for symbol in range(num_symbols) if symbol != blank][:KNOWN_LABELS]
    frames_BSE = torch.zeros(1, KNOWN_FRAMES, model.encoder.output_size)
    encoded = Encoded(frames_BSE, torch.tensor([KNOWN_FRAMES]))
    batch = replace(
        untrained.batch,
        labels_BU=torch.tensor([labels]),
        label_lengths_B=torch.tensor([len(labels)]),
        trial_ids=untrained.batch.trial_ids[:1],
    )
    model.eval()
    with torch.no_grad():
        for parameter, _ in kept:
            parameter.zero_()
        inputs = _made_up_inputs(untrained, batch, encoded)
        branches = [computer.branches[name] for name in names]
        nats = [float(branch.nats(inputs, computer.settings_of(branch)).sum()) for branch in branches]
        for parameter, before in kept:
            parameter.copy_(before)
    for branch, value in zip(branches, nats, strict=True):
        assert branch.on_uniform_logits is not None
        yield branch.name, value / branch.on_uniform_logits(KNOWN_FRAMES, len(labels), num_symbols)


def _made_up_inputs(untrained: UntrainedRun, batch: Batch, encoded: Encoded) -> PartInputs:
    """What a loss looks at, with frames that no encoder gave."""
    computer, positions = untrained.computer, tuple(range(len(batch)))
    draws = Draws(computer.config.seed, 0, positions, batch.signal.device)
    return PartInputs(computer.model, batch, encoded, computer.blank, positions, draws, None, computer.modes)


def _weight(untrained: UntrainedRun, name: str, batch: Batch, frames_B: torch.Tensor) -> torch.Tensor:
    """∂(the step's loss)/∂(nats of a trial), [B]."""
    nats_B = torch.ones(len(batch), requires_grad=True)
    inputs = _made_up_inputs(untrained, batch, Encoded(torch.zeros(len(batch), 1, 1), frames_B))
    (weight_B,) = torch.autograd.grad(untrained.computer.share(name, nats_B, inputs), nats_B)
    return weight_B


def _made_up(untrained: UntrainedRun, frames: Sequence[int], labels: Sequence[int]) -> tuple[Batch, torch.Tensor]:
    """A batch without signals: trials of so many frames and labels."""
    bins = untrained.computer.model.bins_per_frame
    batch = Batch(
        signal=torch.zeros(len(frames), max(frames) * bins, 0),
        lengths_B=torch.tensor(frames) * bins,
        labels_BU=torch.ones(len(frames), max(labels), dtype=torch.int64),
        label_lengths_B=torch.tensor(labels),
        session_B=torch.zeros(len(frames), dtype=torch.int64),
        trial_ids=tuple(f"trial {i}" for i in range(len(frames))),
    )
    return batch, torch.tensor(frames)


def _relative_scale(untrained: UntrainedRun, other: str) -> Iterator[Finding]:
    """The weights that a trial has in CTC's and in another loss; a scaling that was asked for may differ."""
    if untrained.computer.config.training.loss_scaling == "length":
        return
    weights = [float(_weight(untrained, n, *_made_up(untrained, [100], [20]))[0]) for n in (CTC.name, other)]
    factor = weights[0] / weights[1] if weights[1] else math.inf
    if not 1 / LARGEST_FACTOR <= factor <= LARGEST_FACTOR:
        evidence = (
            f"A trial of 100 frames and 20 labels weighs {weights[0]:.3g} in the loss {CTC.name} and {weights[1]:.3g} "
            f"in the loss {other}, before their weights: a factor of {factor:.3g}."
        )
        yield found("reduction_mismatch", evidence, "preflight")


def check_batch_dependence(untrained: UntrainedRun) -> Iterator[Finding]:
    """A trial weighs as much beside a short partner as beside an equal and a long one."""
    names = {name for step_kind in untrained.step_kinds for name in step_kind.activity.weights}
    for name in (name for name in untrained.computer.branches if name in names):
        weights = [
            float(_weight(untrained, name, *_made_up(untrained, [30, frames], [6, labels]))[0])
            for frames, labels in ((30, 6), (10, 2), (120, 24))
        ]
        ratio = max(weights) / min(weights) if min(weights) > 0 else math.inf
        if ratio > 1 + SHARE_TOLERANCE:
            equal, short, long = weights
            evidence = (
                f"In the loss {name} a trial of 30 frames and 6 labels weighs {short:.4g} beside one of 10 frames, "
                f"{equal:.4g} beside its equal and {long:.4g} beside one of 120."
            )
            yield found("batch_dependent_scaling", evidence, "preflight")
            return


def check_rehearsals(untrained: UntrainedRun, rehearsals: Sequence[Rehearsal]) -> Iterator[Finding]:
    """Losses that are 0, not finite, or drown the others, and gradients that are lost."""
    checks: tuple[Callable[[UntrainedRun, Rehearsal], Finding | None], ...] = (_nonfinite, _zero, _dominates)
    for check in checks:
        hit = next((finding for r in rehearsals if (finding := check(untrained, r)) is not None), None)
        if hit is not None:
            yield hit
            if hit.severity == "error":
                return


def _nonfinite(untrained: UntrainedRun, rehearsal: Rehearsal) -> Finding | None:
    bad = [name for name, nats in rehearsal.nats.items() if not all(map(math.isfinite, nats))]
    if bad:
        values = ", ".join(f"{nats:g}" for nats in rehearsal.nats[bad[0]])
        return found("nonfinite_loss", f"In {rehearsal.step_kind} the loss {bad[0]} is {values}.", "preflight")
    if not rehearsal.nonfinite:
        return None
    guilty = [name for name, norm in rehearsal.into_encoder.items() if norm is not None and not math.isfinite(norm)]
    origin = f", from the loss {', '.join(guilty)}" if guilty else ""
    evidence = (
        f"In {rehearsal.step_kind} all losses of two trials of unequal length are finite, but "
        f"{len(rehearsal.nonfinite)} gradients are not{origin}; the first: {rehearsal.nonfinite[0]}."
    )
    return found("infinite_padding", evidence, "preflight", support=0.9)


def _zero(untrained: UntrainedRun, rehearsal: Rehearsal) -> Finding | None:
    for name, nats in rehearsal.nats.items():
        component = BRANCHES[name].component
        if _has_no_targets(untrained, name):
            continue
        if not any(nats):
            what = f"is exactly 0 for all {len(nats)} trials"
        elif component in rehearsal.step_kind.activity.rates and not rehearsal.component_norms.get(component):
            what = f"gives {component} no gradient"
        else:
            continue
        return found("zero_loss", f"In {rehearsal.step_kind} the loss {name} {what}.", "preflight")
    return None


def _has_no_targets(untrained: UntrainedRun, name: str) -> bool:
    """None of the rehearsed trials has what the loss compares with."""
    return (name == SPEAKING_MODE.name and _only_these_unlabelled(untrained)) or (
        name == DISTILLATION.name and _untaught(untrained)
    )


def _untaught(untrained: UntrainedRun) -> bool:
    """No teacher may teach the rehearsed trials."""
    teachers = untrained.computer.teachers
    return teachers is not None and not bool(teachers.weights(untrained.batch).any())


def _only_these_unlabelled(untrained: UntrainedRun) -> bool:
    """The rehearsed trials have no speaking mode, others have."""
    modes, prepared = untrained.computer.modes, untrained.prepared
    if modes is None:
        return False
    labelled = [
        bool(modes.of(ids, torch.device("cpu"))[1].any())
        for ids in (untrained.batch.trial_ids, [prepared.trial_set.trials[i].trial_id for i in prepared.train_indices])
    ]
    return labelled == [False, True]


def _dominates(untrained: UntrainedRun, rehearsal: Rehearsal) -> Finding | None:
    norms = {name: norm for name, norm in rehearsal.into_encoder.items() if norm is not None}
    if _untaught(untrained):
        norms.pop(DISTILLATION.name, None)
    if len(norms) < 2 or not any(norms.values()):
        return None
    name = max(norms, key=lambda n: norms[n])
    share = norms[name] / sum(norms.values())
    if share <= LARGEST_SHARE:
        return None
    sizes = ", ".join(f"{n} {norm:.3g}" for n, norm in norms.items())
    evidence = f"In {rehearsal.step_kind} the loss {name} sends {share:.1%} of the gradient into the encoder ({sizes})."
    return found("loss_term_dominates", evidence, "preflight")
