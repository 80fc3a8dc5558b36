"""The words a run may decode: where they come from, and the file that keeps them with the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sottovoce.core.errors import CheckpointError
from sottovoce.core.symbols import SymbolTable
from sottovoce.core.text import normalise_text
from sottovoce.core.trial import Trial
from sottovoce.data.config import DataConfig
from sottovoce.data.pronunciation import read_lexicon
from sottovoce.data.simulate.lexicon import load_lexicon
from sottovoce.decoding.lexicon import Lexicon

FILE_NAME = "lexicon.json"


@dataclass(frozen=True)
class Vocabulary:
    """A lexicon, and whether every trial is a single word of it."""

    lexicon: Lexicon
    isolated_words: bool
    source: str
    """Where the words come from, for the reader of a report."""


def find_vocabulary(config: DataConfig, table: SymbolTable, training_trials: Iterable[Trial]) -> Vocabulary | None:
    """The words of a run: `data.lexicon`, or the words of the training texts; None where neither is enough.

    Letters spell every training word. Phonemes need a pronouncing dictionary; the simulator's own serves data whose
    training words are all in it.
    """
    texts = [normalise_text(trial.text or "") for trial in training_trials]
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    isolated = table.name == "letters" and all(len(text.split()) == 1 for text in texts)
    if table.name == "letters":
        return Vocabulary(Lexicon.from_words(words, table.encode), isolated, "the training texts") if words else None
    if config.lexicon is not None:
        pronunciations, source = read_lexicon(Path(config.lexicon), table), config.lexicon
    else:
        pronunciations, source = load_lexicon(), "the simulator's lexicon"
        if not words or not pronunciations.keys() >= set(words):
            return None
    variants = {word: [symbols] for word, symbols in pronunciations.items()}
    return Vocabulary(Lexicon.from_pronunciations(variants, table), isolated, source)


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
