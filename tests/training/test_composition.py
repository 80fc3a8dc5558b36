from dataclasses import fields, replace

import pytest
import torch

from sottovoce.core.configuration import every_key
from sottovoce.core.errors import ConfigurationError
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.models.compose import build_model
from sottovoce.training.composition import (
    changed_for_resume,
    checked_overrides,
    compose_config,
    recipe_names,
    split_resume,
)
from sottovoce.training.config import RunConfig

BASE = ["data.data_root=x"]


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_composes(recipe: str) -> None:
    config = compose_config([f"recipe={recipe}", *BASE])
    assert config.recipe == recipe
    assert isinstance(config, RunConfig)


def test_t15_gru_is_the_official_configuration() -> None:
    """The table of the published `rnn_args.yaml`, value by value."""
    config = compose_config(["recipe=t15_gru", *BASE])
    optimizer, scheduler, augmentation = config.training.optimizer, config.training.scheduler, config.augmentation
    assert (optimizer.lr, optimizer.session_lr, optimizer.eps) == (0.005, 0.005, 0.1)
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.999, 0.001)
    assert (scheduler.name, scheduler.warmup_steps, scheduler.max_steps) == ("cosine_with_warmup", 1000, 120_000)
    assert scheduler.min_lr_ratio * optimizer.lr == pytest.approx(1e-4)
    assert (augmentation.white_noise_std, augmentation.constant_offset_std) == (1.0, 0.2)
    assert (augmentation.random_cut_bins, augmentation.gain_std, augmentation.random_walk_std) == (2, 0.0, 0.0)
    assert (augmentation.time_mask.probability, augmentation.channel_mask.probability) == (0.0, 0.0)
    assert config.preprocessor.smoothing_sigma_bins == 2.0
    assert config.preprocessor.normalisation == "none"
    assert (config.training.batch_size, config.data.sessions_per_batch) == (64, 4)
    assert (config.training.steps, config.training.validate_every_steps) == (120_000, 2000)
    assert (config.training.max_grad_norm, config.training.loss_normalisation) == (10.0, "per_utterance")
    assert config.training.gradient_accumulation_steps == 1
    assert config.seed == 10
    assert config.model.gru is not None
    assert (config.model.gru.units, config.model.gru.layers, config.model.gru.dropout) == (768, 5, 0.4)
    assert config.model.patch is not None
    assert (config.model.patch.size, config.model.patch.stride) == (14, 4)
    assert config.model.session_adapter is not None
    assert config.model.session_adapter.dropout == 0.2


WHOLE_TRIAL_PARTS = {
    "demo": (),
    "t15_gru": (),
    "recordings": ("preprocessor.normalisation=trial_mean", "model.conv"),
    "mode_ssm": ("model.stem", "model.speaking_mode", "model.ssm"),
    "mode_ssm_small": ("model.stem", "model.speaking_mode", "model.ssm"),
}


@pytest.mark.parametrize("recipe", recipe_names())
def test_which_recipes_decode_a_stream(recipe: str) -> None:
    config = compose_config([f"recipe={recipe}", *BASE])
    with torch.device("meta"):
        model = build_model(replace(config.model, num_channels=8, num_sessions=1, num_symbols=41))
    parts = (*FeaturePipeline(config.preprocessor).whole_trial_parts, *model.whole_trial_parts)
    assert tuple(part.key for part in parts) == WHOLE_TRIAL_PARTS[recipe]


