"""Preflight of the data as the run will see them: signals, splits, sampling, and one pipeline for training and test.

Reads the signals of at most 8 trials, and 64 where recordings are compared.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from sottovoce.core.findings import Finding
from sottovoce.core.signals import SignalKind
from sottovoce.core.text import normalise_text
from sottovoce.core.trial import Trial
from sottovoce.data.checks_features import DEAD_STD, LEAST_BINS_FOR_DEAD, MOST_DEAD
from sottovoce.data.collation import collate
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.features.augmentation import Draws
from sottovoce.features.config import AugmentationConfig
from sottovoce.training.run import batch_plan

MOST_TRIALS: Final = 8
"""Whose signals are read for their values."""
MOST_RECORDINGS: Final = 64
"""That are compared with each other."""
PLAN_STEPS: Final = 200
"""Steps whose trials are counted; row H10 of the catalogue."""
SHARED_SENTENCES: Final = 0.01
"""Share of the validation sentences; more are a leak rather than chance (row H1)."""
LARGEST_IMBALANCE: Final = 5.0
"""Between the expected draws of two trials; row H4."""
MOST_ADDED: Final = 3.0
"""Norm of what augmentation adds, relative to the features' own; the official T15 recipe adds about as much as there is
(a threshold by design, row D7)."""


def check_signals(untrained: UntrainedRun) -> Iterator[Finding]:
    """Values that are not finite, and channels that never change, as the model sees some trials of each session."""
    prepared = untrained.prepared
    chosen = _spread(untrained, MOST_TRIALS)
    bad, dead, bins = [], dict[str, torch.Tensor](), defaultdict[str, int](int)
    for i in chosen:
        trial, read = prepared.trial_set.trials[i], collate(prepared.trial_set, [i])
        batch = prepared.pipeline.evaluate(read.map_tensors(torch.Tensor.clone))
        for where, values in (("as read", read.signal), ("behind the feature pipeline", batch.signal)):
            if not bool(values.isfinite().all()):
                bad.append(f"{trial.trial_id} ({int((~values.isfinite()).sum())} values {where})")
                break
        features_TC = batch.signal[0, : int(batch.lengths_B[0])]
        constant_C = features_TC.std(0, correction=0) < DEAD_STD
        dead[trial.session] = dead.get(trial.session, torch.ones_like(constant_C)) & constant_C
        bins[trial.session] += len(features_TC)
    if bad:
        evidence = f"{len(bad)} of {len(chosen)} trials looked at hold values that are not finite, e.g. {bad[0]}."
        yield found("nonfinite_features", evidence, "preflight")
        return
    shares = {s: float(d.float().mean()) for s, d in dead.items() if bins[s] >= LEAST_BINS_FOR_DEAD}
    worst = max(shares, key=lambda session: shares[session], default=None)
    if worst is not None and shares[worst] > MOST_DEAD:
        count = sum(share > MOST_DEAD for share in shares.values())
        evidence = (
            f"In {count} of {len(shares)} sessions looked at more than {MOST_DEAD:.0%} of the channels never change; "
            f"worst: {worst}, {shares[worst]:.0%}."
        )
        yield found("dead_channels", evidence, "preflight")


def _spread(untrained: UntrainedRun, count: int) -> list[int]:
    """Training trials, evenly over sessions, then evenly over their order."""
    by_session = defaultdict[str, list[int]](list)
    for i in untrained.prepared.train_indices:
        by_session[untrained.prepared.trial_set.trials[i].session].append(i)
    members = list(by_session.values())
    sessions = members[:: max(len(members) // count, 1)][:count]
    each = max(count // len(sessions), 1)
    return [i for trials in sessions for i in trials[:: max(len(trials) // each, 1)][:each]]


def check_splits(untrained: UntrainedRun) -> Iterator[Finding]:
    """Events and sentences of validation that training has too."""
    prepared = untrained.prepared
    train, val = (
        [prepared.trial_set.trials[i] for i in indices] for indices in (prepared.train_indices, prepared.val_indices)
    )
    events = {trial.event for trial in train if trial.event}
    shared_events = [trial for trial in val if trial.event in events]
    if shared_events:
        evidence = (
            f"{len(shared_events)} of {len(val)} validation trials record an event that training has too, e.g. "
            f"{shared_events[0].trial_id}."
        )
        yield found("split_leak", evidence, "preflight", severity="error")
        return
    texts = {normalise_text(trial.text) for trial in train if trial.text}
    with_text = [trial for trial in val if trial.text]
    shared = [trial for trial in with_text if normalise_text(trial.text or "") in texts]
    if shared:
        share, single_words = len(shared) / len(with_text), _isolated_words(train + val)
        evidence = (
            f"{len(shared)} of {len(with_text)} validation {'words' if single_words else 'sentences'} ({share:.1%}) "
            f"occur in training too, e.g. {shared[0].text!r}; rates are of seen and unseen texts together."
        )
        harmless = single_words or share <= SHARED_SENTENCES
        yield found("split_leak", evidence, "preflight", severity="note" if harmless else "warning")


def _isolated_words(trials: Sequence[Trial]) -> bool:
    """Words recorded one by one come again by design."""
    return all(len(normalise_text(trial.text).split()) <= 1 for trial in trials if trial.text)


def check_sampling(untrained: UntrainedRun) -> Iterator[Finding]:
    """How often the sampler draws the trials of each session."""
    prepared, per_batch = untrained.prepared, untrained.prepared.config.data.sessions_per_batch
    sizes = defaultdict[str, int](int)
    for i in prepared.train_indices:
        sizes[prepared.trial_set.trials[i].session] += 1
    largest, smallest = (choose(sizes, key=lambda session: sizes[session]) for choose in (max, min))
    ratio = sizes[largest] / sizes[smallest]
    if per_batch and ratio > LARGEST_IMBALANCE:  # sessions are drawn evenly, whatever their size
        evidence = (
            f"Each batch draws {min(per_batch, len(sizes))} of {len(sizes)} sessions alike: a trial of {smallest} "
            f"({sizes[smallest]} trials) is drawn {ratio:.1f} times as often as one of {largest} ({sizes[largest]})."
        )
        yield found("session_imbalance", evidence, "preflight")


def check_speakers(untrained: UntrainedRun) -> Iterator[Finding]:
    """Recordings: the speakers that the first batches bring, and that their audio is each trial's own."""
    prepared = untrained.prepared
    if prepared.config.preprocessor.signal != SignalKind.WAVEFORM:
        return
    trials, plan = prepared.trial_set.trials, batch_plan(prepared)
    planned = {trials[i].speaker for i in prepared.train_indices if trials[i].speaker}
    steps = min(PLAN_STEPS, prepared.curriculum.total_steps)
    drawn = sorted({int(i) for step in range(steps) for i in plan.step(step)})
    speakers = {trials[i].speaker for i in drawn if trials[i].speaker}
    if len(planned) > 1 and len(speakers) == 1:
        evidence = (
            f"The first {steps} batches hold {len(drawn)} trials of one speaker, {next(iter(speakers))}; the manifest "
            f"has {len(planned)} speakers in training."
        )
        yield found("single_speaker_audio", evidence, "preflight")
        return
    yield from _shared_audio(untrained, drawn)


