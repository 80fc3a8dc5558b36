"""Each check with its fault put in: exactly that code comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sottovoce.core.findings import Finding
from sottovoce.core.trial import Trial
from sottovoce.diagnosis.preflight import data as preflight_data
from sottovoce.diagnosis.preflight import exit as preflight_exit
from sottovoce.diagnosis.preflight import losses as preflight_losses
from sottovoce.diagnosis.preflight import optimizer as preflight_optimizer
from sottovoce.diagnosis.preflight import targets as preflight_targets
from sottovoce.diagnosis.preflight.preflight import check_steps, check_weights, preflight
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import DecoderModel
from sottovoce.models.transducer import TransducerHead
from sottovoce.training import step as training_step
from sottovoce.training.branches import BRANCHES, branch
from sottovoce.training.composition import compose_config
from sottovoce.training.optimizer import build_optimizer
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.stages import Activity, Curriculum
from sottovoce.training.step import StepComputer
from tests.data.builders import write_wav
from tests.training.small_runs import overrides
from tests.training.spoilt import exact_loss, spoil_loss

Prepare = Callable[..., Prepared]


@pytest.fixture
def demo(tiny_t15: Path, tmp_path: Path) -> Prepare:
    return lambda *more: prepare(compose_config(overrides(tiny_t15, tmp_path, "run", *more)))


@pytest.fixture
def curriculum(tiny_t15: Path) -> Prepare:
    small = (
        "preprocessor.num_channels=16",
        "model.stem.width=16",
        "model.ssm.width=16",
        "model.ssm.head_size=8",
        "training.num_threads=1",
    )
    return lambda *more: prepare(compose_config(["recipe=mode_ssm_small", f"data.data_root={tiny_t15}", *small, *more]))


def codes(findings: Sequence[Finding]) -> list[str]:
    return [finding.code for finding in findings if finding.severity != "note"]


def only(check: Callable[[UntrainedRun], Any], prepared: Prepared) -> Finding:
    """The one finding of one check."""
    untrained = UntrainedRun.of(prepared)
    with untrained.untouched():
        (finding,) = check(untrained)
    assert isinstance(finding, Finding)
    return finding


def relabelled(prepared: Prepared, labels: Callable[[Trial], tuple[int, ...]]) -> Prepared:
    trials = prepared.trial_set
    trials.trials = tuple(replace(t, labels=labels(t)) if t.split == "train" else t for t in trials.trials)
    return prepared


# Targets and lengths.


def test_infeasible_targets(demo: Prepare) -> None:
    prepared = relabelled(demo(), lambda t: (1,) * t.num_steps)
    finding = only(preflight_targets.check_feasibility, prepared)
    assert finding.code == "ctc_infeasible" and finding.severity == "error"
    assert finding.evidence.startswith(f"{len(prepared.train_indices)} of ")
    assert codes(preflight(prepared)) == ["ctc_infeasible"]


def test_padding_among_the_labels(demo: Prepare) -> None:
    prepared = relabelled(demo(), lambda t: (*(t.labels or ()), 0, 0, 0))
    assert codes(preflight(prepared)) == ["label_padding"]
    assert "last 3 are blanks" in preflight(prepared)[0].evidence


def test_labels_of_one_length_whatever_the_text(demo: Prepare) -> None:
    prepared = demo()
    indices = {prepared.trial_set.trials[i].trial_id for i in (*prepared.train_indices, *prepared.val_indices)}
    trials = prepared.trial_set
    trials.trials = tuple(replace(t, labels=(1, 2) * 5) if t.trial_id in indices else t for t in trials.trials)
    finding = only(preflight_targets.check_labels, prepared)
    assert (finding.code, finding.severity) == ("label_padding", "warning")


def test_a_blank_inside_a_target(demo: Prepare) -> None:
    prepared = relabelled(demo(), lambda t: (3, 0, *(t.labels or ())))
    assert codes(preflight(prepared)) == ["blank_in_target"]


def test_a_label_that_is_no_symbol(demo: Prepare) -> None:
    prepared = relabelled(demo(), lambda t: (41, *(t.labels or ())[1:]))
    assert codes(preflight(prepared)) == ["label_out_of_range"]


@pytest.mark.parametrize("offset", [-1, 1])
def test_a_length_formula_that_is_off(demo: Prepare, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    prepared, original = demo(), DecoderModel.output_lengths
    monkeypatch.setattr(DecoderModel, "output_lengths", lambda self, n: original(self, n) + offset)
    finding = only(preflight_targets.check_frame_formula, prepared)
    assert finding.code == "frame_length_off_by_one"
    assert f"{offset:+d} frame at all" in finding.evidence
    assert codes(preflight(prepared)) == ["frame_length_off_by_one"]


def test_transducer_rows(curriculum: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, original = curriculum(), TransducerHead.predict
    monkeypatch.setattr(TransducerHead, "predict", lambda self, *a: original(self, *a)[:, 1:])
    assert only(preflight_targets.check_transducer_lengths, prepared).code == "transducer_lengths"
    assert codes(preflight(prepared)) == ["transducer_lengths"]


# The optimiser.


def test_an_optimiser_of_the_first_stage(curriculum: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(model: nn.Module, *arguments: Any, **named: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(model, *arguments, **named)
        optimizer.param_groups = [g for g in optimizer.param_groups if g["component"] != "rnnt_decoder"]
        return optimizer

    monkeypatch.setattr(training_step, "build_optimizer", stale)
    findings = preflight(curriculum())
    assert codes(findings) == ["stale_optimizer"]
    assert "transducer" in findings[0].evidence and "joint" in findings[0].evidence


def test_groups_by_substring(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sottovoce.training.optimizer.group_of", lambda name: "session" if "weight" in name else "other"
    )
    finding = only(preflight_optimizer.check_ownership, demo())
    assert finding.code == "ambiguous_parameter_groups"


def test_biases_that_decay(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def decaying(*arguments: Any, **named: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(*arguments, **named)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.1
        return optimizer

    monkeypatch.setattr(training_step, "build_optimizer", decaying)
    assert only(preflight_optimizer.check_ownership, demo()).code == "weight_decay_on_biases"


def test_parameters_that_no_loss_uses(demo: Prepare) -> None:
    prepared = demo("model.transducer={}")
    findings = preflight(prepared)
    assert codes(findings) == ["unread_config_key", "unused_parameters"]
    assert "transducer.embedding.weight" in findings[1].evidence


def test_a_flat_schedule(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "learning_rate_factor", lambda *_: 1.0)
    findings = preflight(demo())
    assert codes(findings) == ["schedule_not_stepped"]
    assert "the same at every step" in findings[0].evidence


def test_a_held_head_that_still_pulls(curriculum: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_everything(self: Curriculum, position: Any) -> Activity:
        plain = original(self, position)
        return Activity({**plain.weights, "rnnt": 1.0}, plain.rates)

    original = Curriculum.activity
    monkeypatch.setattr(Curriculum, "activity", with_everything)
    findings = preflight(curriculum())
    assert codes(findings) == ["frozen_branch_leaks"]
    assert "rnnt has no weight" in findings[0].evidence


def test_accumulation_by_means_of_micro_batches(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepComputer, "global_batch", property(lambda self: self.config.training.batch_size))
    findings = preflight(demo())
    assert codes(findings) == ["accumulation_mismatch"]
    assert "give 2 times" in findings[0].evidence


# The losses.


def test_losses_in_other_units(curriculum: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    original = exact_loss("ctc_loss")
    spoil_loss(monkeypatch, "ctc_loss", lambda *a: original(*a) / a[3])
    assert only(preflight_losses.check_reductions, curriculum()).code == "reduction_mismatch"


def test_losses_of_which_one_is_divided(curriculum: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BRANCHES, "rnnt", replace(BRANCHES["rnnt"], unit="trial"))
    finding = only(preflight_losses.check_reductions, curriculum())
    assert finding.code == "reduction_mismatch" and "a factor of 0.05" in finding.evidence


def test_a_weight_that_depends_on_the_partner(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        branch, "normalised_sum", lambda nats, tokens, how, size: nats.sum() / tokens.float().mean() / size
    )
    assert only(preflight_losses.check_batch_dependence, demo()).code == "batch_dependent_scaling"


def test_a_loss_that_drowns_the_other(curriculum: Prepare) -> None:
    prepared = curriculum("training.stages.1.loss_weights.rnnt=1000", "training.stages.2.loss_weights.rnnt=1000")
    findings = preflight(prepared)
    assert codes(findings) == ["loss_term_dominates"]


def test_a_loss_that_was_never_computed(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepComputer, "share", lambda self, name, nats, *_: nats.sum() * 0)
    assert only(check_steps, demo()).code == "zero_loss"


def test_minus_infinity_in_the_padding(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    original = exact_loss("ctc_loss")

    def padded(logits: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, *more: Any) -> torch.Tensor:
        padding = torch.arange(logits.shape[1]) >= frames[:, None]
        lowest = torch.zeros(padding.shape).masked_fill(padding, -math.inf)
        leak = (logits + lowest[:, :, None]).logsumexp(-1).masked_fill(padding, 0.0)
        return original(logits, labels, frames, *more) + 0 * leak.sum(1)

    spoil_loss(monkeypatch, "ctc_loss", padded)
    findings = preflight(demo())
    assert codes(findings) == ["infinite_padding"]


def test_weights_that_are_lost(demo: Prepare) -> None:
    prepared = demo()
    with torch.no_grad():
        prepared.model.head.bias[3] = math.nan
    assert only(check_weights, prepared).code == "poisoned_weights"


# The data.


def test_values_that_are_not_finite(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = demo()
    first = prepared.train_indices[0]
    signal = np.array(prepared.trial_set.signal(first))
    signal[3, 2] = np.nan
    original = prepared.trial_set.signal
    monkeypatch.setattr(prepared.trial_set, "signal", lambda i: signal if i == first else original(i))
    assert only(preflight_data.check_signals, prepared).code == "nonfinite_features"


def test_channels_that_never_change(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = demo()
    original = prepared.trial_set.signal
    monkeypatch.setattr(prepared.trial_set, "signal", lambda i: original(i) * (np.arange(16) > 3))
    assert codes(preflight(prepared)) == ["dead_channels"]


def test_sentences_of_both_splits(demo: Prepare) -> None:
    prepared = demo()
    trials = list(prepared.trial_set.trials)
    text = trials[prepared.train_indices[0]].text
    trials[prepared.val_indices[0]] = replace(trials[prepared.val_indices[0]], text=text)
    prepared.trial_set.trials = tuple(trials)
    finding = only(preflight_data.check_splits, prepared)
    assert (finding.code, finding.severity) == ("split_leak", "warning")


def test_sessions_of_unequal_size(demo: Prepare) -> None:
    prepared = demo("data.sessions_per_batch=2")
    trials = prepared.trial_set.trials
    sessions = sorted({trials[i].session for i in prepared.train_indices})
    few = [i for i in prepared.train_indices if trials[i].session == sessions[1]][:2]
    many = [i for i in prepared.train_indices if trials[i].session == sessions[0]]
    assert only(preflight_data.check_sampling, replace(prepared, train_indices=many + few)).code == "session_imbalance"


def test_a_pipeline_that_evaluates_otherwise(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    original = FeaturePipeline.evaluate
    monkeypatch.setattr(FeaturePipeline, "evaluate", lambda self, b: replace(b, signal=original(self, b).signal * 1.01))
    assert only(preflight_data.check_pipeline, demo()).code == "train_eval_mismatch"


@pytest.fixture
def recordings(tmp_path: Path) -> Prepare:
    rows = ["path,speaker,text"]
    generator = np.random.default_rng(0)
    for speaker in ("ann", "ben", "cas"):
        for word in ("one", "two", "six"):
            for take in range(6):
                path = tmp_path / "data" / f"{speaker}_{word}_{take}.wav"
                path.parent.mkdir(exist_ok=True)
                write_wav(path, generator.normal(0, 0.1, 5000).astype(np.float32), 8000)
                rows.append(f"{path.name},{speaker},{word}")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(rows) + "\n")
    sizes = ["model.conv.width=16", "model.conv.num_blocks=1", "training.num_threads=1", "training.batch_size=8"]
    recipe = ["recipe=recordings", f"data.data_root={tmp_path / 'data'}", *sizes]
    return lambda *more: prepare(compose_config([*recipe, *more]))


def test_healthy_recordings(recordings: Prepare) -> None:
    assert codes(preflight(recordings())) == []


def test_the_first_speakers_audio_for_all(recordings: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = recordings()
    trials, original = prepared.trial_set.trials, prepared.trial_set.signal
    first = {trial.text: i for i, trial in reversed(list(enumerate(trials)))}
    monkeypatch.setattr(prepared.trial_set, "signal", lambda i: original(first[trials[i].text]))
    assert only(preflight_data.check_speakers, prepared).code == "single_speaker_audio"


# The end of a run.


def test_a_checkpoint_that_cannot_be_loaded(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise TypeError("save() missing 1 required positional argument")

    monkeypatch.setattr(preflight_exit, "write_checkpoint", fails)
    findings = preflight(demo())
    assert codes(findings) == ["late_crash"]
    assert "Saving a checkpoint fails: TypeError: save() missing" in findings[0].evidence


def test_scoring_that_fails(demo: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    scores: dict[str, float] = {}
    monkeypatch.setattr(preflight_exit, "score", lambda *_, **__: scores["per"])
    assert "Decoding and scoring two trials fails: KeyError" in only(preflight_exit.check_exit, demo()).evidence
