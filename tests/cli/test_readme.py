"""The README's commands exist, and its recipes and verbs are all there are."""

import re
import shlex
from pathlib import Path

import pytest

from sottovoce.cli.main import VERBS, build_parser
from sottovoce.training.composition import checked_overrides, recipe_names, split_resume

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^sottovoce (.+?)(?:\s{2,}#.*)?$", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_understood(command: str) -> None:
    arguments = build_parser().parse_args(shlex.split(command))
    if command.startswith("train"):
        _, overrides = split_resume(arguments.overrides)
        assert len(checked_overrides(overrides)) == len(overrides)
    assert arguments.run.__module__ == f"sottovoce.cli.{command.split()[0]}"


def test_every_verb_and_recipe_is_in_the_tables() -> None:
    rows = set(re.findall(r"^\| `(\w+)", README, re.MULTILINE))
    assert rows == {*VERBS, *recipe_names()}
    assert len(COMMANDS) >= 7
