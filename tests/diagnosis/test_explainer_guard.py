"""What the explainer makes of steps that the guard refused: NaN or infinity, which precision, which trial."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from sottovoce.core.errors import TrainingAborted
from sottovoce.core.findings import Finding
from sottovoce.diagnosis.capsules.capsule import capsules_of
from sottovoce.diagnosis.explainer import explain
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import prepare
from sottovoce.training.run import start
from sottovoce.training.verdict import LossKey
from tests.diagnosis.bad_runs import BATCH_STATISTICS, spoilt_signal
from tests.diagnosis.run_directories import RunDirectory
from tests.training.small_runs import overrides

pytestmark = pytest.mark.slow

ALL_NAN: dict[LossKey, float] = dict.fromkeys("abcdefghijklmnop", np.nan)
"""Every trial of the batch of 16."""
FITTING = ("t15.2023.08.11/train/trial_0003", "t15.2023.08.13/train/trial_0003")
WHOLE_BATCHES = (*BATCH_STATISTICS, "training.gradient_accumulation_steps=1", "training.batch_size=8")


def spoilt_run(data: Path, folder: Path, value: float, *more: str) -> tuple[Path, str]:
    """A run with `value` in three bins of the signal of one trial, and that trial's id."""
    prepared = prepare(compose_config(overrides(data, folder, "bad", *more)))
    trial = spoilt_signal(prepared, value=value, bins=3)
    with contextlib.suppress(TrainingAborted):
        start(prepared, RunWatch(prepared))
    return folder / "bad", trial


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


@pytest.mark.parametrize(
    ("value", "code", "told"),
    [
        (3e38, "scale_outlier", "its signal reaches 3e+38 at bin 5, channel 2; an ordinary trial"),
        (np.nan, "nonfinite_features", "its signal holds numbers that are not finite, first at bin 5, channel 2"),
    ],
)
def test_the_trial_whose_signal_spoils_the_batch_comes_first(
    value: float, code: str, told: str, tiny_t15: Path, tmp_path: Path
) -> None:
    run_dir, trial = spoilt_run(tiny_t15, tmp_path, value, *WHOLE_BATCHES)
    findings = explain(run_dir)
    assert (findings[0].code, findings[0].severity) == (code, "error")
    assert findings[0].evidence.startswith(f"{trial}: {told}")
    assert not {"fp16_overflow", "frame_length_off_by_one", "infinite_padding"} & set(codes(findings))


def test_a_damaged_capsule_hides_nothing_that_another_shows(tiny_t15: Path, tmp_path: Path) -> None:
    run_dir, trial = spoilt_run(tiny_t15, tmp_path, 3e38, *WHOLE_BATCHES)
    first, *others = sorted(capsules_of(run_dir))
    assert others
    (run_dir / "capsules" / str(first) / "process-0" / "checkpoint.json").write_text("{")
    finding = explain(run_dir)[0]
    assert finding.code == "scale_outlier"
    assert finding.evidence.startswith(f"{trial}: its signal reaches 3e+38")
    assert f"capsules/{first}/process-0/checkpoint.json is not a checkpoint index" in finding.evidence
    for step in others:
        shutil.rmtree(run_dir / "capsules" / str(step))
    assert codes(explain(run_dir)) == ["nonfinite_loss"]


@pytest.mark.parametrize(
    ("precision", "machine", "blamed"),
    [
        ("float32", {"gpus": ["one"]}, False),
        ("auto", {"gpus": []}, False),
        ("auto", {"gpus": ["one"]}, True),
        ("bfloat16", {"gpus": []}, True),
    ],
)
def test_half_precision_is_blamed_only_where_it_was_used(
    precision: str, machine: dict[str, list[str]], blamed: bool, tmp_path: Path
) -> None:
    for name in ("all", "gradient"):
        run = RunDirectory(tmp_path / name, f"training.precision={precision}")
        run.environment["machine"] = machine
        if name == "all":
            run.skipped("nonfinite_loss", 301, 302, losses=ALL_NAN)
        else:
            run.skipped("nonfinite_gradient", 301, 302, parameters=["a.weight"])
        assert ("fp16_overflow" in codes(explain(run.write()))) == blamed


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_only_an_infinite_loss_is_held_against_the_target(value: str, tiny_t15: Path, tmp_path: Path) -> None:
    """The targets fit; of an infinite loss that leaves the formula for the frames, of a NaN nothing."""
    run = RunDirectory(tmp_path, f"data.data_root={tiny_t15}", "preprocessor.num_channels=16")
    run.skipped("nonfinite_loss", 31, 92, losses=dict.fromkeys(FITTING, float(value)))
    found = codes(explain(run.write()))
    assert found == (["nonfinite_loss"] if value == "nan" else ["frame_length_off_by_one", "nonfinite_loss"])
