"""A step without a framework: what it computes is what a trainer's step computes, and a new loss needs nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sottovoce.core.checkpoints import read_tensors
from sottovoce.core.errors import ConfigurationError
from sottovoce.training import branches
from sottovoce.training.branches import BRANCHES, Branch, PartInputs
from sottovoce.training.composition import compose_config
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.processes import OneProcess
from sottovoce.training.run import start, step_parts
from sottovoce.training.stages import StageConfig
from tests.training.small_runs import STEPS, comparable_metrics, overrides

pytestmark = pytest.mark.slow


def _prepared(data: Path, runs: Path, name: str, *more: str) -> Prepared:
    return prepare(compose_config(overrides(data, runs, name, *more)))


def test_steps_by_hand_are_the_steps_of_a_run(tiny_t15: Path, tmp_path: Path) -> None:
    run_dir = start(_prepared(tiny_t15, tmp_path, "run", "training.log_every_steps=1"))
    computer = RunLoop(_prepared(tiny_t15, tmp_path, "by-hand"), Path()).computer
    computer.model.train()
    optimizer, parts = computer.build_optimizer(), step_parts(_prepared(tiny_t15, tmp_path, "parts"), 0)
    losses = []
    for step in range(STEPS):
        record = computer.take([parts[2 * step], parts[2 * step + 1]], optimizer)
        losses.append(record.metrics["train/loss"])
        assert record.verdict is not None and record.verdict.gradient_norm > 0
    recorded = [value for _, _, name, value in comparable_metrics(run_dir) if name == "train/loss"]
    assert losses == recorded
    kept = read_tensors(run_dir / "checkpoints" / "last", "model")
    assert all(torch.equal(value, kept[name]) for name, value in computer.model.state_dict().items())
    assert (computer.progress.step, computer.progress.updates) == (STEPS, STEPS)


def test_the_shares_of_parts_and_processes_add_up(tiny_t15: Path, tmp_path: Path) -> None:
    """Two parts, or two processes of one part each, have together the loss of their trials."""
    quiet = ("augmentation.white_noise_std=0", "augmentation.constant_offset_std=0", "model.gru.dropout=0")
    made = _prepared(tiny_t15, tmp_path, "shares", *quiet)
    computer, parts = RunLoop(made, Path()).computer, step_parts(made, 0)
    computer.model.eval()
    activity = computer.begin().activity
    computed = [computer.compute(parts[i], activity) for i in range(2)]
    nats = sum(float(c.nats["ctc"].detach().sum()) for c in computed)
    assert sum(float(c.loss.detach()) for c in computed) == pytest.approx(nats / computer.global_batch)
    computer.processes = OneProcess(1, 2)
    assert float(computer.compute(parts[0], activity).loss.detach()) == pytest.approx(
        float(computed[0].loss.detach()) / 2
    )


def test_a_step_needs_no_trainer() -> None:
    """Neither the step nor the losses import Lightning."""
    script = (
        "import sys, types\n"
        "sys.modules['sottovoce.training'] = package = types.ModuleType('sottovoce.training')\n"
        "import sottovoce; package.__path__ = [sottovoce.__path__[0] + '/training']\n"
        "import sottovoce.training.step\n"
        "assert 'lightning' not in sys.modules, 'lightning'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_new_loss_is_one_record(tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that only this test knows is weighed, computed, recorded, guarded and stopped like every other."""

    def energy(inputs: PartInputs, settings: Any, functions: Any) -> torch.Tensor:
        return inputs.encoded.frames_BSE.square().mean((1, 2))

    extra = Branch("energy", "ctc_decoder", "train/energy_loss", energy, unit="trial")
    monkeypatch.setitem(branches.BRANCHES, "energy", extra)
    stage = "[{name: all, steps: 4, components: [preprocessor, encoder, ctc_decoder], loss_weights: {energy: 0.5}}]"
    run_dir = start(_prepared(tiny_t15, tmp_path, "extra", f"training.stages={stage}", "training.steps=null",
                              "training.log_every_steps=1"))  # fmt: skip
    values: dict[str, list[float]] = {}
    for _, _, name, value in comparable_metrics(run_dir):
        values.setdefault(name, []).append(value)
    assert len(values["train/energy_loss"]) == len(values["train/ctc_loss"]) == 4
    for total, ctc, own in zip(
        values["train/loss"], values["train/ctc_loss"], values["train/energy_loss"], strict=True
    ):
        assert total == pytest.approx(ctc + 0.5 * own, rel=1e-5)
    with pytest.raises(ConfigurationError, match=r"did you mean loss_weights\.energy"):
        StageConfig("x", steps=1, components=("encoder", "ctc_decoder"), loss_weights={"enrgy": 1.0})


def test_every_branch_says_where_its_settings_are() -> None:
    computer_config = compose_config(["recipe=mode_ssm_small", "data.data_root=x"])
    for branch in BRANCHES.values():
        value: Any = computer_config
        for name in filter(None, branch.section.split(".")):
            value = getattr(value, name)
        assert value is not None
    assert {name for name, branch in BRANCHES.items() if branch.is_likelihood} == {"ctc", "rnnt"}
