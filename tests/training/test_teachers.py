"""Runs that other runs teach: equal to plain training without a share, taught by the right ones, continued exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sottovoce.cli.main import main
from sottovoce.core.checkpoints import read_tensors
from sottovoce.core.errors import CheckpointError, ConfigurationError
from sottovoce.core.trial import Batch
from sottovoce.data.collation import StepPart, collate
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.runs.trained_on import TrainedOn, fingerprint, read_trained_on, write_trained_on
from sottovoce.training.composition import compose_config
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import resume, start
from sottovoce.training.stages import StageConfig, activity
from sottovoce.training.teachers import DistillationConfig, Teachers
from tests.training.small_runs import STEPS, assert_same_run, comparable_metrics, overrides, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def taught_by(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two trained runs."""
    runs = tmp_path_factory.mktemp("teachers")
    first, second = (
        start(prepare(compose_config(overrides(tiny_t15, runs, f"teacher{seed}", f"seed={seed}")))) for seed in (1, 2)
    )
    return first, second


def asking(*teachers: Path, **settings: object) -> list[str]:
    """The overrides of a run with these teachers."""
    named = f"training.distillation.teachers=[{','.join(map(str, teachers))}]"
    return [named, *(f"training.distillation.{key}={value}" for key, value in settings.items())]


@pytest.fixture
def prepared(tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]) -> Callable[..., Prepared]:
    def prepare_it(*more: str, **settings: object) -> Prepared:
        return prepare(compose_config(overrides(tiny_t15, tmp_path, "student", *asking(*taught_by, **settings), *more)))

    return prepare_it


def features(prepared: Prepared, count: int = 4) -> Batch:
    """The first training trials as the model sees them outside training."""
    batch = collate(prepared.trial_set, prepared.train_indices[:count])
    return FeaturePipeline(prepared.config.preprocessor).evaluate(batch)


def teachers_of(prepared: Prepared) -> Teachers:
    assert prepared.teachers is not None
    return prepared.teachers


def test_a_share_of_0_is_plain_training_bit_for_bit(
    tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path], prepared: Callable[..., Prepared]
) -> None:
    plain = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "plain"))))
    untaught = start(prepared(weight=0))
    assert_same_run(plain, untaught)
    assert not (untaught / "teachers.json").exists()


def test_teachers_change_what_is_learnt_and_are_on_record(
    tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path], prepared: Callable[..., Prepared]
) -> None:
    student = start(prepared())
    metrics = comparable_metrics(student)
    by_name = {name: value for _, split, name, value in metrics if split == "train"}
    assert by_name["train/distillation_loss"] > 0
    assert 0 < by_name["train/valid_frame_ratio"] <= 1
    total, ctc, divergence = (by_name[f"train/{name}"] for name in ("loss", "ctc_loss", "distillation_loss"))
    assert total == pytest.approx(0.5 * ctc + 0.5 * divergence, rel=1e-4)
    record = json.loads((student / "teachers.json").read_text())
    assert [Path(entry["run"]) for entry in record] == list(taught_by)


def test_ctc_and_the_teachers_share_one_weight() -> None:
    stage = StageConfig("joint", epochs=1, components=("encoder", "ctc_decoder"), loss_weights={"ctc": 0.3})
    assert activity(stage, 0, 0, 0, 0.25).weights == pytest.approx({"ctc": 0.225, "distillation": 0.075})
    assert activity(stage, 0, 0, 0, 1.0).weights == {"distillation": 0.3}
    assert activity(stage, 0, 0, 0).weights == {"ctc": 0.3}


def test_teachers_hear_the_students_own_batch_and_do_not_learn(prepared: Callable[..., Prepared]) -> None:
    made = prepared(aggregation="prob_mean", temperature=1.0)
    teachers, batch = teachers_of(made), features(made)
    before = [{n: t.clone() for n, t in teacher.run.model.state_dict().items()} for teacher in teachers.teachers]
    lesson = teachers.targets(batch, range(len(batch)))
    logits = [teacher.run.model(batch.signal, batch.lengths_B, batch.session_B)[0] for teacher in teachers.teachers]
    expected = torch.stack([z.softmax(-1) for z in logits]).mean(0)
    torch.testing.assert_close(lesson.log_q_BSV.exp(), expected)
    assert not lesson.log_q_BSV.requires_grad
    start(made)
    for teacher, kept in zip(teachers.teachers, before, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in teacher.run.model.state_dict().items())


