"""Preflight of teachers: same symbols, same features, same frames, a divergence that teaches all of it, no leak.

Rows H5, H6 and H9 of the catalogue; what the teachers say of trials is asked in `teachers_say.py`.
Legend: B trials, S frames, V symbols.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Final

import torch

from sottovoce.core.findings import Finding, Severity
from sottovoce.data.loading import open_data
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.first_found import first_found
from sottovoce.diagnosis.preflight.teachers_say import what_they_say
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.evaluation.opening import data_config
from sottovoce.runs.trained_on import TrainedOn, fingerprint
from sottovoce.training.branches import DISTILLATION
from sottovoce.training.teachers import Teachers

LENGTHS: Final = (*range(1, 200), 500, 1000, 5000)
"""Bins for which the frames of teacher and student are compared, by their formulas."""
NO_GRADIENT: Final = 1e-4
"""Share of the blank's gradient in the largest of the others'; measured without it: 1e-7
(docs/failures/blank_without_gradient.md)."""
MADE_UP: Final = (1.0, 0.1, 1.0, 0.1, 1.0, 0.0)
"""Weights of the frames of a made-up lesson."""


def check_teachers(untrained: UntrainedRun) -> Iterator[Finding]:
    """What can be known of the teachers before they teach: leaks, then the first thing that they disagree in."""
    teachers = untrained.computer.teachers
    if teachers is None:
        return
    yield from _leaks(untrained, teachers)
    yield from first_found(
        _finite(teachers),
        _same_symbols(untrained, teachers),
        _same_features(untrained, teachers),
        _same_frames(untrained, teachers),
        _somebody_is_taught(untrained, teachers),
        _divergence_is_exact(untrained),
        what_they_say(untrained, teachers),
    )


def _mismatch(evidence: str) -> Finding:
    return found("teacher_audio_mismatch", evidence, "preflight")


def _leaks(untrained: UntrainedRun, teachers: Teachers) -> Iterator[Finding]:
    """What the run is judged by, held-out speakers, test and validation trials, in the training of any teacher."""
    prepared = untrained.prepared
    config, trials = prepared.config, prepared.trial_set.trials
    test = open_data(config.data, config.preprocessor, ("test",), config.seed).trials
    judged_by = {"test": test, "validation": [trials[i] for i in prepared.val_indices]}
    severe, mild = list[str](), list[str]()
    for teacher in teachers.teachers:
        trained_on = teacher.trained_on or TrainedOn(frozenset(), frozenset())
        if teacher.trained_on is None:
            mild.append(f"{teacher.name} does not say what it was trained on (trained_on.json is missing).")
        if speakers := sorted(trained_on.speakers.intersection(config.data.held_out_speakers)):
            severe.append(f"{teacher.name} was trained on {', '.join(speakers)}, held out here.")
            continue
        for split, its in judged_by.items():
            known = [trial.trial_id for trial in its if fingerprint(trial) in trained_on.fingerprints]
            if known:
                evidence = (
                    f"{teacher.name} was trained on {len(known)} of the {len(its)} {split} trials, e.g. {known[0]}."
                )
                (severe if split == "test" else mild).append(evidence)
    if severe or mild:
        severity: Severity = "error" if severe else "warning"
        yield found("teacher_heard_test_speaker", " ".join(severe or mild), "preflight", severity=severity)


def _finite(teachers: Teachers) -> Iterator[Finding]:
    for teacher in teachers.teachers:
        bad = [n for n, t in teacher.run.model.state_dict().items() if not bool(t.isfinite().all())]
        if bad:
            yield found(
                "poisoned_weights",
                f"{len(bad)} tensors of the teacher {teacher.name} are not finite, e.g. {bad[0]}.",
                "preflight",
                fix="leave this teacher out of training.distillation.teachers, or put back an older copy of its "
                "checkpoints",
            )
            return


def _same_symbols(untrained: UntrainedRun, teachers: Teachers) -> Iterator[Finding]:
    """Table, its blank, and the number of columns."""
    own = untrained.loop.validation.table
    columns = untrained.computer.model.head.out_features
    for teacher in teachers.teachers:
        table, its_columns = teacher.run.table, teacher.run.model.head.out_features
        if table.symbols != own.symbols or table.blank != own.blank or its_columns != columns:
            yield _mismatch(
                f"{teacher.name} writes {its_columns} {table.name} with the blank {table.blank}, this run {columns} "
                f"{own.name} with the blank {untrained.computer.blank}: column i of the one is not column i of the "
                "other."
            )
            return


def _same_features(untrained: UntrainedRun, teachers: Teachers) -> Iterator[Finding]:
    """What the student's features are made with, and which columns of the file they come from."""
    config = untrained.prepared.config
    for teacher in teachers.teachers:
        own, other = config.preprocessor, teacher.run.preprocessor
        different = [f"preprocessor.{f.name}" for f in fields(own) if getattr(own, f.name) != getattr(other, f.name)]
        data = data_config(teacher.run)
        for name in ("channel_stride", "audio_channel"):
            if getattr(config.data, name) != getattr(data, name):
                different.append(f"data.{name}")
        if different:
            yield _mismatch(
                f"{teacher.name} was trained on other features than this run makes: {', '.join(different)} differ"
                f"{'s' * (len(different) == 1)}."
            )
            return


