"""Reads the commands and programs of a page of the documentation, and what its comments say about trying them.

A comment `<!-- test: … -->` in front of a block:

    before COMMAND       run this first
    python LINES         run these lines first; they share names with the programs of the page
    skip REASON          the next block is not run (its commands are still parsed)
    output               the next block is what a command has printed
    finds                commands of the next block may find something (exit code 1)
    shrink key=value …   from here on, append these overrides to `train` and `check recipe=…`
    replace "A" "B"      in the next block, put B for A
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md")))
_PIECES = re.compile(
    r"<!-- test: (?P<note>.*?)\s*-->|^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
_COMMAND = re.compile(r"^(?:srun )?(?P<command>sottovoce .+?)(?:\s{2,}#.*)?$", re.MULTILINE)
_TORCHRUN = re.compile(r"^torchrun .*--no-python (?P<command>sottovoce .+)$", re.MULTILINE)


@dataclass
class Block:
    """A fenced block, with what its page says about trying it."""

    body: str
    is_python: bool
    skip: str = ""
    finds: bool = False
    shrink: list[str] = field(default_factory=list)
    replace: list[tuple[str, str]] = field(default_factory=list)

    @property
    def commands(self) -> list[str]:
        """What follows `sottovoce` on each line, as it is printed."""
        found = [*_COMMAND.finditer(self.body), *_TORCHRUN.finditer(self.body)]
        return [] if self.is_python else [match["command"].removeprefix("sottovoce ") for match in found]

    def replaced(self, text: str) -> str:
        """`text` as it is tried."""
        for old, new in self.replace:
            assert old in self.body, f"{old} is not in the block"
            text = text.replace(old, new)
        return text

    def arguments(self, command: str) -> list[str]:
        """The words of a command as it is tried."""
        words = shlex.split(self.replaced(command))
        configured = words[0] in ("train", "check") and any(word.startswith("recipe=") for word in words)
        return [*words, *(self.shrink if configured and "--show-config" not in words else [])]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in their order; what comments add in front of them are blocks too."""
    blocks: list[Block] = []
    shrink: list[str] = []
    output, following = False, Block("", False)
    for piece in _PIECES.finditer(page.read_text(encoding="utf-8")):
        if piece["note"] is None:
            if not output and piece["language"] in ("", "python"):
                following.body, following.is_python = piece["body"], piece["language"] == "python"
                following.shrink = shrink
                blocks.append(following)
            output, following = False, Block("", False)
            continue
        kind, _, rest = piece["note"].partition("\n" if piece["note"].startswith("python\n") else " ")
        if kind == "before":
            blocks.append(Block(rest + "\n", False))
        elif kind == "python":
            blocks.append(Block(rest + "\n", True))
        elif kind == "shrink":
            shrink = rest.split()
        elif kind == "replace":
            old, new = shlex.split(rest)
            following.replace.append((old, new))
        elif kind == "skip":
            following.skip = rest
        elif kind in ("output", "finds"):
            output, following.finds = output or kind == "output", following.finds or kind == "finds"
        else:
            raise ValueError(f"{page}: {kind!r} is none of the words that a test understands")
    return blocks
