"""Exhibits of table B: who owns the parameters, how gradients are scaled and clipped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sottovoce.models import compose
from sottovoce.training import stages
from sottovoce.training import step as step_file
from sottovoce.training.guard import GradientGuard, Verdict
from sottovoce.training.optimizer import build_optimizer
from sottovoce.training.schedules import learning_rate_factor
from sottovoce.training.stages import Activity
from sottovoce.training.step import StepComputer
from sottovoce.training.watch import StepView
from tests.faults.scene import Exhibit, Scene


def optimizer_without_the_transducer(scene: Scene) -> None:
    """What the loop steps was built before the stage that adds the transducer."""

    def stale(*arguments: Any, **more: Any) -> torch.optim.Optimizer:
        optimizer = build_optimizer(*arguments, **more)
        optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["component"] != "rnnt_decoder"]
        return optimizer

    scene.patch.setattr(step_file, "build_optimizer", stale)


def optimizer_goes_stale_at_the_stage(scene: Scene) -> None:
    def lose(view: StepView) -> None:
        if view.stage == "joint":
            view.optimizer.param_groups[:] = [
                g for g in view.optimizer.param_groups if g["component"] != "rnnt_decoder"
            ]

    scene.after_step.append(lose)


def clip_norm_of_everything(scene: Scene) -> None:
    """A parameter outside the optimiser, a thousand times as large a gradient, and a clip over all of the model."""

    models = []

    def add(computer: StepComputer, optimizer: torch.optim.Optimizer) -> None:
        scene.patch.setattr(GradientGuard, "inspect", clip_all)
        scene.patch.setitem(compose.DecoderModel.PARTS, "auxiliary", "flow_bridge")
        models.append(computer.model)
        auxiliary = nn.Parameter(torch.ones(1))
        computer.model.register_parameter("auxiliary", auxiliary)
        computer.model.head.register_forward_hook(
            lambda head, inputs, logits: logits + 1000 * _unit_gradient(auxiliary) * torch.eye(logits.shape[-1])[1]
        )

    def clip_all(guard: GradientGuard, parameters: Any, losses: Any, *rest: Any, **more: Any) -> Verdict:
        everything = [p for p in models[0].parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(everything, guard.max_norm)
        return Verdict(float(norm), "clip", limit=guard.max_norm)

    scene.begin.append(add)


def _unit_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """0, with a gradient."""
    return parameter - parameter.detach()


def held_branch_still_runs(scene: Scene) -> None:
    """The transducer is frozen for its warm-up, but its loss keeps its weight and is back-propagated."""

    def leaky(stage: Any, rnnt_steps: int, warmup_steps: int, ramp_steps: int, distillation: float) -> Activity:
        activity = exact(stage, rnnt_steps, warmup_steps, ramp_steps, distillation)
        if stage.weight_of("rnnt") and rnnt_steps < warmup_steps:
            return replace(activity, weights={**activity.weights, "rnnt": stage.weight_of("rnnt")})
        return activity

    exact = stages.activity
    scene.patch.setattr(stages, "activity", leaky)
    scene.patch.setattr(step_file, "check_owners", lambda *arguments: None)


def frozen_part_keeps_moving(scene: Scene) -> None:
    """Frozen by name only: the weights of the held transducer are stepped all the same."""

    def drift(computer: StepComputer) -> None:
        if "rnnt_decoder" not in computer.now.rates and computer.progress.step > 130:
            assert computer.model.transducer is not None
            with torch.no_grad():
                computer.model.transducer.output.weight.mul_(1.01)

    scene.before_update.append(drift)


def clip_before_unscale(scene: Scene) -> None:
    """Gradients still carry a loss scale of 65,536 when they are clipped."""
    inspect = GradientGuard.inspect

    def scaled(guard: GradientGuard, parameters: Any, losses: Any, *rest: Any, **more: Any) -> Verdict:
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(65536.0)
        verdict = inspect(guard, parameters, losses, *rest, **more)
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.div_(65536.0)
        return verdict

    scene.patch.setattr(GradientGuard, "inspect", scaled)


def optimizer_is_recreated(scene: Scene) -> None:
    """As a trainer that builds a new Adam at every stage change."""

    def recreate(view: StepView) -> None:
        if view.step == 120:
            view.optimizer.state.clear()

    scene.after_step.append(recreate)


def schedule_is_stepped_once_an_epoch(scene: Scene) -> None:
    """A cosine over 100,000 steps that is asked once an epoch: flat."""
    scene.patch.setattr(
        step_file,
        "learning_rate_factor",
        lambda step, config, total: learning_rate_factor(20 + step // 15, config, 100_000),
    )


def schedule_of_a_dead_optimizer(scene: Scene) -> None:
    def freeze_rates(optimizer: Any, factor: float, by_component: Any) -> dict[str, float]:
        return {group["name"]: group["lr"] for group in optimizer.param_groups}

    scene.patch.setattr(step_file, "set_learning_rates", freeze_rates)


def micro_batches_are_added_up(scene: Scene) -> None:
    """The mean over each micro-batch, and nobody who divides by their number."""

    def undivided(computer: StepComputer, name: str, nats_B: torch.Tensor, inputs: Any) -> torch.Tensor:
        return nats_B.sum() / len(nats_B)

    scene.patch.setattr(StepComputer, "share", undivided)


def decayed_biases(scene: Scene) -> None:
    """A pattern that matches too much: biases fall into the group that decays."""
    scene.patch.setattr("sottovoce.training.optimizer.group_of", lambda name: "other")


EXHIBITS = (
    Exhibit("optimiser built without the transducer", "B1", "stale_optimizer", optimizer_without_the_transducer,
            "curriculum"),
    Exhibit("optimiser goes stale at the stage change", "B1", "stale_optimizer", optimizer_goes_stale_at_the_stage,
            "curriculum", slow=True),
    Exhibit("clip norm counts what nobody owns", "B2", "unowned_gradients", clip_norm_of_everything),
    Exhibit("held transducer still sends gradient", "B3", "frozen_branch_leaks", held_branch_still_runs, "curriculum"),
    Exhibit("frozen weights keep moving", "B3", "frozen_branch_leaks", frozen_part_keeps_moving, "curriculum",
            slow=True),
    Exhibit("clip before un-scaling", "B4", "clip_before_unscale", clip_before_unscale),
    Exhibit("moments lost in mid-run", "B5", "optimizer_recreated", optimizer_is_recreated),
    Exhibit("schedule stepped once an epoch", "B6", "schedule_not_stepped", schedule_is_stepped_once_an_epoch),
    Exhibit("schedule of another optimiser", "B6", "schedule_not_stepped", schedule_of_a_dead_optimizer),
    Exhibit("micro-batches added up undivided", "B7", "accumulation_mismatch", micro_batches_are_added_up,
            overrides=("training.batch_size=4", "training.gradient_accumulation_steps=2")),
    Exhibit("biases in the decayed group", "I5", "ambiguous_parameter_groups", decayed_biases),
)  # fmt: skip