def test_a_lesson_does_not_depend_on_batch_mates(prepared: Callable[..., Prepared]) -> None:
    made = prepared()
    batch = features(made)
    together = teachers_of(made).targets(batch, range(4))
    for row in range(4):

        def of_row(x: torch.Tensor, row: int = row) -> torch.Tensor:
            return x[row : row + 1]

        alone = replace(batch.map_tensors(of_row), trial_ids=batch.trial_ids[row : row + 1])
        lesson = teachers_of(made).targets(alone, [row])
        torch.testing.assert_close(lesson.weights_BS[0], together.weights_BS[row])
        frames = int((lesson.weights_BS[0] > 0).sum())
        torch.testing.assert_close(lesson.log_q_BSV[0, :frames], together.log_q_BSV[row, :frames], atol=1e-5, rtol=1e-5)


def test_a_teacher_without_the_sessions_adapter_leaves_its_trials_to_the_others(
    tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]
) -> None:
    one_session = overrides(tiny_t15, tmp_path, "narrow", "data.max_sessions=1")
    narrow = start(prepare(compose_config(one_session)))
    made = prepare(compose_config(overrides(tiny_t15, tmp_path, "student", *asking(narrow, taught_by[0]))))
    trials = made.trial_set.trials
    both = [next(i for i in made.train_indices if trials[i].session == name) for name in made.trial_set.sessions]
    batch = collate(made.trial_set, both)
    assert teachers_of(made).weights(batch).tolist() == [[0.5, 0.0], [0.5, 1.0]]


def test_out_of_fold_teachers_do_not_teach_whom_they_have_heard(prepared: Callable[..., Prepared]) -> None:
    made = prepared(out_of_fold="true")
    trials = tuple(replace(trial, speaker=f"speaker {i % 2}") for i, trial in enumerate(made.trial_set.trials))
    made.trial_set.trials = trials
    first, second = teachers_of(made).teachers
    heard = [replace(first, trained_on=TrainedOn(frozenset({"speaker 0"}), frozenset())), second]
    teachers = Teachers(heard, made.config.training.distillation, made.trial_set, 0)
    batch = collate(made.trial_set, made.train_indices[:4])
    zero = [trials[i].speaker == "speaker 0" for i in made.train_indices[:4]]
    assert {True, False} == set(zero)
    assert teachers.weights(batch)[0].tolist() == [0.0 if it else 0.5 for it in zero]
    alone = Teachers(heard[:1], made.config.training.distillation, made.trial_set, 0)
    weights = alone.targets(features(made), range(4)).weights_BS.sum(1)
    assert [bool(weight) for weight in weights] == [not it for it in zero]


def test_a_taught_run_that_is_stopped_goes_on_as_if_it_never_had(
    tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]
) -> None:
    whole, cut = (overrides(tiny_t15, tmp_path, name, *asking(*taught_by)) for name in ("whole", "cut"))
    start(prepare(compose_config(whole)))
    stopping = f"""
import os, signal
from sottovoce.training.loop import RunLoop
def after_step(self, record, original=RunLoop.after_step):
    original(self, record)
    if self.computer.progress.step == {STEPS // 2}:
        os.kill(os.getpid(), signal.SIGKILL)
RunLoop.after_step = after_step
"""
    assert train(*cut, before=stopping).returncode < 0
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_other_weights_under_a_teachers_name_are_refused_on_resume(
    tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]
) -> None:
    moved = shutil.copytree(taught_by[0], tmp_path / "teacher")
    run = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "student", *asking(moved)))))
    shutil.rmtree(moved)
    with pytest.raises(CheckpointError, match="teacher is no folder: give the run directory"):
        resume(run)
    resume(run, [f"training.distillation.teachers=[{taught_by[0]}]"])  # the same weights in another place
    with pytest.raises(ConfigurationError, match=r"has other weights now .*start a new run"):
        resume(run, [f"training.distillation.teachers=[{taught_by[1]}]"])
    for others, count in (((), 0), (taught_by, 2)):
        with pytest.raises(ConfigurationError, match=f"were 1 when it began and are {count} now"):
            resume(run, asking(*others))


def test_a_run_without_teachers_gets_none_later(tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]) -> None:
    run = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "alone"))))
    with pytest.raises(ConfigurationError, match="were 0 when it began and are 1 now"):
        resume(run, asking(taught_by[0]))


def test_one_run_under_two_names_is_refused(tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]) -> None:
    (tmp_path / "link").symlink_to(taught_by[0])
    with pytest.raises(ConfigurationError, match="names a run twice"):
        prepare(compose_config(overrides(tiny_t15, tmp_path, "student", *asking(taught_by[0], tmp_path / "link"))))