def _same_frames(untrained: UntrainedRun, teachers: Teachers) -> Iterator[Finding]:
    """The formula for many lengths, then the tensors that come out of the run's first batch."""
    model = untrained.computer.model
    for teacher in teachers.teachers:
        its_model = teacher.run.model
        for length in LENGTHS:
            own, its = max(model.output_lengths(length), 0), max(its_model.output_lengths(length), 0)
            if own != its:
                yield _mismatch(
                    f"Of {length} bins {teacher.name} makes {its} frame{'s' * (its != 1)} and this run {own} "
                    f"({its_model.bins_per_frame} bins a frame there, {model.bins_per_frame} here)."
                )
                return
    features = untrained.computer.pipeline.evaluate(untrained.part(untrained.whole).batch)
    model.eval()
    with torch.no_grad():
        logits_BSV, frames_B = model(features.signal, features.lengths_B, features.session_B)
        for teacher in teachers.teachers:
            its_BSV, its_frames_B = teacher.logits(features, torch.zeros_like(features.session_B))
            if its_BSV.shape != logits_BSV.shape or not torch.equal(its_frames_B, frames_B):
                yield _mismatch(
                    f"Of the same batch {teacher.name} makes logits {list(its_BSV.shape)} of {its_frames_B.tolist()} "
                    f"frames, this run {list(logits_BSV.shape)} of {frames_B.tolist()}."
                )
                return


def _somebody_is_taught(untrained: UntrainedRun, teachers: Teachers) -> Iterator[Finding]:
    """Training trials that no teacher may teach: their speakers are known to all, or their sessions to none."""
    prepared = untrained.prepared
    trials = [prepared.trial_set.trials[i] for i in prepared.train_indices]
    untaught = [trial for trial in trials if not teachers.of_trial(trial.trial_id)]
    if not untaught:
        return
    may = "that has an adapter for the session"
    if teachers.config.out_of_fold:
        may += " and has not heard the speaker (training.distillation.out_of_fold)"
    severity: Severity = "error" if len(untaught) == len(trials) else "note"
    evidence = (
        f"{len(untaught)} of {len(trials)} training trials have no teacher {may}, e.g. {untaught[0].trial_id} of "
        f"{untaught[0].session}."
    )
    yield found("untaught_trials", evidence, "preflight", severity=severity)


def _divergence_is_exact(untrained: UntrainedRun) -> Iterator[Finding]:
    """The divergence moves the blank's logit, and is what its formula says at this run's temperature."""
    blank, columns = untrained.computer.blank, untrained.computer.model.head.out_features
    temperature = untrained.prepared.config.training.distillation.temperature
    generator = torch.Generator().manual_seed(0)
    logits_1SV, teacher_1SV = (torch.randn(1, len(MADE_UP), columns, generator=generator) for _ in range(2))
    logits_1SV.requires_grad_()
    log_q_1SV, weights_1S = teacher_1SV.log_softmax(-1), torch.tensor([MADE_UP])
    function = untrained.computer.branches[DISTILLATION.name].functions["distillation_loss"]
    nats = function(logits_1SV, log_q_1SV, weights_1S, temperature).sum()
    (gradient_1SV,) = torch.autograd.grad(nats, logits_1SV)
    blanks, largest = float(gradient_1SV[:, :, blank].abs().max()), float(gradient_1SV.abs().max())
    if blanks <= NO_GRADIENT * largest:
        yield found(
            "blank_without_gradient",
            f"The divergence from the teachers sends the blank's logit a gradient of at most "
            f"{blanks:.1e}, the others one of up to {largest:.2g}.",
            "preflight",
        )
        return
    exact = _divergence(logits_1SV[0].detach(), log_q_1SV[0], temperature)
    if abs(nats.item() / exact - 1) > 1e-3:
        yield found(
            "reduction_mismatch",
            f"The divergence of {len(MADE_UP)} made-up frames is {nats.item():.4g}, {exact:.4g} in nats of the trial.",
            "preflight",
        )


def _divergence(logits_SV: torch.Tensor, log_q_SV: torch.Tensor, temperature: float) -> float:
    """τ² Σ_s w_s Σ_v q (ln q - ln p), in float64."""
    log_p_SV, log_q_SV = (logits_SV.double() / temperature).log_softmax(-1), log_q_SV.double()
    of_frame_S = (log_q_SV.exp() * (log_q_SV - log_p_SV)).sum(-1)
    return temperature**2 * float((torch.tensor(MADE_UP, dtype=torch.float64) * of_frame_S).sum())
