"""Preflight of teachers: silent for healthy ones, and each disagreement by its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from sottovoce.core.findings import Finding
from sottovoce.core.trial import Batch
from sottovoce.data.loading import open_data
from sottovoce.diagnosis.preflight.preflight import preflight
from sottovoce.diagnosis.preflight.teachers import check_teachers
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.runs.trained_on import FILE_NAME, TrainedOn, fingerprint, write_trained_on
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import start
from sottovoce.training.teachers import Teacher, Teachers
from tests.faults.voices import write_recordings
from tests.training.small_runs import overrides
from tests.training.spoilt import exact_loss, spoil_loss

pytestmark = pytest.mark.slow

CERTAIN = 20.0


@pytest.fixture(scope="module")
def teacher(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start(prepare(compose_config(overrides(tiny_t15, tmp_path_factory.mktemp("runs"), "teacher"))))


@pytest.fixture
def student(tiny_t15: Path, teacher: Path) -> Callable[..., Prepared]:
    """A run that is taught by copies of one teacher, or by others that are named."""

    def made(*more: str, teachers: tuple[Path, ...] = ()) -> Prepared:
        named = ",".join(map(str, teachers or (teacher,)))
        settings = (f"training.distillation.teachers=[{named}]", *more)
        return prepare(compose_config(overrides(tiny_t15, Path("runs"), "student", *settings)))

    return made


def findings(prepared: Prepared) -> list[Finding]:
    return list(check_teachers(UntrainedRun.of(prepared)))


def says(patch: pytest.MonkeyPatch, *whose: int, late: int = 0) -> None:
    """The k-th teacher says, with certainty, the labels of the trial `whose[k]` places on, k·`late` frames late."""

    def logits(self: Teacher, batch: Batch, session_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k = int(self.run.seed)
        like_BSV, frames_B = exact(self, batch, session_B)
        made_BSV = torch.zeros_like(like_BSV)
        made_BSV[:, :, 0] = CERTAIN
        for row in range(len(batch)):
            source = (row + whose[k]) % len(batch)
            labels = batch.labels_BU[source, : batch.label_lengths_B[source]].tolist()
            room = (int(frames_B[row]) - late) // 2
            for i, label in enumerate(labels[:room]):
                made_BSV[row, 2 * i + k * late, 0] = 0.0
                made_BSV[row, 2 * i + k * late, label] = CERTAIN
        return made_BSV, frames_B

    exact = Teacher.logits
    patch.setattr(Teacher, "logits", logits)


def numbered(prepared: Prepared) -> Prepared:
    """The same teachers, told apart by their seeds."""
    assert prepared.teachers is not None
    teachers = [
        replace(t, run=replace(t.run, config={**t.run.config, "seed": k}))
        for k, t in enumerate(prepared.teachers.teachers)
    ]
    config = prepared.config.training.distillation
    return replace(prepared, teachers=Teachers(teachers, config, prepared.trial_set, 0))


def test_healthy_teachers_get_no_finding(
    student: Callable[..., Prepared], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, 0, 0)
    prepared = numbered(student(teachers=(teacher, shutil.copytree(teacher, tmp_path / "copy"))))
    assert findings(prepared) == []
    assert [finding for finding in preflight(prepared) if finding.severity != "note"] == []


def test_a_run_without_teachers_is_not_asked(tiny_t15: Path) -> None:
    assert findings(prepare(compose_config(overrides(tiny_t15, Path("runs"), "alone")))) == []


def changed(teacher: Path, folder: Path, **sections: dict[str, object]) -> Path:
    """The same run with another configuration."""
    copy = shutil.copytree(teacher, folder)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    for section, values in sections.items():
        config[section].update(values)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def test_another_symbol_table(student: Callable[..., Prepared], teacher: Path, tmp_path: Path) -> None:
    """As many columns, other meanings: only the table's name tells."""
    other = changed(teacher, tmp_path / "letters", data={"symbols": "letters"})
    (finding,) = findings(student(teachers=(other,)))
    assert finding.code == "teacher_audio_mismatch"
    assert "writes 41 letters with the blank 0, this run 41 phonemes with the blank 0" in finding.evidence


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("preprocessor", "smoothing_sigma_bins", 3.0), ("preprocessor", "normalisation", "trial"),
     ("data", "channel_stride", 2)],
)  # fmt: skip
def test_other_features(
    student: Callable[..., Prepared], teacher: Path, tmp_path: Path, section: str, key: str, value: object
) -> None:
    (finding,) = findings(student(teachers=(changed(teacher, tmp_path / "other", **{section: {key: value}}),)))
    assert finding.code == "teacher_audio_mismatch"
    assert f"{section}.{key} differs" in finding.evidence