def test_what_teachers_have_heard_their_students_have_heard(
    tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]
) -> None:
    of_teacher = TrainedOn(frozenset({"M08"}), frozenset({"feed"}))
    teacher = shutil.copytree(taught_by[0], tmp_path / "teacher")
    write_trained_on(teacher, of_teacher)
    taught = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "student", *asking(teacher)))))
    heard, alone = read_trained_on(taught), read_trained_on(taught_by[0])
    assert alone is not None
    assert heard == alone | of_teacher
    (teacher / "trained_on.json").unlink()
    unknown = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "unknown", *asking(teacher)))))
    assert read_trained_on(unknown) is None


@pytest.mark.parametrize("content", ['{"speakers": "ada", "trials": []}', '{"trials": {}, "speakers": []}', "[]", "{"])
def test_a_record_of_what_was_heard_that_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "trained_on.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"trained_on.json cannot be read"):
        read_trained_on(tmp_path)


def test_a_trial_without_a_teacher_has_its_labels_at_full_weight(
    tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]
) -> None:
    narrow = start(prepare(compose_config(overrides(tiny_t15, tmp_path, "narrow", "data.max_sessions=1"))))
    made = prepare(compose_config(overrides(tiny_t15, tmp_path, "student", *asking(narrow, weight=0.8))))
    trials = made.trial_set.trials
    both = [next(i for i in made.train_indices if trials[i].session == name) for name in made.trial_set.sessions]
    computer = RunLoop(made, Path()).computer
    computer.model.train()
    computer.begin()
    assert computer.now.weights == pytest.approx({"ctc": 0.2, "distillation": 0.8})
    computed = computer.add(StepPart(0, 0, (0, 1), collate(made.trial_set, both)))
    taught, untaught = computed.nats["ctc"].tolist()
    assert computed.nats["distillation"].tolist()[1] == 0.0
    share = computed.shares["ctc"].item()
    assert 0.2 * share == pytest.approx((0.2 * taught + untaught) / computer.global_batch, rel=1e-5)


def test_what_a_run_has_heard_is_kept_with_it(tiny_t15: Path, taught_by: tuple[Path, Path]) -> None:
    prepared = prepare(compose_config(overrides(tiny_t15, Path("runs"), "again", "seed=1")))
    trials = prepared.trial_set.trials
    heard = read_trained_on(taught_by[0])
    assert heard is not None
    assert heard.fingerprints == {fingerprint(trials[i]) for i in prepared.train_indices}
    assert not heard.fingerprints & {fingerprint(trials[i]) for i in prepared.val_indices}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 1.5}, r"weight=1.5: must lie in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature=0.0: must be positive"),
        ({"aggregation": "logit_mean"}, "logit_mean is logprob_mean"),
        ({"aggregation": "median"}, "choose one of logprob_mean, prob_mean"),
        ({"blank_frame_weight": -0.1}, "blank_frame_weight=-0.1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DistillationConfig(**settings)  # type: ignore[arg-type]


def test_a_teacher_that_is_no_run_is_refused_in_one_line(
    tiny_t15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *overrides(tiny_t15, tmp_path, "student", *asking(tmp_path / "nowhere"))]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "nowhere is no folder: give the run directory" in said[-1]
    assert not (tmp_path / "student").exists()


def test_other_frames_end_a_run_without_preflight_in_one_line(
    tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    fine = ("model.patch.stride=2",)
    assert main(["train", *overrides(tiny_t15, tmp_path, "student", *asking(*taught_by), *fine)]) == 2
    assert "take teachers with the same symbols and bins per frame" in capsys.readouterr().err.splitlines()[-1]


def test_two_micro_batches_equal_one(tiny_t15: Path, tmp_path: Path, taught_by: tuple[Path, Path]) -> None:
    common = (*asking(*taught_by), "model.gru.dropout=0", "model.session_adapter.dropout=0")
    sizes = (("one", 4, 1), ("two", 2, 2))
    runs = [
        start(
            prepare(
                compose_config(
                    overrides(
                        tiny_t15,
                        tmp_path,
                        name,
                        *common,
                        f"training.batch_size={size}",
                        f"training.gradient_accumulation_steps={parts}",
                    )
                )
            )
        )
        for name, size, parts in sizes
    ]
    one, two = (read_tensors(run / "checkpoints" / "last", "model") for run in runs)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3
