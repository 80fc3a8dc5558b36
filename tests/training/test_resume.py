"""A run that is killed and resumed is the uninterrupted run, bit for bit. The processes are really killed."""

import json
import shutil
import signal
import time
from pathlib import Path

import h5py
import pytest
from safetensors.torch import load_file, save_file

from sottovoce.cli.main import main
from sottovoce.core.checkpoints import read_state
from sottovoce.core.findings import Finding
from sottovoce.core.records import read_json_lines
from sottovoce.diagnosis.causes import found
from sottovoce.training.preparation import Prepared
from tests.training.small_runs import STEPS, assert_same_run, overrides, train
from tests.training.warm import Running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    done = train(*overrides(tiny_t15, runs, "whole"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"run: {runs / 'whole'}"
    return runs / "whole"


KILLED_WRITING = """
import os, signal
from sottovoce.core import checkpoints
calls = 0
def dying(path, original=checkpoints._to_disk):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    original(path)
checkpoints._to_disk = dying
"""


@pytest.mark.parametrize(
    "call", [1, 5, 9], ids=["the first model file", "an optimiser file", "an index, after a validation"]
)
def test_killed_while_a_checkpoint_is_written(tiny_t15: Path, tmp_path: Path, uninterrupted: Path, call: int) -> None:
    killed = train(*overrides(tiny_t15, tmp_path, "killed"), before=KILLED_WRITING.format(call=call))
    assert killed.returncode == -signal.SIGKILL
    run = tmp_path / "killed"
    assert list((run / "checkpoints").rglob("*.writing"))
    resumed = train(f"resume={run}")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(uninterrupted, run)


def test_killed_in_the_middle_and_again(tiny_t15: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """From outside, at whatever point it happens to be after step 4, then once more after step 8."""
    run, metrics = tmp_path / "killed", tmp_path / "killed" / "metrics.jsonl"
    arguments = overrides(tiny_t15, tmp_path, "killed")
    for step in (4, 8):
        process = Running(["train", *arguments])
        while not (metrics.exists() and any(r["step"] >= step for r in read_json_lines(metrics))):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        arguments = [f"resume={run}"]
    resumed = train(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(uninterrupted, run)
    events = [record["event"] for record in read_json_lines(run / "events.jsonl")]
    assert events.count("resumed") == 2


def test_a_second_process_does_not_train_the_same_run(
    tiny_t15: Path, tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, metrics = tmp_path / "twice", tmp_path / "twice" / "metrics.jsonl"
    first = Running(["train", *overrides(tiny_t15, tmp_path, "twice")])
    while not (metrics.exists() and any(r["step"] >= 4 for r in read_json_lines(metrics))):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", f"resume={run}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{run} is being trained by process {first.pid} on " in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    first.send_signal(signal.SIGKILL)
    first.wait()
    resumed = train(f"resume={run}")
    assert f"took over the lock of process {first.pid} on " in resumed.stderr
    assert_same_run(uninterrupted, run)
    assert not (run / "lock.json").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(tiny_t15: Path, tmp_path: Path, uninterrupted: Path) -> None:
    run, metrics = tmp_path / "stopped", tmp_path / "stopped" / "metrics.jsonl"
    process = Running(["train", *overrides(tiny_t15, tmp_path, "stopped")])
    while not (metrics.exists() and read_json_lines(metrics)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert f"continue with: sottovoce train resume={run}" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    step, _ = read_state(run / "checkpoints" / "last")
    assert 2 <= step < STEPS
    assert train(f"resume={run}").returncode == 0
    assert_same_run(uninterrupted, run)


def test_a_finished_run_resumed_changes_nothing(uninterrupted: Path) -> None:
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    done = train(f"resume={uninterrupted}")
    assert done.returncode == 0, done.stderr
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    done = train(f"resume={tmp_path}")
    assert done.returncode == 2
    assert "is empty: the run wrote nothing" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_checkpoint_that_is_not_finite(
    uninterrupted: Path, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    (file,) = (run / "checkpoints" / "last").glob(f"{part}-*")
    tensors = load_file(file)
    name = {"model": "head.weight", "optimizer": "head.weight::exp_avg_sq"}[part]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", f"resume={run}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"poisoned_weights: not finite in {run}/checkpoints/last: {name} (1 of " in line
    assert "Put an older copy" in line
    assert f"sottovoce evaluate {run} uses" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_preflight_sees_when_a_run_is_resumed_is_said_and_recorded_once(
    tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = train(*overrides(tiny_t15, tmp_path, "killed"), before=KILLED_WRITING.format(call=5))
    assert killed.returncode == -signal.SIGKILL
    run = tmp_path / "killed"

    def preflight(_: Prepared) -> list[Finding]:
        return [found("effective_step", "Seen once.", "linter"), found("weight_decay_on_biases", "New.", "preflight")]

    monkeypatch.setattr("sottovoce.verbs.train.preflight", preflight)
    with (run / "events.jsonl").open("a") as events:
        details = found("effective_step", "Seen once.", "linter").as_event() | {"step": 0, "event": "effective_step"}
        events.write(json.dumps(details) + "\n")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("preflight: false", "preflight: true"))
    assert main(["train", f"resume={run}"]) == 0
    told = capsys.readouterr().err
    assert "effective_step: Seen once." in told
    assert "weight_decay_on_biases: New." in told
    codes = [record["event"] for record in read_json_lines(run / "events.jsonl")]
    assert (codes.count("effective_step"), codes.count("weight_decay_on_biases")) == (1, 1)


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from sottovoce.core import checkpoints
calls = 0
def full(path, original=checkpoints._to_disk):
    global calls
    calls += 1
    if calls == 4:  # from the second checkpoint on no file may grow beyond 4 KiB
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    original(path)
checkpoints._to_disk = full
"""


def test_a_full_disk_ends_the_run_with_one_line_and_a_good_checkpoint(
    tiny_t15: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    done = train(*overrides(tiny_t15, tmp_path, "full"), before=FULL_DISK)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "free some space" in done.stderr.splitlines()[-1].lower()
    step, _ = read_state(tmp_path / "full" / "checkpoints" / "last")
    assert step == 3
    assert train(f"resume={tmp_path / 'full'}").returncode == 0
    assert_same_run(uninterrupted, tmp_path / "full")


@pytest.fixture(scope="module")
def with_bad_trials(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data set with a NaN in one training and one validation trial."""
    root = tmp_path_factory.mktemp("bad") / "data"
    shutil.copytree(tiny_t15, root)
    for split in ("train", "val"):
        with h5py.File(root / "t15.2023.08.13" / f"data_{split}.hdf5", "r+") as file:
            file["trial_0002/input_features"][5, 3] = float("nan")
    return root


def test_unusable_trials_stay_left_out_when_a_run_is_killed_and_resumed(with_bad_trials: Path, tmp_path: Path) -> None:
    skip = "data.on_fault=skip"
    whole = train(*overrides(with_bad_trials, tmp_path, "whole", skip))
    assert whole.returncode == 0, whole.stderr
    killed = train(*overrides(with_bad_trials, tmp_path, "killed", skip), before=KILLED_WRITING.format(call=5))
    assert killed.returncode == -signal.SIGKILL
    resumed = train(f"resume={tmp_path / 'killed'}")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    evaluation = json.loads((tmp_path / "killed" / "evaluation" / "val.greedy.json").read_text())
    assert evaluation["num_trials"] == 3
    assert any("1 trials were left out" in note for note in evaluation["notes"])
    arguments = ["decode", str(tmp_path / "killed"), str(with_bad_trials), "--out", str(tmp_path / "out.jsonl")]
    assert main([*arguments, "--on-fault", "raise"]) == 2
    assert main(arguments) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == (24 + 4 + 2) - 2


def test_a_run_moves_with_its_data(tiny_t15: Path, tmp_path: Path) -> None:
    """Killed, its data moved, resumed from another folder: training, evaluation and report find the new place."""
    data = tmp_path / "here"
    shutil.copytree(tiny_t15, data)
    killed = train(*overrides(data, tmp_path, "run"), before=KILLED_WRITING.format(call=5))
    assert killed.returncode == -signal.SIGKILL
    data.rename(tmp_path / "there")
    done = train(f"resume={tmp_path / 'run'}", f"data.data_root={tmp_path / 'there'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [", "cannot be read"),
        ("config.yaml", "", "is not the configuration of a run"),
        ("lexicon.json", "{}", "lexicon.json cannot be read"),
        ("sessions.json", "7", "sessions.json cannot be read"),
        ("checkpoints/last/checkpoint.json", '{"format": 1, "step": 2}', "not a checkpoint index"),
        ("checkpoints/best/checkpoint.json", "[]", "not a checkpoint index"),
    ],
)
def test_damaged_run_files_end_with_one_line(
    uninterrupted: Path, tmp_path: Path, file: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    (run / file).write_text(content)
    verb = ["train", f"resume={run}"] if "last" in file else ["evaluate", str(run)]
    assert main(verb) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


def test_a_configuration_that_no_longer_fits_the_weights(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("units: 16", "units: 17"))
    for verb in (["evaluate", str(run)], ["train", f"resume={run}"]):
        assert main(verb) == 2
        assert "was config.yaml changed?" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints" / "best")
    (run / "checkpoints" / "best").mkdir()
    config.write_text(config.read_text().replace("units: 17", "units: 16"))
    assert main(["evaluate", str(run)]) == 0  # without a best checkpoint the last one counts
