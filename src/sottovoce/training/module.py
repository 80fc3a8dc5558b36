"""The Lightning module of a run: hands its calls on to the step (`step.py`) and to what is around it (`loop.py`).

Lightning drives devices, precision, accumulation and distribution. What a step computes, it does not know.
"""

from __future__ import annotations

import time
from typing import Any, Protocol, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer

from sottovoce.data.collation import StepPart
from sottovoce.training.step import StepComputer, StepRecord
from sottovoce.training.trainer_processes import TrainerProcesses


class AroundSteps(Protocol):
    """What happens before the first step, within each one and after it."""

    @property
    def is_over(self) -> bool:
        """No further step shall be taken."""
        ...

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step of this process."""
        ...

    def before_update(self, record: StepRecord) -> None:
        """The guard has decided and the weights have not moved yet."""
        ...

    def after_step(self, record: StepRecord) -> None:
        """After every step, skipped or not."""
        ...


class DecoderTraining(lightning.LightningModule):
    """One decoder's steps as Lightning calls them."""

    def __init__(self, step: StepComputer, around: AroundSteps) -> None:
        super().__init__()
        self.model = step.model  # what Lightning moves to a device
        self.step = step
        self.around = around

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The one optimiser of the run."""
        return self.step.build_optimizer()

    def on_train_start(self) -> None:
        """The optimiser exists and everything is on its device."""
        self.step.processes = TrainerProcesses(self.trainer)
        self.step.bfloat16 = self.trainer.precision == "bf16-mixed"
        self.around.begin(self._optimizer)

    def transfer_batch_to_device(self, batch: StepPart, device: torch.device, dataloader_idx: int) -> StepPart:
        """The part with its tensors on `device`."""
        return StepPart(batch.step, batch.micro_batch, batch.positions, batch.batch.to(device, non_blocking=True))

    def training_step(self, part: StepPart, batch_idx: int) -> torch.Tensor:
        """This part's share of the step's loss."""
        if part.micro_batch == 0:
            self.step.begin(self._optimizer)
        # Lightning divides by the micro-batches and averages over processes; the share is already final.
        return self.step.add(part).loss * (self.step.micro_batches * self.step.processes.count)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """After backward and un-scaling and before the weights move."""
        self.step.inspect(optimizer)
        self.around.before_update(self.step.current)

    def on_train_batch_end(self, outputs: Any, batch: StepPart, batch_idx: int) -> None:
        """After the last part: count the step and let the run log, validate and save."""
        if batch.micro_batch != self.step.micro_batches - 1:
            return
        self.step.finish()
        self.around.after_step(self.step.current)
        self.trainer.should_stop = self.trainer.should_stop or self.around.is_over
        self.step.waiting_since = time.perf_counter()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return cast(LightningOptimizer, self.optimizers()).optimizer
