"""Settings that nothing reads in this configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from sottovoce.core.configuration import plain as plain_values
from sottovoce.core.findings import Finding
from sottovoce.core.signals import SignalKind
from sottovoce.decoding.config import DECODERS
from sottovoce.diagnosis.causes import linted
from sottovoce.training.branches import CTC, DENOISING, SPEAKING_MODE, TRANSDUCER
from sottovoce.training.config import RunConfig, TrainingConfig
from sottovoce.training.preparation import Prepared
from sottovoce.training.teachers import DistillationConfig


def without_effect(config: RunConfig, prepared: Prepared | None) -> Iterator[Finding]:
    """Row I3: settings other than their defaults that nothing in this configuration reads."""
    training, model, augmentation = config.training, config.model, config.augmentation
    plain = TrainingConfig(steps=1)
    distillation = training.distillation
    transducer = any(stage.weight_of(TRANSDUCER.name) for stage in training.stages)
    denoises = any(stage.weight_of(DENOISING.name) for stage in training.stages)
    modes = any(stage.weight_of(SPEAKING_MODE.name) for stage in training.stages)
    conditions = {
        "training.optimizer.session_lr": (
            model.session_adapter is None and training.optimizer.session_lr is not None,
            "the model has no session adapter",
        ),
        "training.rnnt_warmup_batches": (
            not transducer and training.rnnt_warmup_batches != plain.rnnt_warmup_batches,
            "no stage trains a transducer",
        ),
        "training.rnnt_ramp_steps": (
            not transducer and training.rnnt_ramp_steps != plain.rnnt_ramp_steps,
            "no stage trains a transducer",
        ),
        "training.loss_scaling": (
            not transducer and training.loss_scaling != plain.loss_scaling,
            "no stage trains a transducer",
        ),
        "training.loss_scaling=gradient_norm": (
            transducer and training.loss_scaling == "gradient_norm" and distillation.share == 1,
            "training.distillation.weight=1 leaves no CTC loss to balance the transducer against",
        ),
        "model.transducer": (model.transducer is not None and not transducer, "no stage trains a transducer"),
        "model.speaking_mode": (
            model.speaking_mode is not None and not modes,
            "no stage learns the speaking mode",
        ),
        "data.mode_file": (not modes and config.data.mode_file is not None, "no stage learns the speaking mode"),
        "data.mode_labels": (not modes and config.data.mode_labels != "auto", "no stage learns the speaking mode"),
        "model.flow_bridge.enabled": (
            model.flow_bridge.enabled and not denoises,
            "no stage trains the flow bridge",
        ),
        "training.corruption": (
            not denoises and training.corruption != plain.corruption,
            "no stage trains the flow bridge",
        ),
        "training.scheduler.max_steps": (
            training.scheduler.name == "constant" and training.scheduler.max_steps is not None,
            "the schedule is constant",
        ),
        "training.scheduler.min_lr_ratio": (
            training.scheduler.name == "constant" and training.scheduler.min_lr_ratio != 0.02,
            "the schedule is constant",
        ),
        "wandb": (
            not config.wandb.enabled and (config.wandb.entity or config.wandb.run_name) is not None,
            "wandb.enabled=false",
        ),
    }
    conditions |= _of_teachers(config) | _of_decoders(config)
    for name in ("time_mask", "channel_mask"):
        mask = getattr(augmentation, name)
        conditions[f"augmentation.{name}"] = (
            not mask.probability and _differs(mask),
            f"augmentation.{name}.probability=0",
        )
    for key, (applies, why) in conditions.items():
        if applies:
            yield linted("unread_config_key", f"{key} is set, but {why}.", fix=f"leave {key} out")
    if distillation.teachers and not distillation.weight:  # the plain run that a taught one is compared with
        why = "training.distillation.weight=0: the teachers are not loaded."
        yield linted("unread_config_key", why, "note", fix="nothing needs to be done")
    if config.data.use_length_bucketing and prepared is not None and _batch(config) >= len(prepared.train_indices):
        # recipes set it for data of any size: nothing for a user to mend
        why = f"data.use_length_bucketing does nothing here: a batch holds all {len(prepared.train_indices)} trials."
        yield linted("unread_config_key", why, "note", fix="nothing needs to be done")


def _of_teachers(config: RunConfig) -> dict[str, tuple[bool, str]]:
    """By key whether it has no effect, and why."""
    distillation, stages = config.training.distillation, config.training.stages
    return {
        "training.distillation": (
            not distillation.teachers and distillation != DistillationConfig(),
            "no run is named as a teacher",
        ),
        "training.distillation.weight": (
            bool(distillation.share) and bool(stages) and not any(s.weight_of(CTC.name) for s in stages),
            "no stage gives CTC a weight",
        ),
        "training.distillation.out_of_fold": (
            bool(distillation.share) and distillation.out_of_fold and config.preprocessor.signal == SignalKind.BINNED,
            "binned features have no speakers",
        ),
    }


def _of_decoders(config: RunConfig) -> dict[str, tuple[bool, str]]:
    """Settings of the decoders that are not asked."""
    decoding = config.decoding
    others = {name: decoding.section(name) for name in DECODERS if name != decoding.decoder}
    return {
        f"decoding.{name}.{key}": (value != plain_values(type(section)())[key], f"the decoder is {decoding.decoder}")
        for name, section in others.items()
        for key, value in plain_values(section).items()
    }


def _batch(config: RunConfig) -> int:
    return config.training.batch_size * config.training.gradient_accumulation_steps


def _differs(section: Any) -> bool:
    """Any field of the section other than its default."""
    assert is_dataclass(section)
    return any(getattr(section, entry.name) != entry.default for entry in fields(section))
