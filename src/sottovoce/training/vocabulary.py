"""The words a run may decode: those of its dictionary or of its training texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sottovoce.core.symbols import SymbolTable
from sottovoce.core.text import normalise_text
from sottovoce.core.trial import Trial
from sottovoce.data.config import DataConfig
from sottovoce.data.pronunciation import read_lexicon
from sottovoce.data.simulate.lexicon import load_lexicon
from sottovoce.decoding.lexicon import Lexicon
from sottovoce.runs.vocabulary import Vocabulary


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
