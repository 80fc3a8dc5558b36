"""Exhibits of table I and of the monitor: engineering that hides the failure, and what slows a run down."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sottovoce.core.checkpoints import read_state, read_tensors, write_checkpoint
from sottovoce.models.compose import DecoderModel
from sottovoce.runs.trained_decoder import TrainedDecoder
from sottovoce.training.preparation import Prepared
from sottovoce.training.stages import Curriculum
from sottovoce.training.step import StepComputer
from tests.faults.scene import Exhibit, Scene
from tests.training.spoilt import exact_loss, spoil_loss


def errors_become_zero(scene: Scene) -> None:
    """`except: return 0` around a loss that fails for long targets."""
    exact = exact_loss("ctc_loss")

    def swallowing(
        logits: torch.Tensor, targets: torch.Tensor, frames_B: torch.Tensor, labels_B: torch.Tensor, *rest: Any
    ) -> torch.Tensor:
        nats_B = exact(logits, targets, frames_B, labels_B, *rest)
        return torch.where(labels_B > labels_B.float().mean() + 4, torch.zeros_like(nats_B), nats_B)

    spoil_loss(scene.patch, "ctc_loss", swallowing)


def scoring_fails_at_the_end(scene: Scene) -> None:
    """A missing argument in code that only runs when everything has been trained."""

    def wrong(*arguments: Any, **more: Any) -> Any:
        raise TypeError("decode_words() missing 1 required positional argument: 'boundary'")

    scene.patch.setattr(TrainedDecoder, "decoders", wrong)


def unfreezing_counts_within_an_epoch(scene: Scene) -> None:
    """The counter begins anew every 15 batches and never reaches the hundredth."""
    exact = Curriculum.activity

    def per_epoch(curriculum: Curriculum, position: Any) -> Any:
        return exact(curriculum, replace(position, rnnt_steps=position.rnnt_steps % 15))

    scene.patch.setattr(Curriculum, "activity", per_epoch)


def layer_that_nothing_uses(scene: Scene) -> None:
    """As the 24 input layers of neural_seq_decoder that no session ever selects."""
    exact = DecoderModel.__init__

    def with_spare(model: DecoderModel, config: Any) -> None:
        exact(model, config)
        model.encoder.register_module("spare", torch.nn.Linear(64, 64))

    scene.patch.setattr(DecoderModel, "__init__", with_spare)


def resumed_without_the_optimizer(scene: Scene) -> None:
    """Stopped by a signal, and continued from a checkpoint of which somebody has kept the weights and the step."""

    def strip(run_dir: Path) -> None:
        last = run_dir / "checkpoints" / "last"
        step, state = read_state(last)
        write_checkpoint(last, step, {"model": read_tensors(last, "model"), "optimizer": {}}, state)

    scene.interrupted.append(strip)


def invented_log(scene: Scene) -> None:
    """Figures that no run of this configuration can write."""

    def rewrite(run_dir: Path) -> None:
        metrics = run_dir / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        for line in lines:
            if line["name"] == "val/per":
                line["step"] += 7
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))

    scene.finished.append(rewrite)


def slow_reader(scene: Scene) -> None:
    def delay(prepared: Prepared) -> Prepared:
        exact = prepared.trial_set.signal

        def slow(index: int) -> Any:
            time.sleep(0.01)
            return exact(index)

        prepared.trial_set.signal = slow  # type: ignore[method-assign]
        return prepared

    scene.prepared.append(delay)


def steps_become_slow(scene: Scene) -> None:
    def wait(computer: StepComputer) -> None:
        if computer.progress.step > 140:
            time.sleep(0.12)

    scene.before_update.append(wait)


def one_parameter_dominates(scene: Scene) -> None:
    def enlarge(computer: StepComputer, optimizer: torch.optim.Optimizer) -> None:
        computer.named["encoder.gru.weight_hh_l0"].register_hook(lambda gradient: gradient * 1000)

    scene.begin.append(enlarge)


EXHIBITS = (
    Exhibit("errors become losses of 0", "I1", "swallowed_exception", errors_become_zero,
            ambiguous_with=("zero_infinity",)),
    Exhibit("resumed from weights alone", "I2", "incomplete_resume", resumed_without_the_optimizer),
    Exhibit("rate of adapters that do not exist", "I3", "unread_config_key",
            overrides=("model.session_adapter=null", "training.optimizer.session_lr=0.01"),
            slow=True),
    Exhibit("unfreezing counted within an epoch", "I4", "per_epoch_counter", unfreezing_counts_within_an_epoch,
            "curriculum", slow=True),
    Exhibit("a layer that nothing uses", "I6", "unused_parameters", layer_that_nothing_uses),
    Exhibit("scoring fails at the end", "I7", "late_crash", scoring_fails_at_the_end),
    Exhibit("a log that is not output", "I8", "unprovenanced_log", invented_log,
            doctored=True, slow=True),
    Exhibit("a slow reader", "-", "data_starvation", slow_reader, slow=True),
    Exhibit("steps become slow", "-", "throughput_drop", steps_become_slow, slow=True),
    Exhibit("one parameter dominates", "-", "dominating_parameter", one_parameter_dominates,
            slow=True),
)  # fmt: skip
