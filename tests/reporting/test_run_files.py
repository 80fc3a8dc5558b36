"""Reading a run directory: what is there, what is not, and what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from sottovoce.core.errors import CheckpointError
from sottovoce.reporting.run_files import read_files

from .conftest import CONFIG, add_evaluation, add_lines


def test_everything_is_read(evaluated_dir: Path) -> None:
    run = read_files(evaluated_dir)
    assert run.setting("training.max_grad_norm") == 5.0
    assert run.setting("model.gru.layers") is None
    assert run.curves["val/per"] == ([100, 200], [0.2, 0.15])
    assert run.last_step == 200
    assert [e["event"] for e in run.events] == ["checkpoint_saved", "step_skipped", "run_finished"]
    assert [e.name for e in run.evaluations] == ["val.greedy"]
    assert len(run.evaluations[0].hypotheses) == 4
    assert run.examples[0].examples[0].role == "best"


def test_a_decoder_with_words_is_the_headline(run_dir: Path) -> None:
    add_evaluation(run_dir, "greedy")
    add_evaluation(run_dir, "words", text="the cat")
    assert [e.name for e in read_files(run_dir).evaluations] == ["val.words", "val.greedy"]


def test_non_finite_values_are_gaps_and_a_repeated_step_counts_once(run_dir: Path) -> None:
    again = {"step": 10, "split": "train", "name": "train/loss"}
    add_lines(run_dir / "metrics.jsonl", [again | {"value": 7.5}, again | {"step": 210, "value": float("nan")}])
    steps, values = read_files(run_dir).curves["train/loss"]
    assert (steps[0], values[0], steps[-1]) == (10, 7.5, 200)


def test_a_killed_process_leaves_half_a_line(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 210, "spl')
    assert read_files(run_dir).last_step == 200


def test_a_fresh_run_has_only_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    run = read_files(tmp_path)
    assert (run.curves, run.events, run.evaluations, run.examples, run.last_step) == ({}, (), [], [], 0)


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is no folder.*sottovoce train"):
        read_files(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is empty: the run wrote nothing"):
        read_files(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "evaluation/val.greedy.json"])
def test_a_damaged_file_is_named(evaluated_dir: Path, name: str) -> None:
    (evaluated_dir / name).write_text("{half")
    with pytest.raises(CheckpointError, match=name.split("/")[-1]):
        read_files(evaluated_dir)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl: 1 of 1 lines left out; line 1 is no JSON object; restore"),
        (
            "metrics.jsonl",
            '{"step": 1}\n',
            r"metrics\.jsonl: 1 of 1 lines left out; line 1 is no record .*\(name, value\)",
        ),
        ("events.jsonl", "{}\n", r"events\.jsonl: .* line 1 is no record of a run \(step, event\)"),
        ("evaluation/val.greedy.json", '{"split": "val"}', r"val\.greedy\.json lacks decoder, symbols, num_trials"),
        (
            "hypotheses.val.greedy.jsonl",
            '{"trial_id": "a"}\n',
            r"greedy\.jsonl: .* line 1 is no record .*\(counts\)",
        ),
    ],
)
def test_a_record_that_is_not_what_a_run_writes_is_named(
    evaluated_dir: Path, name: str, content: str, message: str
) -> None:
    (evaluated_dir / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_files(evaluated_dir)
