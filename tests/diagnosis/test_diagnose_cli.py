"""`sottovoce diagnose`: its exit codes, its JSON, its one line where there is nothing to diagnose."""

import json
import shutil
from pathlib import Path

import pytest

from sottovoce.cli.main import main
from sottovoce.diagnosis.causes import cause, found
from tests.diagnosis.bad_runs import bad_run, first_capsule, long_labels
from tests.diagnosis.run_directories import STEPS, RunDirectory

pytestmark = pytest.mark.slow

PROMISED = {"code", "severity", "step", "evidence", "explanation", "fix"}


@pytest.fixture(scope="module")
def capsule(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return first_capsule(bad_run(tiny_t15, tmp_path_factory.mktemp("runs"), long_labels))


def test_replay_as_json(capsule: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(capsule), "--replay", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["healthy"] is False
    assert said["findings"][0].keys() >= PROMISED
    assert said["findings"][0]["code"] == "ctc_infeasible"
    assert said["replays"][0]["exact"] is True
    assert said["replays"][0]["terms"] == ["ctc"]


def test_without_replay_the_guard_is_quoted(capsule: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(capsule)]) == 1
    assert "nonfinite_loss" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["missing", "file", "empty", "half-written", "damaged weights", "other model"])
def test_what_cannot_be_diagnosed_is_said_in_one_line(
    what: str, capsule: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it"
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        path.mkdir()
    elif what != "missing":
        shutil.copytree(capsule, path)
        before = path / "before"
        index = before / "checkpoint.json"
        if what == "half-written":
            index.unlink()
        elif what == "damaged weights":
            next(before.glob("model-*")).write_bytes(b"no tensors")
        else:
            index.write_text(index.read_text().replace('"units": 16', '"units": 8'))
    assert main(["diagnose", str(path), "--replay"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert str(path) in printed.err


def test_cause_evidence_and_fix_have_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path / "run")
    entry = cause("learning_rate_too_high")
    override = "training.optimizer.lr=0.01 seed=3"
    finding = found(entry.code, "Seen.", "monitor", override=override, fix="smaller steps")
    run.happened(30, entry.code, **finding.as_event())
    path = run.write()
    assert main(["diagnose", str(path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"error at step 30: learning_rate_too_high: {entry.title}",
        "  evidence: Seen.",
        "  override: training.optimizer.lr=0.01 seed=3",
        "  fix: smaller steps",
        f"  to be sure: {entry.tell_apart}",
        "  more: sottovoce diagnose --explain learning_rate_too_high",
    ]
    assert main(["diagnose", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["override"] == "training.optimizer.lr=0.01 seed=3"


def test_a_run_that_was_killed_is_not_called_healthy_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path / "run")
    run.is_finished = False
    path = run.write()
    assert main(["diagnose", str(path)]) == 0
    healthy, unfinished = capsys.readouterr().out.splitlines()
    assert healthy == f"{path}: healthy: nothing was found. At step {STEPS}: PER 0.12, validation loss 6.61"
    assert f"not finished, it still trains or was stopped; last record: step {STEPS}" in unfinished
    assert unfinished.endswith(f"sottovoce train resume={path}")


def test_a_run_without_a_metric_is_not_called_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = RunDirectory(tmp_path / "run").write()
    (path / "metrics.jsonl").unlink()
    assert main(["diagnose", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{path} has recorded nothing yet" in printed.err


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/last/checkpoint.json"])
def test_a_damaged_file_is_named_beside_what_was_found(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.happened(30, "learning_rate_too_high", severity="error", evidence="Seen.", source="monitor", support=1.0)
    path = run.write()
    (path / name).write_bytes(b"\xff\xfe\x00{{\n" * 9)
    assert main(["diagnose", str(path), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["code"] for finding in findings] == ["learning_rate_too_high", "record_damaged"]
    assert str(path / name) in findings[1]["evidence"]


def test_a_run_too_short_to_judge_is_not_called_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path / "run", steps=120)
    run.validation["val/per"] = lambda s: 1.0
    assert main(["diagnose", str(run.write())]) == 0
    said = capsys.readouterr().out
    assert "healthy" not in said
    assert "it has not learnt yet, and had too few steps to say why. At step 120: PER 1.00" in said


def test_a_page_comes_with_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--explain", "stale_optimizer"]) == 0
    page = capsys.readouterr().out
    assert page == (Path(__file__).parents[2] / "docs/failures/stale_optimizer.md").read_text(encoding="utf-8")
    assert main(["diagnose", "--explain", "stale_optimizer", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"code": "stale_optimizer", "page": page}


def test_an_unknown_code_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--explain", "stale_optimiser"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "there is no cause 'stale_optimiser'; the nearest are stale_optimizer" in printed.err
