"""The guard for anyone's LightningModule: `Trainer(callbacks=[GuardCallback(max_norm=1.0)])`."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import lightning
import torch

from sottovoce.core.errors import ConfigurationError
from sottovoce.training.gradients import HALVES
from sottovoce.training.guard import GradientGuard, owned_by
from sottovoce.training.processes import true_anywhere
from sottovoce.training.trainer_processes import TrainerProcesses
from sottovoce.training.verdict import GuardConfig, Verdict

LOGGER = logging.getLogger(__name__)


class GuardCallback(lightning.Callback):
    """Lets no bad step reach the weights or the moments of the module's one optimiser.

    It looks at every gradient after un-scaling and before the weights move, and at the loss that `training_step`
    returned. All processes decide alike. A skipped step is logged (`logging`, name of this module) and counted in
    `guard.skipped`. Leave `Trainer(gradient_clip_val=…)` unset and give `max_norm` here.

    With half precision and a loss scale, steps that the scale skips while it is sought are counted apart
    (`guard.overflows`). The module's buffers (batch norm) are kept from bad steps too.
    """

    def __init__(
        self,
        max_norm: float = 0.0,
        max_bad_steps: int = 10,
        config: GuardConfig | None = None,
        keep_every_steps: int = 100,
    ) -> None:
        """`keep_every_steps`: how often weights and moments are copied, to roll back to."""
        if keep_every_steps < 1:
            raise ConfigurationError(f"keep_every_steps={keep_every_steps}: must be at least 1")
        self.guard = GradientGuard(max_norm, max_bad_steps, config or GuardConfig())
        self.keep_every_steps = keep_every_steps
        self.verdict = Verdict(math.nan)
        """On the last step."""
        self._losses: list[torch.Tensor] = []
        self._kept_at = -1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Copy what there is before the first step.

        Raises:
            ConfigurationError: the module has not exactly one optimiser.
        """
        if len(trainer.optimizers) != 1:
            raise ConfigurationError(f"GuardCallback guards one optimiser; the module has {len(trainer.optimizers)}")
        self._keep(trainer, pl_module)

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: torch.Tensor
    ) -> None:
        """Remember the loss of this micro-batch, unless it is in half precision and a loss scale may have ended it."""
        if self._scaler(trainer) is None or loss.dtype not in HALVES:
            self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """The guard's look.

        Raises:
            TrainingAborted: too many steps were bad, or the weights are lost.
        """
        numbers = torch.stack([loss.float().mean() for loss in self._losses]).tolist() if self._losses else []
        self._losses = []
        # A loss of 0 may be right in another's module; one that is not finite never is.
        losses = {f"loss of micro-batch {i}": x for i, x in enumerate(numbers) if not math.isfinite(x)}
        owned = owned_by(optimizer, dict(pl_module.named_parameters()))

        def agree(here: Sequence[bool]) -> list[bool]:
            return true_anywhere(TrainerProcesses(trainer), here, pl_module.device)

        self.verdict = self.guard.inspect(owned, losses, agree, model=pl_module, scaler=self._scaler(trainer))
        if self.verdict.skipped:
            LOGGER.warning(
                "step %d %s: %s (%s)",
                trainer.global_step,
                "rolled back" if self.verdict.action == "roll_back" else "skipped",
                self.verdict.cause,
                self.verdict.evidence,
            )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Copy weights and moments now and then."""
        if trainer.global_step >= self._kept_at + self.keep_every_steps:
            self._keep(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The guard's state, for Lightning's checkpoints."""
        return self.guard.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from such a state."""
        self.guard.restore(state_dict)

    def _scaler(self, trainer: lightning.Trainer) -> torch.amp.GradScaler | None:
        """The loss scale of mixed precision, where the trainer has one."""
        return getattr(trainer.precision_plugin, "scaler", None)

    def _keep(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        self._kept_at = trainer.global_step
        lost = self.guard.keep(owned_by(optimizer, dict(pl_module.named_parameters())), optimizer, pl_module)
        if lost is not None:
            LOGGER.warning("step %d rolled back: %s (%s)", trainer.global_step, lost.cause, lost.evidence)
