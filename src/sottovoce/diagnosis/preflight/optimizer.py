"""Preflight of ownership and rates: the optimiser owns exactly what shall learn, and moves it as configured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch

from sottovoce.core.findings import Finding
from sottovoce.data.collation import StepPart
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.rehearsal import Rehearsal, rehearse
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.models.compose import DecoderModel
from sottovoce.training.branches import BRANCHES, DENOISING
from sottovoce.training.guard import owned_by
from sottovoce.training.optimizer import SESSION_MODULE, group_of

RATE_TOLERANCE: Final = 1e-9
"""Relative; row B6 of the catalogue."""
LEAST_COSINE: Final = 0.9999
"""Between the gradients of one batch and of its micro-batches; row B7."""
NORM_TOLERANCE: Final = 1e-3
"""On the ratio of their norms; row B7."""
NUM_RATES: Final = 25
"""Steps spread over the run whose learning rates are looked at."""


def check_ownership(untrained: UntrainedRun) -> Iterator[Finding]:
    """Everything that a stage trains belongs to the optimiser, once, in the group that its name says."""
    model, optimizer = untrained.computer.model, untrained.optimizer
    counts = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    names = {id(p): name for name, p in model.named_parameters()}
    learning = {component for step_kind in untrained.step_kinds for component in step_kind.activity.rates}
    component_of = model.component_of
    shall_learn = {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad or DecoderModel.component_of(name) in learning
    }
    stale = [name for name, p in shall_learn.items() if id(p) not in counts]
    strange = [group["name"] for group in optimizer.param_groups for p in group["params"] if id(p) not in names]
    if stale:
        sizes = sum(shall_learn[name].numel() for name in stale)
        stages = sorted({m.stage for m in untrained.step_kinds for n in stale if component_of(n) in m.activity.rates})
        where = f" (stage{'s' * (len(stages) > 1)} {', '.join(stages)})" if stages else ""
        evidence = (
            f"{len(stale)} of {len(shall_learn)} parameters that shall learn{where} are in no group of the optimiser, "
            f"{sizes:,} numbers: {_some(stale)}."
        )
        yield found("stale_optimizer", evidence, "preflight")
    elif strange:
        evidence = f"{len(strange)} tensors of the optimiser are none of the model's (groups {_some(strange)})."
        yield found("stale_optimizer", evidence, "preflight")
    twice = [names[key] for key, count in counts.items() if count > 1 and key in names]
    if twice:
        yield found("ambiguous_parameter_groups", f"{_some(twice)} are in the optimiser more than once.", "preflight")
    yield from _groups(untrained, names)


def _groups(untrained: UntrainedRun, names: dict[int, str]) -> Iterator[Finding]:
    decay = untrained.computer.config.training.optimizer.weight_decay
    misplaced, decayed = [], []
    for group in untrained.optimizer.param_groups:
        kind = str(group["name"]).rsplit(".", 1)[-1]
        for name in (names[id(p)] for p in group["params"] if id(p) in names):
            component = group.get("component")
            if kind != group_of(name) or (component is not None and component != DecoderModel.component_of(name)):
                misplaced.append(f"{name} in {group['name']}")
            elif group["weight_decay"] != (decay if kind == "other" else 0.0):
                decayed.append(f"{name} ({group['weight_decay']:g})")
    if misplaced:
        evidence = f"{len(misplaced)} parameters are in a group that is not theirs: {_some(misplaced)}."
        yield found("ambiguous_parameter_groups", evidence, "preflight")
    if decayed:
        evidence = f"{len(decayed)} parameters have a weight decay that their group should not: {_some(decayed)}."
        yield found("weight_decay_on_biases", evidence, "preflight")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def check_reach(untrained: UntrainedRun, rehearsals: Sequence[Rehearsal]) -> Iterator[Finding]:
    """Every owned parameter receives a gradient in some stage, and no frozen branch sends any."""
    owned, reached = (
        owned_by(untrained.optimizer, untrained.computer.named),
        frozenset[str]().union(*(r.reached for r in rehearsals)),
    )
    adapters_work = any(name.startswith(SESSION_MODULE) for name in reached)
    unused = [n for n in owned if n not in reached and not (n.startswith(SESSION_MODULE) and adapters_work)]
    if unused:
        evidence = (
            f"{len(unused)} of {len(owned)} parameters of the optimiser get no gradient in any stage, "
            f"{sum(owned[n].numel() for n in unused):,} numbers: {_some(unused)}."
        )
        yield found("unused_parameters", evidence, "preflight")
    yield from _leaking(untrained, rehearsals)


def check_held(untrained: UntrainedRun) -> Iterator[Finding]:
    """Stages in which a loss is computed whose weight is 0 or whose head is frozen; only those are run."""
    for step_kind in untrained.step_kinds:
        stage, computed = untrained.computer.curriculum.stage(step_kind.position).config, step_kind.activity.weights
        if any(not stage.weight_of(n) or BRANCHES[n].component not in step_kind.activity.rates for n in computed):
            yield from _leaking(untrained, [rehearse(untrained, step_kind)])
            return


def _leaking(untrained: UntrainedRun, rehearsals: Sequence[Rehearsal]) -> Iterator[Finding]:
    for rehearsal in rehearsals:
        leaks = list(_leaks(untrained, rehearsal))
        if leaks:
            evidence = f"In {rehearsal.step_kind}: {'; '.join(leaks)}."
            yield found("frozen_branch_leaks", evidence, "preflight")
            return


def _leaks(untrained: UntrainedRun, rehearsal: Rehearsal) -> Iterator[str]:
    step_kind = rehearsal.step_kind
    stage = untrained.computer.curriculum.stage(step_kind.position).config
    for name, norm in rehearsal.into_encoder.items():
        off = not stage.weight_of(name) or name not in step_kind.activity.weights
        component = BRANCHES[name].component
        held = component not in step_kind.activity.rates
        if norm is not None and (off or held):
            why = "has no weight" if off else f"trains through {component}, which is frozen"
            yield f"the loss {name} {why} and sends a gradient of norm {norm:.3g} into the encoder"
    frozen = sorted(n for n in rehearsal.reached if DecoderModel.component_of(n) not in step_kind.activity.rates)
    if frozen:
        yield f"gradients reach what is frozen: {_some(frozen)}"
    moved = [n for n in rehearsal.moved_buffers if DecoderModel.component_of(n) not in step_kind.activity.rates]
    if moved:
        yield f"running statistics of what is frozen move: {_some(moved)}"


def check_schedule(untrained: UntrainedRun) -> Iterator[Finding]:
    """The learning rates that the run sets, over its planned steps, against the configured curve."""
    computer, config = untrained.computer, untrained.computer.config.training
    step_kind = untrained.step_kinds[-1]
    untrained.enter(step_kind)
    total = computer.curriculum.total_steps
    steps = sorted({0, 1, config.scheduler.warmup_steps, *(i * (total - 1) // NUM_RATES for i in range(NUM_RATES + 1))})
    seen, wrong = set[float](), list[tuple[int, str, float, float]]()
    for step in steps:
        computer.progress.updates = step
        computer.set_rates(untrained.optimizer)
        for group in untrained.optimizer.param_groups:
            kind = str(group["name"]).rsplit(".", 1)[-1]
            peak = (config.optimizer.session_lr or config.optimizer.lr) if kind == "session" else config.optimizer.lr
            component = group.get("component")
            share = 1.0 if component is None else step_kind.activity.rates.get(component, 0.0)
            planned, rate = peak * share * _planned_factor(untrained, step), float(group["lr"])
            seen.add(rate)
            if not math.isclose(rate, planned, rel_tol=RATE_TOLERANCE, abs_tol=1e-15):
                wrong.append((step, group["name"], rate, planned))
    if wrong:
        step, name, rate, planned = wrong[len(wrong) // 2]
        flat = " It is the same at every step." if len(seen) == 1 else ""
        evidence = (
            f"At {len({s for s, *_ in wrong})} of {len(steps)} steps looked at the rate is another than configured; "
            f"e.g. at step {step} group {name} has {rate:.4g}, planned are {planned:.4g}.{flat}"
        )
        yield found("schedule_not_stepped", evidence, "preflight")


def _planned_factor(untrained: UntrainedRun, step: int) -> float:
    """The configured curve, written down a second time (nejm-brain-to-text `rnn_trainer.py`)."""
    scheduler, total = untrained.computer.config.training.scheduler, untrained.computer.curriculum.total_steps
    warmup, end, floor = scheduler.warmup_steps, scheduler.max_steps or total, scheduler.min_lr_ratio
    if step < warmup:
        return step / warmup
    if scheduler.name == "constant":
        return 1.0
    progress = min((step - warmup) / (end - warmup), 1.0)
    return (1 + floor) / 2 + (1 - floor) / 2 * math.cos(math.pi * progress)


def check_accumulation(untrained: UntrainedRun) -> Iterator[Finding]:
    """Two micro-batches of one trial each give the gradient of one batch of two.

    Compared at the parameters of the decoders, behind everything that normalises a loss. Not for models with statistics
    over the batch, for which it does not hold.
    """
    computer, size = untrained.computer, len(untrained.batch)
    if size < 2 or any(True for _ in computer.model.buffers()):
        return
    config = computer.config
    try:
        gradients = []
        for batch_size, parts in ((size, 1), (1, size)):
            training = replace(
                config.training,
                batch_size=batch_size,
                gradient_accumulation_steps=parts,
                loss_scaling="none",  # a balance that is measured stays the same throughout a step
            )
            computer.config = replace(config, training=training)
            gradients.append(_decoder_gradient(untrained, batch_size, parts))
    finally:
        computer.config = config
    whole, accumulated = gradients
    ratio = float(accumulated.norm() / whole.norm())
    cosine = float(torch.nn.functional.cosine_similarity(whole, accumulated, dim=0))
    if cosine < LEAST_COSINE or abs(ratio - 1) > NORM_TOLERANCE:
        evidence = (
            f"{size} micro-batches of one trial give {ratio:.4g} times the gradient of one batch of {size}, at a "
            f"cosine of {cosine:.5f}."
        )
        yield found("accumulation_mismatch", evidence, "preflight")


def _decoder_gradient(untrained: UntrainedRun, batch_size: int, parts: int) -> torch.Tensor:
    """The step's gradient at the decoders, as Lightning adds it up, without dropout."""
    computer = untrained.computer
    untrained.enter()
    computer.model.eval()
    activity = computer.now
    decoders = {BRANCHES[name].component for name in activity.weights} & activity.rates.keys() - {DENOISING.component}
    parameters = [
        p for name, p in computer.named.items() if DecoderModel.component_of(name) in decoders and p.requires_grad
    ]
    for parameter in computer.named.values():
        parameter.requires_grad_(any(parameter is p for p in parameters))  # the encoder is run without a graph
    total = torch.zeros(sum(p.numel() for p in parameters))
    for micro_batch in range(parts):
        rows = slice(micro_batch * batch_size, (micro_batch + 1) * batch_size)
        batch = untrained.batch.map_tensors(lambda x, rows=rows: x[rows].clone())  # type: ignore[misc]
        batch = replace(batch, trial_ids=batch.trial_ids[rows])
        if parts > 1:
            longest, most = int(batch.lengths_B.max()), int(batch.label_lengths_B.max())
            batch = replace(batch, signal=batch.signal[:, :longest], labels_BU=batch.labels_BU[:, :most])
        part = StepPart(0, micro_batch, tuple(range(rows.start, rows.stop)), batch)
        found_gradients = torch.autograd.grad(computer.add(part).loss, parameters, allow_unused=True)
        total += torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(parameters, found_gradients, strict=True)
            ]
        )
    return total