def test_overrides_reach_keys_that_the_recipe_leaves_out() -> None:
    config = compose_config(
        [
            "recipe=demo", *BASE, "training.optimizer.beta2=0.98", "augmentation.time_mask.probability=0.5",
            "trainer.devices=2", "training.num_threads=2", "model.session_adapter=null",
        ]
    )  # fmt: skip
    assert config.training.optimizer.beta2 == 0.98
    assert config.augmentation.time_mask.probability == 0.5
    assert config.trainer.devices == 2
    assert config.training.num_threads == 2
    assert config.model.session_adapter is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=demo"], r"data.data_root is required"),
        (BASE, r"say which recipe .*demo"),
        (["recipe=dmo", *BASE], "no recipe 'dmo'; did you mean demo"),
        (
            ["recipe=demo", *BASE, "training.lr=1"],
            "unknown configuration key training.lr; did you mean training.optimizer.lr",
        ),
        (["recipe=demo", *BASE, "data.data_rot=y"], "did you mean data.data_root"),
        (["recipe=demo", *BASE, "training.steps=many"], "training.steps='many': a whole number"),
        (["recipe=demo", *BASE, "training.steps=0"], "training.steps=0: must be at least 1"),
        (["recipe=demo", *BASE, "model.conv.width=64"], "exactly one of the encoders"),
        (["recipe=demo", *BASE, "training.scheduler.max_steps=50"], "must be larger than warmup_steps"),
        (["recipe=demo", *BASE, "data.num_workers=2"], "data.cache_data"),
        (["recipe=demo", *BASE, "augmentation.speed=0.1"], "augmentation.speed"),
        (["recipe=demo", *BASE, "data.held_out_speakers=[theo]"], "data.held_out_speakers has no effect"),
        (["recipe=recordings", *BASE, "data.max_sessions=2"], "data.max_sessions has no effect with waveforms"),
        (["recipe=demo", *BASE, "data.val_fraction=0.2"], "data.val_fraction has no effect with binned features"),
        (["recipe=demo", *BASE, "augmentation.random_cut_bins=-1"], "augmentation.random_cut_bins=-1: must be"),
        (["recipe=demo", *BASE, "augmentation.time_mask.max_fraction=5"], "augmentation masks"),
        (["recipe=recordings", *BASE, "preprocessor.log_mel.hop_ms=0"], "hop_ms at least one sample"),
        (["recipe=demo", "nonsense"], "not of the form key=value"),
        (["recipe=mode_ssm", *BASE, "training.steps=7"], "exactly one of steps and stages"),
        (["recipe=mode_ssm", *BASE, "training.stages.1.epoch=7"], "did you mean training.stages.1.epochs?"),
        (["recipe=mode_ssm", *BASE, "training.stages.1.loss_weights.rnnt=0"], "rnnt_decoder shall learn"),
        (["recipe=mode_ssm", *BASE, "model.ssm.layers=1"], "a layer to look at and one to act on"),
        (["recipe=mode_ssm", *BASE, "training.stages.0.learning_rate.rnnt_decoder=2"], "has no effect"),
        (["recipe=mode_ssm", *BASE, "training.stages.4.epochs=2"], "no stage of that number"),
        (["recipe=mode_ssm", *BASE, "training.loss_scaling=batch"], "choose one of none, length"),
        (["recipe=demo", *BASE, "decoding.decoder=transducer"], "the model has none"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compose_config(overrides)


def test_sweeps_pass_the_check() -> None:
    assert checked_overrides(["recipe=demo,t15_gru", "seed=1,2"]) == ["recipe=demo,t15_gru", "++seed=1,2"]


def test_resume_changes_only_where_it_runs() -> None:
    path, others = split_resume(["resume=runs/a", "trainer.devices=2"])
    assert (str(path), others) == ("runs/a", ["trainer.devices=2"])
    config = compose_config(["recipe=demo", *BASE])
    with pytest.raises(ConfigurationError, match="1 processes of 16 trials"):
        changed_for_resume(config, others)
    moved = changed_for_resume(config, ["data.data_root=elsewhere", "trainer.accelerator=cpu"])
    assert (moved.data.data_root, moved.trainer.accelerator) == ("elsewhere", "cpu")
    with pytest.raises(ConfigurationError, match="a resumed run keeps its own configuration"):
        changed_for_resume(config, ["training.optimizer.lr=1"])


def test_every_field_has_a_place_in_some_recipe_or_a_default() -> None:
    assert len(every_key(RunConfig)) == len(set(every_key(RunConfig))) > 60
    assert {f.name for f in fields(RunConfig)} >= {"data", "preprocessor", "augmentation", "model", "training"}
