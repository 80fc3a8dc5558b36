"""Validation while training: the code that `sottovoce evaluate` runs, in the precision of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed

from sottovoce.core.trial import TrialSet
from sottovoce.evaluation.inference import TextDecoder, TrialOutput, run_model
from sottovoce.evaluation.scoring import METRICS, Hypothesis, score
from sottovoce.losses.ctc import ctc_loss
from sottovoce.training.module import DecoderTraining


@dataclass(frozen=True)
class Validation:
    """The trials to decode and how; each process takes its share, the main process scores all."""

    trial_set: TrialSet
    indices: Sequence[int]
    text_decoder: TextDecoder
    batch_size: int

    def values(self, module: DecoderTraining) -> dict[str, float]:
        """`val/loss` (nats an utterance) and the error rates that can be computed; empty in other processes."""
        share = self.indices[module.global_rank :: module.trainer.world_size]
        outputs = run_model(
            module.model,
            module.pipeline,
            self.trial_set,
            share,
            batch_size=self.batch_size,
            blank=module.blank,
            device=module.device,
            autocast=module.trainer.precision_plugin.forward_context,
        )
        found = [(self.text_decoder(output), _nats(output, module.blank)) for output in outputs]
        if module.trainer.world_size > 1:
            found = _gathered(found, module.global_rank, module.trainer.world_size)
        if not found:
            return {}
        found.sort(key=lambda pair: pair[0].trial.trial_id)
        overall = score(
            [hypothesis for hypothesis, _ in found],
            self.text_decoder.table,
            decoder=self.text_decoder.decoder,
        ).overall
        rates = {f"val/{name}": overall.rates[name].value for name in METRICS if name in overall.rates}
        return {
            "val/loss": sum(nats for _, nats in found) / len(found),
            **{name: value for name, value in rates.items() if value is not None},
            "val/blank_fraction": overall.blank.value or 0.0,
        }


def _nats(output: TrialOutput, blank: int) -> float:
    labels = output.trial.labels or ()
    log_probs = torch.from_numpy(output.log_probs_SV)[None]
    lengths = torch.tensor([len(output.log_probs_SV)]), torch.tensor([len(labels)])
    return float(ctc_loss(log_probs, torch.tensor([labels], dtype=torch.int64), *lengths, blank))


def _gathered(found: list[tuple[Hypothesis, float]], rank: int, world_size: int) -> list[tuple[Hypothesis, float]]:
    parts: list[list[tuple[Hypothesis, float]]] | None = [[] for _ in range(world_size)] if rank == 0 else None
    torch.distributed.gather_object(found, parts)
    return [pair for part in parts for pair in part] if parts is not None else []
