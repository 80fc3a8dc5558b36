from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sottovoce.core.records import read_json_lines
from sottovoce.training.recorder import RunRecorder, WindowMeans


def board(run_dir: Path) -> EventAccumulator:
    found = EventAccumulator(str(run_dir / "tensorboard"))
    found.Reload()
    return found


def test_metrics_reach_the_file_and_tensorboard_under_both_names(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, total_steps=4, first_step=0)
    recorder.metrics(2, "train", {"train/loss": 3.5, "train/step_seconds": 0.25, "learning_rate/other": 0.5})
    recorder.metrics(2, "val", {"val/per": 1.25})
    recorder.event(2, "step_skipped", code="nonfinite_loss")
    recorder.close()
    records = read_json_lines(tmp_path / "metrics.jsonl")
    assert {r["name"]: r["value"] for r in records if r["split"] == "train"}["train/loss"] == 3.5
    assert {r["name"] for r in records} == {"train/loss", "train/step_seconds", "learning_rate/other", "val/per"}
    scalars = {tag: board(tmp_path).Scalars(tag)[0].value for tag in board(tmp_path).Tags()["scalars"]}
    assert scalars["train/batch_time"] == scalars["train/step_seconds"] == 0.25
    assert scalars["learning_rate"] == 0.5
    assert scalars["val/phoneme_accuracy"] == 0.0
    assert read_json_lines(tmp_path / "events.jsonl") == [
        {"step": 2, "event": "step_skipped", "code": "nonfinite_loss"}
    ]


def test_a_resumed_run_forgets_what_lay_beyond_its_checkpoint(tmp_path: Path) -> None:
    first = RunRecorder(tmp_path, total_steps=4, first_step=0)
    for step in (1, 2, 3):
        first.metrics(step, "train", {"train/loss": float(step)})
    first.close()
    second = RunRecorder(tmp_path, total_steps=4, first_step=2)
    second.metrics(3, "train", {"train/loss": 30.0})
    second.close()
    values = [(r["step"], r["value"]) for r in read_json_lines(tmp_path / "metrics.jsonl")]
    assert values == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [(e.step, e.value) for e in board(tmp_path).Scalars("train/loss")] == values


def test_window_means() -> None:
    window = WindowMeans()
    window.add({"a": 1.0})
    window.add({"a": 3.0})
    assert WindowMeans(**vars(window)).take() == {"a": 2.0}
    assert window.take() == {"a": 2.0}
    assert window.counts == {}


def test_a_value_that_begins_in_mid_window_is_averaged_over_its_own_steps() -> None:
    window = WindowMeans()
    window.add({"train/ctc_loss": 2.0})
    window.add({"train/ctc_loss": 4.0, "train/transducer_loss": 10.0})
    assert window.take() == {"train/ctc_loss": 3.0, "train/transducer_loss": 10.0}
    assert window == WindowMeans()


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_its_records_anew(tmp_path: Path) -> None:
    for _ in range(2):
        recorder = RunRecorder(tmp_path, 4, 0, quiet=True)
        recorder.event(0, "stage_started", stage="ctc")
        recorder.metrics(2, "train", {"train/loss": 1.0})
        recorder.close()
    assert [event["event"] for event in read_json_lines(tmp_path / "events.jsonl")] == ["stage_started"]
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 1
