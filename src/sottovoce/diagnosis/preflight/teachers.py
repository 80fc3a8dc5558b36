"""Preflight of teachers: same symbols, same features, same frames, the right recording, and not what is held out.

Rows H5 to H9 of the catalogue. Legend: K teachers, B trials, S frames, V symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Final

import torch

from sottovoce.core.findings import Finding, Severity
from sottovoce.core.trial import Batch, Trial
from sottovoce.data.collation import collate
from sottovoce.data.loading import open_data
from sottovoce.decoding.greedy import greedy_ctc
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.bindings import bound, first_found
from sottovoce.diagnosis.preflight.subject import Subject
from sottovoce.evaluation.heard import fingerprint
from sottovoce.losses import distillation
from sottovoce.losses.distillation import teachers_opinion
from sottovoce.metrics import error_counts, percent
from sottovoce.training import terms as training_terms
from sottovoce.training.teachers import Teachers

NUM_TRIALS: Final = 12
"""Trials that the teachers are heard on: validation's shortest with labels."""
LENGTHS: Final = (*range(1, 200), 500, 1000, 5000)
"""Bins for which the frames of teacher and student are compared, by their formulas."""
WORSE: Final = 0.3
"""A teacher is as good here as its own validation said, give or take this much PER."""
FITS: Final = 0.7
"""Error rate up to which a hypothesis may be of a trial; what is said at random is seldom below."""
FEWER_ERRORS: Final = 3
"""By so many errors a hypothesis must fit another trial better; a word of few labels is soon like another."""
BLURRED: Final = 0.1
"""The common opinion may be worse than the mean teacher by this much PER."""
NO_GRADIENT: Final = 1e-4
"""Share of the blank's gradient in the largest of the others'; measured without it: 1e-7 (stability.md H6)."""


def check_teachers(subject: Subject) -> Iterator[Finding]:
    """Everything that can be known of the teachers before they teach; the first disagreement, then what it allows."""
    teachers = subject.module.teachers
    if teachers is None:
        return
    yield from _leaks(subject, teachers)
    yield from first_found(
        _finite(teachers),
        _same_symbols(subject, teachers),
        _same_features(subject, teachers),
        _same_frames(subject, teachers),
        _blank_is_taught(subject),
        _what_they_say(subject, teachers),
    )


def _mismatch(evidence: str) -> Finding:
    return found("teacher_audio_mismatch", evidence, "preflight")


def _finite(teachers: Teachers) -> Iterator[Finding]:
    for teacher in teachers.teachers:
        bad = [n for n, t in teacher.run.model.state_dict().items() if not bool(t.isfinite().all())]
        if bad:
            evidence = f"{len(bad)} tensors of the teacher {teacher.name} are not finite, e.g. {bad[0]}."
            yield found("poisoned_weights", evidence, "preflight")
            return


def _same_symbols(subject: Subject, teachers: Teachers) -> Iterator[Finding]:
    """Table, its blank, and the number of columns."""
    own = subject.loop.validation.text_decoder.table
    columns = subject.module.model.head.out_features
    for teacher in teachers.teachers:
        table, its_columns = teacher.run.table, teacher.run.model.head.out_features
        if table.symbols != own.symbols or table.blank != own.blank or its_columns != columns:
            yield _mismatch(
                f"{teacher.name} writes {its_columns} {table.name} with the blank {table.blank}, this run {columns} "
                f"{own.name} with the blank {subject.module.blank}: column i of the one is not column i of the other."
            )
            return


def _same_features(subject: Subject, teachers: Teachers) -> Iterator[Finding]:
    """What the student's features are made with, and which columns of the file they come from."""
    config = subject.prepared.config
    for teacher in teachers.teachers:
        own, other = config.preprocessor, teacher.run.preprocessor
        different = [f"preprocessor.{f.name}" for f in fields(own) if getattr(own, f.name) != getattr(other, f.name)]
        for name in ("channel_stride", "audio_channel"):
            if getattr(config.data, name) != getattr(teacher.run.data, name):
                different.append(f"data.{name}")
        if different:
            yield _mismatch(
                f"{teacher.name} was trained on other features than this run makes: {', '.join(different)} differ"
                f"{'s' * (len(different) == 1)}."
            )
            return


