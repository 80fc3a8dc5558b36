"""Whole small runs in this process: what they leave behind, what is equal, how they fail."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from sottovoce.cli.main import main
from sottovoce.core.checkpoints import has_checkpoint, read_tensors
from sottovoce.core.errors import ConfigurationError, DataError, TrainingAborted
from sottovoce.core.records import read_json_lines
from sottovoce.data.speaking_modes import BlockModes
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.training.composition import compose_config
from sottovoce.training.loop import RunLoop
from sottovoce.training.mode_targets import ModeTargets
from sottovoce.training.notices import notices
from sottovoce.training.preparation import prepare
from sottovoce.training.run import batch_plan, build_trainer, fit, start
from tests.training.small_runs import STEPS, comparable_metrics, overrides, train

pytestmark = pytest.mark.slow

NO_DROPOUT = ("model.gru.dropout=0", "model.session_adapter.dropout=0")


def run(data: Path, runs: Path, name: str, *more: str) -> Path:
    return start(prepare(compose_config(overrides(data, runs, name, *more))))


def losses(run_dir: Path) -> list[float]:
    return [value for _, _, name, value in comparable_metrics(run_dir) if name == "train/loss"]


@pytest.fixture(scope="module")
def finished(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny_t15, tmp_path_factory.mktemp("runs"), "plain")


def test_what_a_run_leaves_behind(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["model"]["num_sessions"] == 2
    assert config["training"]["optimizer"]["eps"] == 1e-8
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    names = {(r["split"], r["name"]) for r in read_json_lines(finished / "metrics.jsonl")}
    for name in ("loss", "ctc_loss", "gradient_norm", "blank_fraction", "step_seconds", "padding_fraction"):
        assert ("train", f"train/{name}") in names
    for group in ("bias", "session", "other"):
        assert ("train", f"learning_rate/{group}") in names
    for name in ("val/loss", "val/per", "val/wer"):
        assert ("val", name) in names
    steps = [r["step"] for r in read_json_lines(finished / "metrics.jsonl") if r["name"] == "val/per"]
    assert steps == [5, 10, 14]
    assert list((finished / "tensorboard").iterdir())
    events = read_json_lines(finished / "events.jsonl")
    saved = [(r["step"], r["checkpoint"]) for r in events if r["event"] == "checkpoint_saved"]
    assert [step for step, name in saved if name == "last"] == [3, 6, 9, 12, 14]


def test_losses_fall(finished: Path) -> None:
    found = losses(finished)
    assert len(found) == STEPS // 2
    assert found[-1] < 0.8 * found[0]
    assert all(map(math.isfinite, found))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    tiny_t15: Path, tmp_path: Path, finished: Path
) -> None:
    assert comparable_metrics(run(tiny_t15, tmp_path, "again")) == comparable_metrics(finished)
    assert losses(run(tiny_t15, tmp_path, "other", "seed=11")) != losses(finished)


def test_accumulation_is_exact(tiny_t15: Path, tmp_path: Path) -> None:
    """1 × 4 and 4 × 1: the same batches, losses and weights, up to the order of additions."""
    common = (*NO_DROPOUT, "training.loss_normalisation=per_token")
    one = run(tiny_t15, tmp_path, "one", *common, "training.batch_size=4", "training.gradient_accumulation_steps=1")
    four = run(tiny_t15, tmp_path, "four", *common, "training.batch_size=1", "training.gradient_accumulation_steps=4")
    assert losses(one) == pytest.approx(losses(four), rel=1e-5)
    a, b = (read_tensors(r / "checkpoints" / "last", "model") for r in (one, four))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-3


def test_two_processes_are_one(tiny_t15: Path, tmp_path: Path) -> None:
    """DistributedDataParallel over gloo on CPUs: the same global batch, the same losses and validation."""
    common = (*NO_DROPOUT, "trainer.accelerator=cpu", "training.gradient_accumulation_steps=2")
    one = train(*overrides(tiny_t15, tmp_path, "one", *common, "training.batch_size=4"))
    two = train(*overrides(tiny_t15, tmp_path, "two", *common, "training.batch_size=2", "trainer.devices=2"))
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    for name in ("train/loss", "train/ctc_loss", "val/loss", "val/per"):
        first, second = (
            [value for _, _, n, value in comparable_metrics(tmp_path / r) if n == name] for r in ("one", "two")
        )
        assert len(first) > 2
        assert first == pytest.approx(second, rel=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_weights_that_are_lost_stop_the_run_with_the_cause(tiny_t15: Path, tmp_path: Path) -> None:
    prepared = prepare(compose_config(overrides(tiny_t15, tmp_path, "bad")))
    with torch.no_grad():
        prepared.model.head.bias[3] = math.nan
    with pytest.raises(TrainingAborted, match=r"poisoned_weights: head.bias.*nothing was kept"):
        fit(prepared, RunLoop(prepared, tmp_path), build_trainer(prepared.config))
    told = [e["event"] for e in read_json_lines(tmp_path / "events.jsonl")]
    assert told == ["stage_started", "rolled_back", "run_aborted"]
    assert not has_checkpoint(tmp_path / "checkpoints" / "last")


def test_weights_that_are_lost_before_the_first_step_are_nothing_to_look_at(tiny_t15: Path, tmp_path: Path) -> None:
    """There is no step yet that the monitor could judge or a capsule hold."""
    prepared = prepare(compose_config(overrides(tiny_t15, tmp_path, "bad")))
    with torch.no_grad():
        prepared.model.head.bias[3] = math.nan
    with pytest.raises(TrainingAborted, match=r"poisoned_weights: head.bias"):
        start(prepared, RunWatch(prepared))
    assert not (tmp_path / "bad" / "capsules").exists()


def test_weights_that_are_lost_on_the_way_are_taken_back(tiny_t15: Path, tmp_path: Path) -> None:
    prepared = prepare(compose_config(overrides(tiny_t15, tmp_path, "lost")))
    loop = RunLoop(prepared, tmp_path)
    computer, kept = loop.computer, {}

    def spoil(*_: object) -> None:
        if computer.progress.step == 6:  # the last checkpoint is of this step
            kept.update({name: p.detach().clone() for name, p in computer.named.items()})
        if computer.progress.step == 7:
            with torch.no_grad():
                computer.model.head.bias[3] = math.nan
        if computer.progress.step == 8:
            assert all(torch.equal(p, kept[name]) for name, p in computer.named.items())

    computer.model.register_forward_pre_hook(spoil)
    computer.model.head.register_forward_pre_hook(spoil)
    fit(prepared, loop, build_trainer(prepared.config))
    events = read_json_lines(tmp_path / "events.jsonl")
    assert [(e["step"], e["code"]) for e in events if e["event"] == "rolled_back"] == [(8, "poisoned_weights")]
    assert not [e for e in events if e["event"] == "step_skipped"]
    assert computer.progress.step == STEPS
    assert all(bool(p.isfinite().all()) for p in computer.model.parameters())


def test_a_poisoned_model_stops_the_run_with_the_cause(tiny_t15: Path, tmp_path: Path) -> None:
    config = compose_config(overrides(tiny_t15, tmp_path, "bad", "training.max_bad_steps=3"))
    prepared = prepare(config)
    prepared.model.head.register_forward_hook(lambda computer, inputs, logits: logits * math.nan)
    loop = RunLoop(prepared, tmp_path)
    with pytest.raises(TrainingAborted, match="nonfinite_loss in 3 steps in a row"):
        fit(prepared, loop, build_trainer(prepared.config))
    events = read_json_lines(tmp_path / "events.jsonl")
    told = [e["event"] for e in events]
    assert told == ["stage_started", *["step_skipped"] * 3, "checkpoint_saved", "run_aborted"]
    assert [e["step"] for e in events] == [0, 1, 2, 3, 2, 2]  # the third step was not finished
    assert has_checkpoint(tmp_path / "checkpoints" / "last")
    assert events[1]["code"] == "nonfinite_loss"
    assert "t15.2023" in events[1]["evidence"]


def test_a_single_bad_step_is_skipped_and_the_run_goes_on(
    tiny_t15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose_config(overrides(tiny_t15, tmp_path, "one-bad"))
    prepared = prepare(config)
    loop = RunLoop(prepared, tmp_path)
    computer = loop.computer
    poisoned: list[bool] = []

    def poison(gradient: torch.Tensor) -> torch.Tensor | None:
        if computer.progress.step == 4 and not poisoned:
            poisoned.append(True)
            return gradient * math.nan
        return None

    computer.model.head.weight.register_hook(poison)
    fit(prepared, loop, build_trainer(prepared.config))
    events = [e for e in read_json_lines(tmp_path / "events.jsonl") if e["event"] == "step_skipped"]
    assert [(e["step"], e["code"]) for e in events] == [(5, "nonfinite_gradient")]
    assert "head.weight" in events[0]["evidence"]
    assert "skipped steps: 1 × nonfinite_gradient, of 14" in capsys.readouterr().err
    assert (computer.progress.step, computer.progress.updates) == (STEPS, STEPS - 1)
    assert all(bool(p.isfinite().all()) for p in computer.model.parameters())


def test_settings_that_contradict_the_data(tiny_t15: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"channel_mismatch.*preprocessor.num_channels=16"):
        run(tiny_t15, tmp_path, "a", "preprocessor.num_channels=512")
    with pytest.raises(ConfigurationError, match=r"model\.num_sessions=7"):
        run(tiny_t15, tmp_path, "b", "model.num_sessions=7")
    with pytest.raises(DataError, match=r"ctc_infeasible.*CTC needs"):
        run(tiny_t15, tmp_path, "c", "model.patch.size=40", "model.patch.stride=40")
    with pytest.raises(DataError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path, "d")
    assert not list(tmp_path.iterdir())


def test_a_training_trial_without_labels_is_refused_by_name(tiny_t15: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_t15, data)
    session = "t15.2023.08.13"
    for split in ("train", "val"):
        with h5py.File(data / session / f"data_{split}.hdf5", "r+") as file:
            file["trial_0001"].attrs["seq_len"] = 0
            file["trial_0001"]["seq_class_ids"][:] = 0
    with pytest.raises(DataError, match=rf"{session}.*trial_0001.*empty_label: a training trial without"):
        run(data, tmp_path, "raises")
    finished = run(data, tmp_path, "skips", "data.on_fault=skip", "training.steps=3")
    faults = [e["fault"] for e in read_json_lines(finished / "events.jsonl") if e["event"] == "trial_skipped"]
    assert faults == ["empty_label"]  # the validation trial stays


def test_a_run_is_never_overwritten(tiny_t15: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigurationError, match=r"exists already; continue it with resume="):
        run(tiny_t15, tmp_path, "taken")


def test_a_run_without_a_step_leaves_no_folder(tiny_t15: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="channel_mismatch"):
        run(tiny_t15, tmp_path, "plain", "data.check=false", "preprocessor.num_channels=15")
    assert list(tmp_path.iterdir()) == []
    assert run(tiny_t15, tmp_path, "plain", "training.steps=3").is_dir()


def test_names_count_up(tiny_t15: Path, tmp_path: Path) -> None:
    quick = [o for o in overrides(tiny_t15, tmp_path, "x", "training.steps=3") if not o.startswith("run_name")]
    assert [start(prepare(compose_config(quick))).name for _ in range(2)] == ["demo-001", "demo-002"]


def test_padding_is_measured_and_small(finished: Path) -> None:
    values = [v for _, _, name, v in comparable_metrics(finished) if name == "train/padding_fraction"]
    assert 0 < np.mean(values) < 0.15


def test_bfloat16_trains_and_keeps_float32_weights_and_losses(tiny_t15: Path, tmp_path: Path) -> None:
    found = run(tiny_t15, tmp_path, "bf16", "training.precision=bfloat16", "decoding.batch_size=1")
    values = losses(found)
    assert values[-1] < 0.8 * values[0]
    assert {t.dtype for t in read_tensors(found / "checkpoints" / "last", "model").values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_to_the_same_losses(tiny_t15: Path, tmp_path: Path, finished: Path) -> None:
    compiled = run(tiny_t15, tmp_path, "compiled", *NO_DROPOUT, "training.compile=true", "training.steps=4")
    plain = run(tiny_t15, tmp_path, "eager", *NO_DROPOUT, "training.steps=4")
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-3)
    names = read_tensors(compiled / "checkpoints" / "last", "model").keys()
    assert names == read_tensors(plain / "checkpoints" / "last", "model").keys()


def test_what_the_data_lack_is_said(tiny_t15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = "t15.2023.08.11", "t15.2023.08.13"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / first).symlink_to(tiny_t15 / first)
    run(tmp_path / "one", tmp_path, "no-validation", "training.steps=3")
    assert "no validation trials" in capsys.readouterr().err
    (tmp_path / "two" / second).mkdir(parents=True)
    (tmp_path / "two" / first).symlink_to(tiny_t15 / first)
    (tmp_path / "two" / second / "data_val.hdf5").symlink_to(tiny_t15 / second / "data_val.hdf5")
    run(tmp_path / "two", tmp_path, "unseen", "training.steps=3")
    assert f"no training trials in the session {second}" in capsys.readouterr().err


@pytest.mark.parametrize(("p_value", "said"), [(0.62, True), (0.1, False), (None, False)])
def test_blocks_of_one_mode_are_pointed_out(
    tiny_t15: Path, tmp_path: Path, p_value: float | None, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(compose_config(overrides(tiny_t15, tmp_path, "modes")))
    modes = ModeTargets(prepared.trial_set.trials, BlockModes({}, "pseudo"), None)
    monkeypatch.setattr(ModeTargets, "one_mode_p_value", lambda self, seed: p_value)
    found = [line for line in notices(replace(prepared, modes=modes)) if "one speaking mode" in line]
    assert len(found) == said
    assert not said or "62% of data sets of a single mode" in found[0]


def test_a_run_that_fails_says_so_in_its_records(
    tiny_t15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial that was damaged after the check, read only when its turn comes."""
    data = tmp_path / "data"
    shutil.copytree(tiny_t15, data)
    arguments = overrides(
        data, tmp_path, "run", "data.num_workers=1", "data.cache_data=false", "training.checkpoint_every_steps=1"
    )
    prepared = prepare(compose_config(arguments))
    plan = batch_plan(prepared)
    late = next(i for i in plan.step(4) if all(i not in plan.step(n) for n in range(4)))
    trial = prepared.trial_set.trials[late]
    with h5py.File(data / trial.session / "data_train.hdf5", "r+") as file:
        file[f"{trial.trial_id.split('/')[-1]}/input_features"][5, 3] = math.nan
    with pytest.raises(DataError, match="non_finite_features"):
        start(prepared, RunWatch(prepared))
    failed = read_json_lines(tmp_path / "run" / "events.jsonl")[-1]
    assert (failed["event"], failed["code"], failed["step"]) == ("run_failed", "non_finite_features", 4)
    assert trial.trial_id.split("/")[-1] in failed["message"]
    assert "Traceback" not in failed["message"]
    assert main(["diagnose", str(tmp_path / "run")]) == 1
    told = capsys.readouterr().out
    assert told.startswith("error: non_finite_features")
    assert f"The run failed after step 4: {failed['message']}" in told
    assert "it ended by an error" in told
    assert f"resume={tmp_path / 'run'}" in told
    shutil.rmtree(data)
    shutil.copytree(tiny_t15, data)
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert main(["diagnose", str(tmp_path / "run")]) == 0


def test_an_error_of_any_kind_is_recorded_and_ctrl_c_is_not(tiny_t15: Path, tmp_path: Path) -> None:
    for error, event in ((RuntimeError("out of memory"), "run_failed"), (KeyboardInterrupt(), "stage_started")):
        prepared = prepare(compose_config(overrides(tiny_t15, tmp_path, type(error).__name__)))

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        prepared.model.head.register_forward_pre_hook(fail)
        with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
            start(prepared)
        last = read_json_lines(tmp_path / type(error).__name__ / "events.jsonl")[-1]
        assert last["event"] == event
        assert last.get("message") == ("RuntimeError: out of memory" if event == "run_failed" else None)
