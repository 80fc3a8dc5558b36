"""The linter: shipped recipes are silent, and each interaction is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sottovoce.core.findings import Finding
from sottovoce.diagnosis.linter import lint
from sottovoce.training import optimizer as optimizer_module
from sottovoce.training.composition import compose_config, recipe_names
from sottovoce.training.preparation import Prepared, prepare
from tests.training.small_runs import overrides


def _lint(*settings: str) -> list[Finding]:
    return lint(compose_config([*settings, "data.data_root=data"]))


def _loud(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings if finding.severity != "note"}


@pytest.fixture(scope="module")
def prepared(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(compose_config(overrides(tiny_t15, tmp_path_factory.mktemp("runs"), "lint")))


@pytest.mark.parametrize("recipe", recipe_names())
def test_shipped_recipes_are_silent(recipe: str) -> None:
    assert _loud(_lint(f"recipe={recipe}")) == set()


def test_a_small_healthy_run_is_silent(prepared: Prepared) -> None:
    assert _loud(lint(prepared.config, prepared)) == set()


def test_the_official_epsilon_is_a_note_and_says_its_regime() -> None:
    (finding,) = [f for f in _lint("recipe=t15_gru") if f.code == "adam_eps_regime"]
    assert finding.severity == "note"
    assert "0.05" in finding.evidence
    assert finding.source == "linter"


def test_epsilon_times_root_n_is_printed_where_the_model_is_there(prepared: Prepared) -> None:
    training = prepared.config.training
    config = replace(prepared.config, training=replace(training, optimizer=replace(training.optimizer, eps=0.1)))
    (finding,) = [f for f in lint(config, prepared) if f.code == "adam_eps_regime"]
    scalars = sum(p.numel() for p in prepared.model.parameters())
    assert f"ε·√N = {0.1 * scalars**0.5:.3g} for {scalars:,} numbers" in finding.evidence


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (("recipe=t15_gru", "training.steps=300", "training.scheduler.max_steps=null",
          "training.scheduler.warmup_steps=30", "training.log_every_steps=10"), "adam_eps_regime"),
        (("recipe=demo", "training.optimizer.eps=0.1", "training.optimizer.lr=0.001"), "adam_eps_regime"),
        (("recipe=t15_gru", "training.max_grad_norm=0.5"), "clipped_to_standstill"),
        (("recipe=demo", "training.optimizer.lr=0.12"), "effective_step"),
        (("recipe=demo", "training.scheduler.max_steps=100000"), "schedule_length"),
        (("recipe=demo", "training.scheduler.max_steps=120"), "schedule_length"),
        (("recipe=demo", "training.optimizer.lr=1e-6"), "learning_rate_too_low"),
        (("recipe=demo", "training.optimizer.weight_decay=20"), "weight_decay_too_strong"),
        (("recipe=demo", "training.optimizer.weight_decay=20", "training.optimizer.lr=0.0008", "training.steps=200"),
         "weight_decay_too_strong"),
        (("recipe=demo", "training.log_every_steps=1000"), "per_epoch_counter"),
        (("recipe=demo", "training.rnnt_warmup_batches=7"), "unread_config_key"),
        (("recipe=demo", "model.session_adapter=null", "training.optimizer.session_lr=0.01"), "unread_config_key"),
        (("recipe=demo", "decoding.transducer.max_symbols_per_frame=9"), "unread_config_key"),
        (("recipe=demo", "augmentation.time_mask.max_width=3"), "unread_config_key"),
        (("recipe=demo", "training.scheduler.name=constant", "training.scheduler.max_steps=400",
          "training.scheduler.min_lr_ratio=0.02"), "unread_config_key"),
    ],
)  # fmt: skip
def test_an_interaction_is_named(settings: tuple[str, ...], code: str) -> None:
    assert code in _loud(_lint(*settings))


@pytest.mark.parametrize(
    "settings",
    [
        ("training.steps=2", "training.scheduler.warmup_steps=1"),  # a short run is not the rate's fault
        ("training.steps=5000", "training.optimizer.lr=1e-5"),
        ("training.optimizer.weight_decay=1",),
        ("training.steps=20", "training.scheduler.warmup_steps=1", "training.optimizer.weight_decay=3"),
    ],
)
def test_rates_and_decays_that_get_somewhere(settings: tuple[str, ...]) -> None:
    assert _loud(_lint("recipe=demo", "training.log_every_steps=1", *settings)) == set()


def test_a_warm_up_longer_than_the_run_behind_a_later_end_of_the_schedule(tiny_t15: Path, tmp_path: Path) -> None:
    more = ("training.steps=20", "training.scheduler.warmup_steps=30", "training.scheduler.max_steps=35")
    prepared = prepare(compose_config([*overrides(tiny_t15, tmp_path, "lint"), *more]))
    (found,) = [finding for finding in lint(prepared.config, prepared) if finding.code == "schedule_length"]
    assert "warmup_steps=30, but the run has 20 steps" in found.evidence


@pytest.mark.parametrize("recipe", recipe_names())
def test_a_note_about_a_shipped_recipe_proposes_no_change(recipe: str) -> None:
    assert [(f.code, f.override) for f in _lint(f"recipe={recipe}") if f.override] == []


def test_what_a_recipe_sets_for_data_of_any_size_is_no_warning(prepared: Prepared) -> None:
    config = replace(
        prepared.config,
        data=replace(prepared.config.data, use_length_bucketing=True),
        training=replace(prepared.config.training, batch_size=10_000),
    )
    (found,) = [finding for finding in lint(config, prepared) if finding.code == "unread_config_key"]
    assert (found.severity, found.override) == ("note", "")
    assert f"a batch holds all {len(prepared.train_indices)} trials" in found.evidence


def test_a_transducer_that_never_joins() -> None:
    found = _lint("recipe=mode_ssm_small", "training.rnnt_warmup_batches=5000")
    assert "per_epoch_counter" in _loud(found)


def test_selection_on_the_test_split(prepared: Prepared) -> None:
    trials = prepared.trial_set.trials
    original = [trials[i] for i in prepared.val_indices]
    moved = tuple(replace(trial, split="test") if trial in original else trial for trial in trials)
    prepared.trial_set.trials = moved
    try:
        assert "selection_on_test" in _loud(lint(prepared.config, prepared))
    finally:
        prepared.trial_set.trials = trials


def test_a_metric_that_needs_texts_the_data_do_not_have(prepared: Prepared) -> None:
    trials = prepared.trial_set.trials
    config = replace(prepared.config, training=replace(prepared.config.training, selection_metric="wer"))
    prepared.trial_set.trials = tuple(replace(trial, text=None) for trial in trials)
    try:
        assert "metric_missing" in _loud(lint(config, prepared))
    finally:
        prepared.trial_set.trials = trials
    assert "metric_missing" not in _loud(lint(config, prepared))


def test_the_groups_of_the_real_optimizer_are_looked_at(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_module, "group_of", lambda name: "other")
    assert "weight_decay_on_biases" in _loud(lint(prepared.config, prepared))


@pytest.mark.parametrize("given", [("model.gru=null", "model.transformer={}", "model.session_adapter=null"), ()])
def test_a_transformer_or_an_adapter_alone_is_no_interaction(given: tuple[str, ...]) -> None:
    assert "adapter_with_transformer" not in {f.code for f in _lint("recipe=demo", *given)}


def test_an_adapter_before_a_transformer_says_what_each_session_has(tiny_t15: Path, tmp_path: Path) -> None:
    given = overrides(tiny_t15, tmp_path, "lint", "model.gru=null", "model.transformer={width: 8, layers: 1, heads: 2}")
    prepared = prepare(compose_config(given))
    (finding,) = [f for f in lint(prepared.config, prepared) if f.code == "adapter_with_transformer"]
    assert "272 weights" in finding.evidence  # 16 channels: a matrix and a bias
    sessions = {prepared.trial_set.trials[i].session for i in prepared.train_indices}
    assert f"{len(prepared.train_indices) / len(sessions):.0f} training trials" in finding.evidence
    assert (finding.severity, finding.override) == ("note", "")  # measured: adapters did no harm
    assert "model.session_adapter=null" in finding.fix