def _shared_audio(untrained: UntrainedRun, drawn: Sequence[int]) -> Iterator[Finding]:
    """Trials of the same text and different speakers that hold the same samples."""
    trials, by_text = untrained.prepared.trial_set.trials, defaultdict[str, dict[str, int]](dict)
    for i in drawn:
        by_text[normalise_text(trials[i].text or "")].setdefault(trials[i].speaker, i)
    groups = sorted((list(members.values()) for members in by_text.values()), key=len, reverse=True)
    compared, same = 0, list[tuple[int, int]]()
    for members in groups:
        members = members[: MOST_RECORDINGS - compared]
        if len(members) < 2:
            break
        first = dict[bytes, int]()
        for i in members:
            samples = np.ascontiguousarray(untrained.prepared.trial_set.signal(i))
            earlier = first.setdefault(hashlib.blake2b(samples.tobytes()).digest(), i)
            same += [(earlier, i)] if earlier != i else []
        compared += len(members)
    if same:
        a, b = (trials[i] for i in same[0])
        evidence = (
            f"{len(same)} of {compared} recordings compared hold exactly another speaker's audio, e.g. {b.trial_id} "
            f"({b.speaker}) that of {a.trial_id} ({a.speaker})."
        )
        yield found("single_speaker_audio", evidence, "preflight")


def check_pipeline(untrained: UntrainedRun) -> Iterator[Finding]:
    """Training without augmentation and evaluation give the same features, bit for bit, of the same length."""
    pipeline = copy.copy(untrained.prepared.pipeline)
    pipeline.augmentation = AugmentationConfig()
    read = untrained.whole
    draws = Draws(untrained.prepared.config.seed, 0, tuple(range(len(read))), read.signal.device)
    trained = pipeline.train(read.map_tensors(torch.Tensor.clone), draws)
    evaluated = untrained.prepared.pipeline.evaluate(read.map_tensors(torch.Tensor.clone))
    lengths = [batch.lengths_B.tolist() for batch in (trained, evaluated)]
    if lengths[0] != lengths[1] or trained.signal.shape != evaluated.signal.shape:
        difference = f"{lengths[0][0]} bins in training and {lengths[1][0]} in evaluation"
    elif not torch.equal(trained.signal, evaluated.signal):
        gap = float((trained.signal - evaluated.signal).abs().max())
        difference = f"values that differ by up to {gap:.3g}"
    else:
        return
    evidence = f"{read.trial_ids[0]} without augmentation comes out with {difference}."
    yield found("train_eval_mismatch", evidence, "preflight")


def check_augmentation(untrained: UntrainedRun) -> Iterator[Finding]:
    """What augmentation adds to the features does not drown them."""
    prepared, read = untrained.prepared, untrained.whole
    binned = prepared.config.preprocessor.signal == SignalKind.BINNED
    if prepared.pipeline.augmentation == AugmentationConfig() or not binned:
        return
    evaluated = prepared.pipeline.evaluate(read.map_tensors(torch.Tensor.clone))
    uncut = copy.copy(prepared.pipeline)
    uncut.augmentation = replace(prepared.pipeline.augmentation, random_cut_bins=0)
    draws = Draws(prepared.config.seed, 0, tuple(range(len(read))), read.signal.device)
    augmented = uncut.train(read.map_tensors(torch.Tensor.clone), draws)
    if augmented.signal.shape != evaluated.signal.shape:
        return  # `check_pipeline` says so
    added, usual = (augmented.signal - evaluated.signal).norm(), evaluated.signal.norm()
    if usual > 0 and added > MOST_ADDED * usual:
        evidence = f"What augmentation adds to {len(read)} trials is {float(added / usual):.1f} times their features."
        yield found("augmentation_strength", evidence, "preflight", support=0.8)
