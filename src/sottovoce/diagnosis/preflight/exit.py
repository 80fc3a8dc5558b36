"""Preflight of a run's end: save a checkpoint, load it, decode and score two trials with it, in a temporary folder."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from sottovoce.core.checkpoints import has_checkpoint, write_checkpoint
from sottovoce.core.errors import SottovoceError
from sottovoce.core.findings import Finding
from sottovoce.core.trial import TrialSet
from sottovoce.diagnosis.causes import found
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.evaluation.emissions import decoded
from sottovoce.evaluation.scoring import score
from sottovoce.runs.directory import RunDirectory
from sottovoce.runs.trained_decoder import TrainedDecoder, load
from sottovoce.training import run as training_run

FAILURES: Final = (
    SottovoceError,
    OSError,
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What code that nobody has run yet ends with."""


def check_exit(untrained: UntrainedRun) -> Iterator[Finding]:
    """What otherwise happens first when everything has been trained."""
    with tempfile.TemporaryDirectory() as folder:
        doing = "saving a checkpoint"
        try:
            _save(untrained, Path(folder))
            doing = "loading the checkpoint"
            loaded = _load(untrained, Path(folder))
            differing = _differing(untrained, loaded)
            doing = "decoding and scoring two trials"
            if not differing:
                _score(untrained, loaded)
        except FAILURES as error:  # found now, it costs a second and not the run
            evidence = f"{doing.capitalize()} fails: {type(error).__name__}: {' '.join(str(error).split())}."
            yield found("late_crash", evidence, "preflight")
            return
    if differing:
        evidence = f"The checkpoint does not give back what was saved: {', '.join(differing[:3])}."
        yield found("late_crash", evidence, "preflight")


def _save(untrained: UntrainedRun, run_dir: Path) -> None:
    """The files of a run with a checkpoint of now; its optimiser has no state yet."""
    untrained.enter()
    training_run.write_run_files(run_dir, untrained.prepared)
    parts, state = untrained.loop.checkpoint(untrained.optimizer)
    folder = RunDirectory(run_dir).last
    write_checkpoint(folder, 0, parts, state)
    if not has_checkpoint(folder):
        raise FileNotFoundError(f"no checkpoint in {folder.name} although it was written")


def _load(untrained: UntrainedRun, run_dir: Path) -> TrainedDecoder:
    """The run as `evaluate` reads it, into an empty copy of the model: building a large one anew takes seconds."""
    model = copy.deepcopy(untrained.computer.model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    if training_run.read_run_config(run_dir) != untrained.prepared.config:
        raise ValueError("config.yaml does not give back the run's configuration")
    return load(run_dir, model)


def _differing(untrained: UntrainedRun, loaded: TrainedDecoder) -> list[str]:
    saved, read = untrained.computer.model.state_dict(), loaded.model.state_dict()
    return [name for name in saved if name not in read or not torch.equal(saved[name].cpu(), read[name].cpu())]


class _Cut:
    """A trial set of which only the first bins or samples of each trial are left: decoding takes its time."""

    def __init__(self, source: TrialSet, most_steps: int) -> None:
        self.source, self.most_steps, self.sessions = source, most_steps, source.sessions
        self.trials = tuple(replace(t, num_steps=min(t.num_steps, most_steps)) for t in source.trials)

    def signal(self, index: int) -> npt.NDArray[np.float32]:
        """The beginning of the trial's signal."""
        return self.source.signal(index)[: self.most_steps]


def _score(untrained: UntrainedRun, loaded: TrainedDecoder) -> None:
    """Decode and score the beginnings of two labelled validation trials, of training where there are none."""
    prepared = untrained.prepared
    trials = prepared.trial_set.trials
    usable = [i for i in prepared.val_indices or prepared.train_indices if trials[i].labels]
    indices = sorted(usable, key=lambda i: trials[i].num_steps)[:2]
    loaded = replace(loaded, trained=loaded.model.components)  # by the end they are
    decoder = loaded.decoder()
    cut = _Cut(prepared.trial_set, int(untrained.batch.lengths_B.max()))
    trials_decoded = decoded(loaded, cut, indices, [decoder])
    texts = {trials[i].text or "" for i in prepared.train_indices}
    score(
        [(one.trial, one.hypotheses[0]) for one in trials_decoded],
        loaded.table,
        decoder=decoder.name,
        seed=loaded.seed,
        training_texts=texts,
    )
