"""The words a run may decode, and the file that keeps them with the run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sottovoce.core.errors import CheckpointError
from sottovoce.core.symbols import SymbolTable
from sottovoce.decoding.lexicon import Lexicon

FILE_NAME = "lexicon.json"


@dataclass(frozen=True)
class Vocabulary:
    """A lexicon, and whether every trial is a single word of it."""

    lexicon: Lexicon
    isolated_words: bool
    source: str
    """Where the words come from, for the reader of a report."""

    def pronunciations(self, table: SymbolTable) -> dict[str, tuple[str, ...]]:
        """The first pronunciation of each word in the symbols of `table`."""
        found: dict[str, tuple[str, ...]] = {}
        for word, symbols in zip(self.lexicon.words, self.lexicon.pronunciations, strict=True):
            found.setdefault(word, table.decode(symbols))
        return found


def write_vocabulary(run_dir: Path, vocabulary: Vocabulary | None) -> None:
    """Keep the words with the run, so that evaluation and serving need nothing else."""
    content = None
    if vocabulary is not None:
        entries = zip(vocabulary.lexicon.words, vocabulary.lexicon.pronunciations, strict=True)
        content = {
            "isolated_words": vocabulary.isolated_words,
            "source": vocabulary.source,
            "entries": [[word, list(ids)] for word, ids in entries],
        }
    (run_dir / FILE_NAME).write_text(json.dumps(content), encoding="utf-8")


def read_vocabulary(run_dir: Path) -> Vocabulary | None:
    """What `write_vocabulary` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = run_dir / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content is None:
            return None
        words, ids = zip(*content["entries"], strict=True)
        lexicon = Lexicon(tuple(words), tuple(tuple(symbols) for symbols in ids))
        return Vocabulary(lexicon, content["isolated_words"], content["source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the run directory is incomplete") from error
