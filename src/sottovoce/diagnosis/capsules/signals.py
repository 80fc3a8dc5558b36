"""How large the signals of a step's trials are, as the model sees them: one number out of scale is enough for a NaN."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch

from sottovoce.core.trial import Batch
from sottovoce.diagnosis.capsules.tracing import OUTLYING
from sottovoce.features.pipeline import FeaturePipeline

ABOVE_OTHERS: Final = 100.0
"""Times the largest feature of an ordinary trial of the batch. Trials of one preparation stay within ten times of each
other: official T15 features are clipped to ±10 (a chosen threshold)."""


@dataclass(frozen=True)
class Signal:
    """The signal of one trial."""

    finite: bool
    """As read, in its valid part."""
    largest: float
    """Largest finite magnitude as read."""
    place: str
    """Where that is: `bin 10, channel 5`, or `sample 1000`; of a signal that is not finite the first such number."""
    others: float | None
    """Largest finite magnitude of an ordinary trial of the same batch (the median); None for a trial on its own."""
    out_of_scale: bool
    """Finite as read, but its features are not, or exceed `OUTLYING` or `ABOVE_OTHERS` times those of others."""

    @property
    def told(self) -> str:
        """What is wrong with it, for a finding's evidence."""
        if not self.finite:
            return f"its signal holds numbers that are not finite, first at {self.place}"
        beside = "" if self.others is None else f"; an ordinary trial of the batch reaches {self.others:.3g}"
        return f"its signal reaches {self.largest:.3g} at {self.place}{beside}"

    @property
    def remedy(self) -> str:
        """What to do about one trial that is out of scale among ordinary ones; empty: the catalogue's advice."""
        if self.others is None or self.largest <= ABOVE_OTHERS * self.others:
            return ""
        return (
            f"Look at {self.place} of that trial in the data: mend the value, or take the trial out of the data set; "
            "sottovoce check names trials whose mean is out of scale"
        )


def look_at_signals(pipeline: FeaturePipeline, batches: Iterable[Batch]) -> dict[str, Signal]:
    """The signals of the trials in `batches`, by trial id; the batches are left as they are."""
    raw: dict[str, torch.Tensor] = {}
    features: dict[str, torch.Tensor] = {}
    for batch in batches:
        seen = pipeline.evaluate(batch.map_tensors(torch.Tensor.clone))
        for row, trial in enumerate(batch.trial_ids):
            raw[trial] = batch.signal[row, : int(batch.lengths_B[row])]
            features[trial] = seen.signal[row, : int(seen.lengths_B[row])]
    largest = {trial: _largest(values) for trial, values in raw.items()}
    of_features = {trial: _largest(values) for trial, values in features.items()}
    found = {}
    for trial, values in raw.items():
        others = [other for other in raw if other != trial]
        usual = statistics.median(of_features[other] for other in others) if others else None
        finite = bool(values.isfinite().all())
        beyond = of_features[trial] > OUTLYING or (bool(usual) and of_features[trial] > ABOVE_OTHERS * (usual or 0.0))
        found[trial] = Signal(
            finite=finite,
            largest=largest[trial],
            place=_place(values if finite else ~values.isfinite()),
            others=statistics.median(largest[other] for other in others) if others else None,
            out_of_scale=finite and (beyond or not bool(features[trial].isfinite().all())),
        )
    return found


def _largest(values: torch.Tensor) -> float:
    """The largest finite magnitude; 0 of nothing."""
    return float(torch.where(values.isfinite(), values, 0).abs().max()) if values.numel() else 0.0


def _place(values: torch.Tensor) -> str:
    """Where the largest magnitude is."""
    at = int(values.abs().flatten().argmax() if values.is_floating_point() else values.flatten().int().argmax())
    return f"sample {at}" if values.dim() == 1 else "bin {}, channel {}".format(*divmod(at, values.shape[1]))