def test_other_frames(student: Callable[..., Prepared]) -> None:
    (finding,) = findings(student("model.patch.stride=2"))
    assert finding.code == "teacher_audio_mismatch"
    assert "(4 bins a frame there, 2 here)" in finding.evidence


def test_a_frame_less_than_the_formula_says(student: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Teacher.logits

    def short(self: Teacher, batch: Batch, session_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits_BSV, frames_B = exact(self, batch, session_B)
        return logits_BSV[:, 1:], frames_B - 1

    monkeypatch.setattr(Teacher, "logits", short)
    (finding,) = findings(student())
    assert finding.code == "teacher_audio_mismatch"
    assert "Of the same batch" in finding.evidence


def test_weights_that_are_not_finite(student: Callable[..., Prepared]) -> None:
    prepared = student()
    assert prepared.teachers is not None
    with torch.no_grad():
        prepared.teachers.teachers[0].run.model.head.bias[3] = torch.nan
    (finding,) = findings(prepared)
    assert finding.code == "poisoned_weights"
    assert "head.bias" in finding.evidence


def test_a_teacher_that_says_what_the_trials_say_is_fine(
    student: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, 0)
    assert findings(numbered(student())) == []


def test_the_recordings_of_other_trials(student: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, 1)
    (finding,) = findings(numbered(student()))
    assert finding.code == "teacher_audio_mismatch"
    assert "fits the labels of another trial better" in finding.evidence


def with_teacher(prepared: Prepared, **validation: float) -> Prepared:
    """Its teacher with another record of its validation."""
    assert prepared.teachers is not None
    (known,) = prepared.teachers.teachers
    other = replace(known, run=replace(known.run, validation={f"val/{key}": rate for key, rate in validation.items()}))
    return replace(prepared, teachers=Teachers([other], prepared.config.training.distillation, prepared.trial_set, 0))


def test_far_worse_than_its_own_validation(student: Callable[..., Prepared]) -> None:
    (finding,) = findings(with_teacher(student(), per=0.2))
    assert (finding.code, finding.severity) == ("teacher_audio_mismatch", "warning")
    assert "20.0 % in its own validation" in finding.evidence


def test_it_is_the_ctc_head_that_teaches(student: Callable[..., Prepared]) -> None:
    (finding,) = findings(with_teacher(student(), per=0.2, ctc_per=0.95))
    assert finding.code == "weak_teacher"
    (finding,) = findings(with_teacher(student(), per=12.6, ctc_per=0.2))
    assert finding.code == "teacher_audio_mismatch"


def test_a_teacher_that_decodes_nothing(student: Callable[..., Prepared]) -> None:
    (finding,) = findings(with_teacher(student()))
    assert (finding.code, finding.severity) == ("weak_teacher", "warning")
    assert "it was never validated" in finding.evidence


def test_speakers_that_are_new_to_a_teacher_may_be_hard_for_it(student: Callable[..., Prepared]) -> None:
    prepared = with_teacher(student(), per=0.2)
    assert prepared.teachers is not None
    trials = tuple(replace(trial, speaker="cleo") for trial in prepared.trial_set.trials)
    prepared.trial_set.trials = trials
    (finding,) = findings(prepared)
    assert finding.code == "weak_teacher"


@pytest.mark.parametrize(("late", "codes"), [(0, []), (1, ["teacher_spikes_misaligned"])])
def test_symbols_at_other_frames(
    student: Callable[..., Prepared],
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    late: int,
    codes: list[str],
) -> None:
    """Each teacher alone is perfect; a frame apart, their mean is not."""
    says(monkeypatch, 0, 0, late=late)
    copy = shutil.copytree(teacher, tmp_path / "copy")
    prepared = numbered(student("training.distillation.aggregation=logprob_mean", teachers=(teacher, copy)))
    assert [finding.code for finding in findings(prepared)] == codes


def test_a_divergence_without_the_blank(student: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    def over_labels_only(
        logits_BSV: torch.Tensor, log_q_BSV: torch.Tensor, weights_BS: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        return exact(logits_BSV[:, :, 1:], log_q_BSV[:, :, 1:].log_softmax(-1), weights_BS, temperature)

    exact = exact_loss("distillation_loss")
    spoil_loss(monkeypatch, "distillation_loss", over_labels_only)
    (finding,) = findings(student())
    assert finding.code == "blank_without_gradient"


def test_a_divergence_averaged_over_frames(student: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = exact_loss("distillation_loss")
    spoil_loss(monkeypatch, "distillation_loss", lambda *given: exact(*given) / given[0].shape[1])
    (finding,) = findings(student())
    assert finding.code == "reduction_mismatch"


def test_a_teacher_that_has_heard_the_validation(
    student: Callable[..., Prepared], teacher: Path, tmp_path: Path
) -> None:
    plain = student()
    copy = shutil.copytree(teacher, tmp_path / "copy")
    write_trained_on(copy, TrainedOn.of(plain.trial_set.trials))
    finding = findings(student(teachers=(copy,)))[0]
    assert (finding.code, finding.severity) == ("teacher_heard_test_speaker", "warning")
    assert f"{len(plain.val_indices)} of the {len(plain.val_indices)} validation trials" in finding.evidence


def test_a_leak_is_not_hidden_by_a_milder_one(
    student: Callable[..., Prepared], teacher: Path, tmp_path: Path, tiny_t15: Path
) -> None:
    plain = student()
    config = plain.config
    test = open_data(config.data, config.preprocessor, ("test",), config.seed).trials
    mild, severe = (shutil.copytree(teacher, tmp_path / name) for name in ("mild", "severe"))
    write_trained_on(mild, TrainedOn.of(plain.trial_set.trials))
    write_trained_on(severe, TrainedOn.of(test))
    for order in ((mild, severe), (severe, mild)):
        finding = findings(student(teachers=order))[0]
        assert (finding.code, finding.severity) == ("teacher_heard_test_speaker", "error")
        assert f"{severe} was trained on {len(test)} of the {len(test)} test trials" in finding.evidence


def test_sessions_that_no_teacher_has_an_adapter_for(tiny_t15: Path, tmp_path: Path) -> None:
    narrow = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "narrow", "data.max_sessions=1"))))
    asked = f"training.distillation.teachers=[{narrow}]"
    prepared = prepare(compose_config(overrides(tiny_t15, tmp_path, "student", asked)))
    (finding,) = [f for f in findings(prepared) if f.code == "untaught_trials"]
    assert (finding.code, finding.severity) == ("untaught_trials", "note")
    assert "have no teacher that has an adapter for the session, e.g. " in finding.evidence


def test_nobody_may_teach_anybody(tmp_path: Path) -> None:
    write_recordings(tmp_path / "voices")
    places = (f"data.data_root={tmp_path / 'voices'}", f"runs_dir={tmp_path}", "run_name=all", "training.steps=2")
    small = ("recipe=recordings", "training.scheduler.warmup_steps=1", "training.num_threads=1", *places)
    teacher = start(prepare(compose_config([*small])))
    asked = (f"training.distillation.teachers=[{teacher}]", "training.distillation.out_of_fold=true")
    prepared = prepare(compose_config([*small, *asked]))
    (finding,) = findings(prepared)
    assert (finding.code, finding.severity) == ("untaught_trials", "error")
    assert "and has not heard the speaker" in finding.evidence
    assert [f.code for f in preflight(prepared) if f.severity == "error"] == ["untaught_trials"]


def test_a_trial_stays_the_same_when_its_text_is_corrected(student: Callable[..., Prepared]) -> None:
    trial, other = student().trial_set.trials[:2]
    corrected = replace(trial, file=Path("elsewhere"), labels=None, text="other", speaker="F02")
    assert fingerprint(corrected) == fingerprint(trial)
    for different in (other, replace(trial, num_steps=trial.num_steps + 1)):
        assert fingerprint(different) != fingerprint(trial)


def test_a_teacher_that_has_heard_a_held_out_speaker(tmp_path: Path) -> None:
    write_recordings(tmp_path / "voices")
    places = (f"data.data_root={tmp_path / 'voices'}", f"runs_dir={tmp_path}", "run_name=all", "training.steps=2")
    small = ("recipe=recordings", "training.scheduler.warmup_steps=1", "training.num_threads=1", *places)
    heard_all = start(prepare(compose_config([*small, "data.val_fraction=0.2"])))
    asked = f"training.distillation.teachers=[{heard_all}]"
    (finding,) = findings(prepare(compose_config([*small, asked, "data.held_out_speakers=[ada]"])))
    assert (finding.code, finding.severity) == ("teacher_heard_test_speaker", "error")
    assert "was trained on ada, held out here" in finding.evidence


def test_a_teacher_that_does_not_say_what_it_has_heard(
    student: Callable[..., Prepared], teacher: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(teacher, tmp_path / "copy")
    (copy / FILE_NAME).unlink()
    finding = findings(student(teachers=(copy,)))[0]
    assert (finding.code, finding.severity) == ("teacher_heard_test_speaker", "warning")
    assert "does not say what it was trained on" in finding.evidence
