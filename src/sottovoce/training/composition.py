"""From a recipe and overrides to a checked configuration."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sottovoce.core.configuration import build, check_key, nearest, plain
from sottovoce.core.errors import ConfigurationError
from sottovoce.training.config import RunConfig

RECIPES = "sottovoce.recipes"
GROUP = "recipe"
RESUMABLE = (
    "trainer.",
    "data.data_root",
    "data.lexicon",
    "data.mode_file",
    "data.num_workers",
    "training.distillation.teachers",
)
"""Keys, or the beginnings of some, that say where a run runs and where its files lie."""


def recipe_names() -> list[str]:
    """The shipped recipes."""
    folder = files(RECIPES).joinpath(GROUP)
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def checked_overrides(overrides: Sequence[str]) -> list[str]:
    """`overrides` in the form Hydra needs, each key checked against the configuration's dataclasses.

    A key that the recipe's file leaves to its default is not there for Hydra to override, hence the `++`.

    Raises:
        ConfigurationError: an unknown key or recipe, or text that is not `key=value`.
    """
    checked = []
    for text in overrides:
        parsed = _parse(text)
        if parsed.key_or_group == GROUP:
            known = recipe_names()
            for name in text.partition("=")[2].split(","):
                if name not in known:
                    raise ConfigurationError(f"there is no recipe {name!r}{nearest(name, known)}")
            checked.append(text)
        elif parsed.key_or_group.startswith("hydra"):
            checked.append(text)
        else:
            check_key(RunConfig, parsed.key_or_group)
            checked.append(text if parsed.is_delete() else "++" + text.lstrip("+"))
    return checked


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """The configuration that `recipe=NAME key=value …` stands for.

    >>> compose_config(["recipe=t15_gru", "data.data_root=data"]).training.optimizer.eps
    0.1

    Raises:
        ConfigurationError: no recipe, an unknown key, a wrong type or a contradiction.
    """
    checked = checked_overrides(overrides)
    if not any(text.startswith(f"{GROUP}=") for text in checked):
        raise ConfigurationError(
            f"say which recipe to start from: recipe=NAME, NAME one of {', '.join(recipe_names())}"
        )
    try:
        with initialize_config_module(RECIPES, version_base="1.3"):
            return config_from(compose("config", checked))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        hint = "; the recipe has no stage of that number" if "override ++training.stages." in reason else ""
        raise ConfigurationError(f"{reason}{hint}") from error


def config_from(composed: DictConfig) -> RunConfig:
    """The checked configuration of what Hydra has composed."""
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return build(RunConfig, {str(key): value for key, value in values.items()})


def split_resume(overrides: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The run that `resume=DIR` names, if any, and the other overrides."""
    named = [text.removeprefix("resume=") for text in overrides if text.startswith("resume=")]
    others = [text for text in overrides if not text.startswith("resume=")]
    return (Path(named[-1]) if named else None), others


def changed_for_resume(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A run's configuration with what may differ when it continues: where it runs and where the data lie.

    Raises:
        ConfigurationError: an override that would make it another run.
    """
    values = plain(config)
    for text in overrides:
        parsed = _parse(text)
        key = parsed.key_or_group
        if not key.startswith(RESUMABLE):
            raise ConfigurationError(
                f"{text}: a resumed run keeps its own configuration (only {', '.join(RESUMABLE)} may change); "
                "leave it out, or start a new run"
            )
        check_key(RunConfig, key)
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = parsed.value()
    changed = build(RunConfig, values)
    processes = [c.trainer.devices * c.trainer.num_nodes for c in (config, changed)]
    if processes[0] != processes[1]:
        raise ConfigurationError(
            f"the run was started with {processes[0]} processes of {config.training.batch_size} trials each; with "
            f"{processes[1]} every batch would be another. Keep trainer.devices × trainer.num_nodes, or start a new run"
        )
    return changed


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{text!r} is not of the form key=value ({reason})") from error
