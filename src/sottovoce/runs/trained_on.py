"""What a run was trained on, kept with it: speakers and trials.

A run that later teaches another must not have been trained on what the other is judged by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sottovoce.core.errors import CheckpointError
from sottovoce.core.trial import Trial

FILE_NAME = "trained_on.json"
FINGERPRINT_BYTES: Final = 8
"""Two of 100,000 trials share a fingerprint with a probability of 3e-10."""


@dataclass(frozen=True)
class TrainedOn:
    """The trials that a run was trained on, by itself or through those that taught it."""

    speakers: frozenset[str]
    """Empty where the data name none."""
    fingerprints: frozenset[str]

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> TrainedOn:
        """Of a run that trains on `trials`."""
        trials = list(trials)
        speakers = frozenset(trial.speaker for trial in trials if trial.speaker)
        return cls(speakers, frozenset(map(fingerprint, trials)))

    def __or__(self, other: TrainedOn) -> TrainedOn:
        """What either was trained on."""
        return TrainedOn(self.speakers | other.speakers, self.fingerprints | other.fingerprints)


def fingerprint(trial: Trial) -> str:
    """The same for a trial of a data set wherever that lies, whatever is corrected in its text or speaker later.

    Two data sets may use one id for different trials: these are told apart by their lengths.
    """
    identity = f"{trial.trial_id}\n{trial.num_steps}"
    return hashlib.blake2b(identity.encode(), digest_size=FINGERPRINT_BYTES).hexdigest()


def write_trained_on(run_dir: Path, trained_on: TrainedOn) -> None:
    """Keep it with the run."""
    content = {"speakers": sorted(trained_on.speakers), "trials": sorted(trained_on.fingerprints)}
    (run_dir / FILE_NAME).write_text(json.dumps(content), encoding="utf-8")


def read_trained_on(run_dir: Path) -> TrainedOn | None:
    """What `write_trained_on` wrote; None where an older version made the run, or it was imported.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        speakers, trials = content["speakers"], content["trials"]
        if not all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in (speakers, trials)):
            raise ValueError("speakers and trials must be lists of strings")
        return TrainedOn(frozenset(speakers), frozenset(trials))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the run directory is incomplete") from error