def _same_frames(subject: Subject, teachers: Teachers) -> Iterator[Finding]:
    """The formula for many lengths, then the tensors that come out of the subject's batch."""
    model = subject.module.model
    for teacher in teachers.teachers:
        for length in LENGTHS:
            own, its = model.output_lengths(length), teacher.run.model.output_lengths(length)
            if max(own, 0) != max(its, 0):
                yield _mismatch(
                    f"{length} bins give {teacher.name} {its} frames and this run {own} "
                    f"({teacher.run.model.bins_per_frame} bins a frame there, {model.bins_per_frame} here)."
                )
                return
    features = subject.module.pipeline.evaluate(subject.part(subject.whole).batch)
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


def _blank_is_taught(subject: Subject) -> Iterator[Finding]:
    """The divergence moves the blank's logit, and is what its formula says."""
    blank, columns = subject.module.blank, subject.module.model.head.out_features
    generator = torch.Generator().manual_seed(0)
    logits_1SV, teacher_1SV = (torch.randn(1, 6, columns, generator=generator) for _ in range(2))
    logits_1SV.requires_grad_()
    log_q_1SV, weights_1S = teacher_1SV.log_softmax(-1), torch.ones(1, 6)
    for name, function in bound("distillation_loss", training_terms, distillation):
        nats = function(logits_1SV, log_q_1SV, weights_1S, 1.0).sum()
        (gradient_1SV,) = torch.autograd.grad(nats, logits_1SV)
        blanks, largest = float(gradient_1SV[:, :, blank].abs().max()), float(gradient_1SV.abs().max())
        if blanks <= NO_GRADIENT * largest:
            yield found(
                "blank_without_gradient",
                f"The divergence from the teachers ({name}) sends the blank's logit a gradient of at most "
                f"{blanks:.1e}, the others one of up to {largest:.2g}.",
                "preflight",
            )
            return
        exact = _divergence(logits_1SV[0].detach(), log_q_1SV[0])
        if abs(nats.item() / exact - 1) > 1e-3:
            yield found(
                "reduction_mismatch",
                f"The divergence of 6 made-up frames is {nats.item():.4g} ({name}), {exact:.4g} in nats of the trial.",
                "preflight",
            )
            return


def _divergence(logits_SV: torch.Tensor, log_q_SV: torch.Tensor) -> float:
    """Σ_s Σ_v q (ln q - ln p), in float64."""
    log_p_SV, log_q_SV = logits_SV.double().log_softmax(-1), log_q_SV.double()
    return float((log_q_SV.exp() * (log_q_SV - log_p_SV)).sum())


def _leaks(subject: Subject, teachers: Teachers) -> Iterator[Finding]:
    """Held-out speakers, trials of the test split and of the validation that chooses, in a teacher's training."""
    prepared = subject.prepared
    config, trials = prepared.config, prepared.trial_set.trials
    test = open_data(config.data, config.preprocessor, ("test",), config.seed).trials
    chosen_by = [trials[i] for i in prepared.val_indices]
    for teacher in teachers.teachers:
        heard = teacher.heard
        if heard is None:
            continue
        speakers = sorted(heard.speakers.intersection(config.data.held_out_speakers))
        if speakers:
            yield found(
                "teacher_heard_test_speaker",
                f"{teacher.name} was trained on {', '.join(speakers)}, held out here (data.held_out_speakers).",
                "preflight",
            )
            return
        splits: tuple[tuple[str, Sequence[Trial], Severity], ...] = (
            ("test", test, "error"),
            ("validation", chosen_by, "warning"),
        )
        for name, split, severity in splits:
            known = [trial for trial in split if fingerprint(trial) in heard.fingerprints]
            if known:
                yield found(
                    "teacher_heard_test_speaker",
                    f"{teacher.name} was trained on {len(known)} of the {len(split)} {name} trials of this run, e.g. "
                    f"{known[0].trial_id}.",
                    "preflight",
                    severity=severity,
                )
                return


