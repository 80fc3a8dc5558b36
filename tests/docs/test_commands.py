"""What the README and the guide tell the reader to type works."""

import re
import shlex
from pathlib import Path

import pytest

from sottovoce.cli.main import VERBS, build_parser, main
from sottovoce.training.composition import compose_config, recipe_names, split_resume
from tests.docs.pages import PAGES, ROOT, Block, blocks_of

PROSE = (*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "ARCHITECTURE.md")), *(ROOT / "docs").rglob("*.md"))
INLINE = re.compile(r"`sottovoce ([a-z_]\w+ [^`…]+)`")
IN_BLOCKS = [(page.name, command) for page in PAGES for block in blocks_of(page) for command in block.commands]
IN_PROSE = {(page.name, command) for page in PROSE for command in INLINE.findall(page.read_text(encoding="utf-8"))}
COMMANDS = [*IN_BLOCKS, *sorted(IN_PROSE - set(IN_BLOCKS))]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_understood(page: str, command: str) -> None:
    """By the parser, and every key by the configuration."""
    arguments = build_parser().parse_args(shlex.split(command))
    given = getattr(arguments, "overrides", None) or getattr(arguments, "target", [])
    run_dir, overrides = split_resume(given)
    if run_dir is None and any("=" in text for text in overrides):
        values = [text.split(",")[0] if arguments.__dict__.get("multirun") else text for text in overrides]
        compose_config(values)


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"^make (\w+)|`make (\w+)`", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert {name for pair in named for name in pair if name} <= targets


def test_every_verb_and_recipe_is_in_the_tables() -> None:
    rows = set(re.findall(r"^\| `(\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert rows == {*VERBS, *recipe_names()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::lightning")  # of a Trainer that is not ours
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_program_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the page's order, in one empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if not block.skip:
            run(block, names, page)


def run(block: Block, names: dict[str, object], page: Path) -> None:
    if block.is_python:
        exec(compile(block.replaced(block.body), str(page), "exec"), names)
    for command in block.commands:
        code = main(block.arguments(command))
        assert code in ((0, 1) if block.finds else (0,)), f"sottovoce {command} gave {code}"
