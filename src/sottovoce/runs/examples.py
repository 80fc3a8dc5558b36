"""Example trials of an evaluation: the posteriorgrams that the report draws, in one file a split.

`evaluation/examples.SPLIT.npz` holds an array `log_probs_I` (float16 [S, V]) for the I-th example and a JSON
string `meta` with everything else.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sottovoce.core.errors import CheckpointError
from sottovoce.runs.directory import RunDirectory


@dataclass(frozen=True)
class Example:
    """One trial with the natural-log symbol probabilities of each frame."""

    role: str
    """Why it was chosen: `best`, `median` or `worst`."""
    trial_id: str
    labels: tuple[int, ...]
    hypothesis: tuple[int, ...]
    """Symbol ids that were decoded."""
    reference_text: str | None
    hypothesis_text: str | None
    log_probs_SV: npt.NDArray[np.floating] = field(repr=False, compare=False)
    """[S, V], valid frames only."""


@dataclass(frozen=True)
class Examples:
    """Examples of one split under one decoder."""

    split: str
    decoder: str
    symbols: str
    """Name of the symbol table."""
    frame_ms: float
    """Time between two frames."""
    examples: tuple[Example, ...]


def write_examples(run_dir: Path, examples: Examples) -> Path:
    """Write `evaluation/examples.SPLIT.npz`, replacing it as a whole."""
    path = RunDirectory(run_dir).examples(examples.split)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {name: getattr(examples, name) for name in ("split", "decoder", "symbols", "frame_ms")}
    fields = [asdict(example) for example in examples.examples]
    arrays = {f"log_probs_{i}": np.asarray(f.pop("log_probs_SV"), np.float16) for i, f in enumerate(fields)}
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, allow_pickle=False, meta=np.array(json.dumps(meta | {"examples": fields})), **arrays)
    temporary.replace(path)
    return path


def read_examples(path: Path) -> Examples:
    """The examples of one file, `log_probs_SV` as float32.

    Raises:
        CheckpointError: the file cannot be read, or something else wrote it.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            meta = json.loads(str(stored["meta"]))
            fields = meta.pop("examples")
            examples = tuple(
                Example(
                    **(f | {"labels": tuple(f["labels"]), "hypothesis": tuple(f["hypothesis"])}),
                    log_probs_SV=stored[f"log_probs_{i}"].astype(np.float32),
                )
                for i, f in enumerate(fields)
            )
            return Examples(**meta, examples=examples)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} does not hold examples of an evaluation ({error}); evaluate again") from error