def _what_they_say(subject: Subject, teachers: Teachers) -> Iterator[Finding]:
    """Each teacher on labelled trials, as it will teach them, against their labels and against each other."""
    batch, trials = _batch(subject)
    if not trials:
        return
    blank = subject.module.blank
    logits_KBSV, frames_B, weights_KB = teachers.heard_by_each(batch)
    labels = [list(trial.labels or ()) for trial in trials]
    errors = []
    for teacher, logits_BSV, weights_B in zip(teachers.teachers, logits_KBSV, weights_KB, strict=True):
        taught = [i for i, weight in enumerate(weights_B.tolist()) if weight > 0]
        if not taught:
            continue
        said = greedy_ctc(logits_BSV.log_softmax(-1), frames_B, blank)
        own = _error_rate([said[i] for i in taught], [labels[i] for i in taught])
        errors.append(own)
        fits_others = _fits_others([said[i] for i in taught], [labels[i] for i in taught])
        if 2 * fits_others > len(taught):
            yield _mismatch(
                f"What {teacher.name} says of {fits_others} of {len(taught)} trials fits the labels of another trial "
                "better than their own: it does not hear the recordings that the student hears."
            )
            return
        known = teacher.run.validation.get("val/per")
        if known is not None and own > known + WORSE:
            yield _mismatch(
                f"{teacher.name} has a PER of {percent(own)} on {len(taught)} trials of this run, {percent(known)} in "
                "its own validation: it does not hear, or does not write, the same."
            )
            return
    if len(errors) > 1:
        yield from _blurred(teachers, logits_KBSV, frames_B, weights_KB, labels, errors, blank)


def _batch(subject: Subject) -> tuple[Batch, list[Trial]]:
    """Features of some labelled trials without augmentation: validation's, or training's where there are none."""
    prepared = subject.prepared
    trials = prepared.trial_set.trials
    places = [i for i in prepared.val_indices if trials[i].labels] or prepared.train_indices
    chosen = sorted((i for i in places if trials[i].labels), key=lambda i: (trials[i].num_steps, i))[:NUM_TRIALS]
    if not chosen:
        return subject.batch, []
    batch = subject.module.pipeline.evaluate(collate(prepared.trial_set, chosen))
    return batch, [trials[i] for i in chosen]


def _error_rate(said: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> float:
    """Errors over labels, of all trials together."""
    errors = sum(sum(error_counts(want, got)[:3]) for want, got in zip(labels, said, strict=True))
    return errors / max(1, sum(map(len, labels)))


def _fits_others(said: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> int:
    """How many hypotheses fit the labels of another trial, and clearly better than those of their own."""
    count = 0
    for i, symbols in enumerate(said):
        errors = [sum(error_counts(wanted, symbols)[:3]) for wanted in labels]
        best = min(range(len(labels)), key=lambda j: errors[j] / len(labels[j]))
        count += errors[best] < FITS * len(labels[best]) and errors[best] <= errors[i] - FEWER_ERRORS
    return count


def _blurred(
    teachers: Teachers,
    logits_KBSV: torch.Tensor,
    frames_B: torch.Tensor,
    weights_KB: torch.Tensor,
    labels: list[list[int]],
    errors: Sequence[float],
    blank: int,
) -> Iterator[Finding]:
    """Row H8: their common opinion, decoded, is worse than the mean teacher."""
    log_q_BSV = teachers_opinion(logits_KBSV, weights_KB, 1.0, teachers.config.aggregation)
    taught = [i for i, weight in enumerate(weights_KB.sum(0).tolist()) if weight > 0]
    said = greedy_ctc(log_q_BSV, frames_B, blank)
    together, mean = _error_rate([said[i] for i in taught], [labels[i] for i in taught]), sum(errors) / len(errors)
    if together > mean + BLURRED:
        kept = sum(float((log_q_BSV[i, : frames_B[i], blank].exp() < 0.95).sum()) for i in taught)
        valid = sum(int(frames_B[i]) for i in taught)
        yield found(
            "teacher_spikes_misaligned",
            f"On {len(taught)} trials the {len(errors)} teachers have a PER of {percent(mean)} on average, their "
            f"common opinion ({teachers.config.aggregation}) {percent(together)}; it is not blank in "
            f"{kept / valid:.0%} of the frames.",
            "preflight",
        )
