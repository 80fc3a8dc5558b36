"""The guard in a LightningModule that is not ours."""

import logging
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sottovoce.core.errors import ConfigurationError, TrainingAborted
from sottovoce.training import GuardCallback


class Regression(lightning.LightningModule):
    """One linear layer; the loss of a batch that holds a NaN is NaN."""

    def __init__(self, optimizers: int = 1, forgotten: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.other = nn.Linear(1, 1)
        self.forgotten = forgotten
        self.optimizer_count = optimizers
        self.automatic_optimization = optimizers == 1
        nn.init.ones_(self.layer.weight)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.other(self.layer(batch[0])).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        if self.optimizer_count == 2:
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]
        return torch.optim.AdamW(self.layer.parameters() if self.forgotten else self.parameters(), lr=0.01)


def trainer(
    callback: GuardCallback, devices: int | str = "auto", strategy: str = "auto", plugins: MixedPrecision | None = None
) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback], devices=devices, strategy=strategy, plugins=plugins,
    )  # fmt: skip


def fit(module: Regression, callback: GuardCallback, bad: tuple[int, ...] = (), steps: int = 8) -> None:
    x = torch.ones(steps, 2)
    x[list(bad)] = math.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer(callback).fit(module, DataLoader(TensorDataset(x), batch_size=1))


def test_bad_steps_do_not_reach_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    module, callback = Regression(), GuardCallback(max_norm=1.0, keep_every_steps=2)
    with caplog.at_level(logging.WARNING):
        fit(module, callback, bad=(2, 5))
    assert callback.guard.skipped == {"nonfinite_loss": 2}
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    assert "loss of micro-batch 0 (nan)" in caplog.text
    assert len(callback.guard.norms) == 6


def test_the_run_ends_when_all_is_bad() -> None:
    module = Regression()
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(TrainingAborted, match="nonfinite_loss in 3 steps in a row"):
        fit(module, GuardCallback(max_bad_steps=3), bad=tuple(range(8)))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_parameter_that_the_optimiser_does_not_have() -> None:
    with pytest.raises(TrainingAborted, match=r"stale_optimizer.*other\.weight, other\.bias"):
        fit(Regression(forgotten=True), GuardCallback(max_bad_steps=3))


def test_one_optimiser_only() -> None:
    with pytest.raises(ConfigurationError, match="the module has 2"):
        fit(Regression(optimizers=2), GuardCallback())


def test_its_state_goes_into_checkpoints() -> None:
    first, second = GuardCallback(), GuardCallback()
    fit(Regression(), first, bad=(2,))
    second.load_state_dict(first.state_dict())
    assert second.guard.state() == first.guard.state()


@pytest.mark.slow
def test_two_processes_skip_together(tmp_path: Path) -> None:
    """Only the second process sees a NaN; both skip that step and end with the same weights."""
    script = tmp_path / "two.py"
    script.write_text(f"""
import sys, warnings
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
warnings.simplefilter("ignore")
import math, torch
from torch.utils.data import DataLoader, TensorDataset
from sottovoce.training import GuardCallback
from tests.training.test_guard_callback import Regression, trainer
torch.manual_seed(0)
x = torch.ones(8, 2)
x[5] = math.nan  # step 2 of process 1
callback, module = GuardCallback(), Regression()
trainer(callback, devices=2, strategy="ddp").fit(module, DataLoader(TensorDataset(x), batch_size=1, shuffle=False))
open(f"{tmp_path}/{{module.global_rank}}", "w").write(
    repr((dict(callback.guard.skipped), callback.guard.last_skip.evidence, [p.tolist() for p in module.parameters()]))
)
""")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    said = [eval((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert [skipped for skipped, _, _ in said] == [{"nonfinite_loss": 1}] * 2
    assert {evidence for _, evidence, _ in said} == {"in another process", "loss of micro-batch 0 (nan)"}
    assert said[0][2] == said[1][2]


class Normed(Regression):
    """With a batch norm before its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.other(self.layer(self.norm(batch[0]))).square().mean()


def test_a_bad_batch_does_not_stay_in_a_batch_norm() -> None:
    module, callback, x = Normed(), GuardCallback(), torch.randn(12, 2)
    x[1] = math.nan  # of the first batch
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer(callback).fit(module, DataLoader(TensorDataset(x), batch_size=4))
    assert callback.guard.skipped == {"nonfinite_loss": 1}
    assert module.norm.running_mean is not None
    assert module.norm.running_mean.isfinite().all()
    assert module.norm.running_mean.abs().min() > 0


def test_a_loss_scale_is_found_without_bad_steps() -> None:
    module, callback = Regression(), GuardCallback(max_bad_steps=3)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**30))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        data = DataLoader(TensorDataset(torch.ones(40, 2)), batch_size=1)
        trainer(callback, plugins=precision).fit(module, data)
    assert callback.guard.overflows >= 10
    assert callback.guard.skipped == {}
    assert len(callback.guard.norms) == 40 - callback.guard.overflows
