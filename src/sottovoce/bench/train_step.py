"""What training costs beside the arithmetic it cannot avoid.

Three contestants take turns, step by step, in one process on the same kind of batch:

* ours: the whole step of a run (batch, augmentation, forward, backward, guard, clip, optimiser, logging);
* bare: forward, backward and AdamW on tensors that already lie in memory;
* published: the step of nejm-brain-to-text's trainer, re-created from its description, as it runs without a compiler
  (torch.compile needs one); its loader's four processes, which read HDF5 on the same cores, are left out in its favour.

Legend: B trials, T bins, C channels, S frames.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from sottovoce.bench.rows import Row
from sottovoce.core.symbols import PHONEMES
from sottovoce.core.trial import Batch, Trial
from sottovoce.data.collation import collate
from sottovoce.data.loading import PreparedTrials
from sottovoce.features.pipeline import FeaturePipeline
from sottovoce.features.smoothing import gaussian_taps
from sottovoce.losses.ctc import ctc_loss
from sottovoce.models.compose import DecoderModel, build_model
from sottovoce.models.gru import GRUEncoder
from sottovoce.training.composition import compose_config
from sottovoce.training.config import RunConfig
from sottovoce.training.loop import RunLoop
from sottovoce.training.optimizer import build_optimizer
from sottovoce.training.preparation import Prepared, curriculum_of
from sottovoce.training.run import build_trainer, fit
from sottovoce.training.step import StepRecord
from sottovoce.training.watch import Watch

WARM_UP_STEPS = 3
NUM_LABELS = 27


@dataclass(frozen=True)
class Shape:
    """A model and its input."""

    layers: int
    units: int
    channels: int
    batch: int = 16
    bins: int = 313

    def __str__(self) -> str:
        return f"GRU {self.layers}×{self.units}, {self.channels} channels, B{self.batch} T{self.bins}"


SHAPES = (Shape(2, 128, 128), Shape(3, 256, 512))


class RandomTrials:
    """Trials of equal length in memory, so that every batch is the same amount of work."""

    def __init__(self, shape: Shape, num_trials: int = 64, num_sessions: int = 4) -> None:
        generator = np.random.default_rng(0)
        self.sessions = tuple(f"session-{i}" for i in range(num_sessions))
        self.trials = tuple(
            Trial(
                trial_id=str(i),
                split="train",
                session=self.sessions[i % num_sessions],
                num_steps=shape.bins,
                labels=tuple(generator.integers(1, 40, NUM_LABELS).tolist()),
                text=None,
                file=Path("memory"),
            )
            for i in range(num_trials)
        )
        self._signals = generator.standard_normal((num_trials, shape.bins, shape.channels), np.float32)

    def signal(self, index: int) -> npt.NDArray[np.float32]:
        """Signal of trial `index`."""
        signal: npt.NDArray[np.float32] = self._signals[index]
        return signal


def bench_train_step(rounds: int = 20) -> list[Row]:
    """One row a contestant and shape; every round takes one step of each."""
    return [row for shape in SHAPES for row in _compare(shape, rounds)]


def prepared_run(shape: Shape, rounds: int) -> Prepared:
    """A run of that many counted steps, after `WARM_UP_STEPS` and before a last one that is not counted."""
    overrides = [
        f"preprocessor.num_channels={shape.channels}",
        f"model.gru.layers={shape.layers}",
        f"model.gru.units={shape.units}",
        f"training.batch_size={shape.batch}",
        f"training.steps={WARM_UP_STEPS + rounds + 1}",  # the last step writes a checkpoint and is not counted
        f"training.checkpoint_every_steps={WARM_UP_STEPS + rounds + 1}",
        "training.scheduler.warmup_steps=0",
        "data.use_length_bucketing=false",
    ]
    config = compose_config(["recipe=demo", "data.data_root=memory", *overrides])
    trial_set = PreparedTrials(RandomTrials(shape), 1, shape.channels, cache=True)
    model = model_of(config, len(trial_set.sessions))
    indices = list(range(len(trial_set.trials)))
    return Prepared(
        config=config,
        trial_set=trial_set,
        vocabulary=None,
        model=model,
        pipeline=FeaturePipeline(config.preprocessor, config.augmentation),
        train_indices=indices,
        val_indices=[],
        skipped=(),
        left_out={},
        curriculum=curriculum_of(config, model, len(indices)),
    )


def _compare(shape: Shape, rounds: int) -> list[Row]:
    prepared = prepared_run(shape, rounds)
    config, trial_set = prepared.config, prepared.trial_set
    others = {"bare": Bare(config, trial_set), "published": _Published(config, trial_set)}
    with tempfile.TemporaryDirectory() as folder:
        loop = TimedLoop(prepared, Path(folder), others)
        fit(prepared, loop, build_trainer(prepared.config))
    kept = {name: found[WARM_UP_STEPS:-1] for name, found in loop.times.items()}
    names = {
        "ours": "sottovoce, whole step",
        "bare": "bare forward + backward + AdamW",
        "published": "nejm-brain-to-text step, re-created",
    }
    return [Row(names[name], str(shape), found, kept["ours"]) for name, found in kept.items()]


class TimedLoop(RunLoop):
    """A run whose steps alternate with those of the other contestants."""

    def __init__(
        self, prepared: Prepared, run_dir: Path, others: Mapping[str, Bare], watch: Watch | None = None
    ) -> None:
        super().__init__(prepared, run_dir, watch)
        self.others = others
        self.times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
        self.began = 0.0

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        super().begin(optimizer)
        self.began = time.perf_counter()

    def after_step(self, record: StepRecord) -> None:
        super().after_step(record)
        self.times["ours"].append(time.perf_counter() - self.began)
        for name, contestant in self.others.items():
            start = time.perf_counter()
            contestant.step()
            self.times[name].append(time.perf_counter() - start)
        self.began = time.perf_counter()


def model_of(config: RunConfig, num_sessions: int) -> DecoderModel:
    """The model of `config` with fresh weights."""
    channels = config.preprocessor.num_channels
    return build_model(
        replace(config.model, num_channels=channels, num_sessions=num_sessions, num_symbols=len(PHONEMES))
    )


class Bare:
    """Forward, backward, AdamW: what no trainer can avoid."""

    def __init__(self, config: RunConfig, trial_set: PreparedTrials) -> None:
        self.model = model_of(config, len(trial_set.sessions))
        self.optimizer = build_optimizer(self.model, config.training.optimizer)
        self.batch = collate(trial_set, range(config.training.batch_size))

    def step(self) -> None:
        logits_BSV, frames_B = self.model(self.batch.signal, self.batch.lengths_B, self.batch.session_B)
        nats_B = ctc_loss(logits_BSV, self.batch.labels_BU, frames_B, self.batch.label_lengths_B)
        nats_B.mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()


class _Published(Bare):
    """The published trainer's step on the same parameters: its noise, depthwise smoothing, patches and clipping."""

    def __init__(self, config: RunConfig, trial_set: PreparedTrials) -> None:
        super().__init__(config, trial_set)
        self.trial_set = trial_set
        self.augmentation = config.augmentation
        self.channels = config.preprocessor.num_channels
        self.kernel_C1K = torch.tensor(gaussian_taps(config.preprocessor.smoothing_sigma_bins)).repeat(
            self.channels, 1, 1
        )

    def step(self) -> None:
        chosen = np.random.default_rng(0).integers(0, len(self.trial_set.trials), len(self.batch))
        batch = collate(self.trial_set, chosen.tolist())
        signal_BTC, lengths_B = self._augmented(batch)
        logits_BSV, frames_B = self._logits(signal_BTC, batch.session_B), self.model.output_lengths(lengths_B)
        log_probs = logits_BSV.log_softmax(2).permute(1, 0, 2)
        nats_B = functional.ctc_loss(log_probs, batch.labels_BU, frames_B, batch.label_lengths_B, reduction="none")
        loss = nats_B.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0, error_if_nonfinite=True, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def _augmented(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        signal = batch.signal + self.augmentation.white_noise_std * torch.randn(batch.signal.shape)
        signal = signal + self.augmentation.constant_offset_std * torch.randn(len(batch), 1, self.channels)
        cut = int(torch.randint(0, 3, ()))
        smoothed = functional.conv1d(
            signal[:, cut:].permute(0, 2, 1), self.kernel_C1K, padding="same", groups=self.channels
        )
        return smoothed.permute(0, 2, 1), batch.lengths_B - cut

    def _logits(self, signal_BTC: torch.Tensor, session_B: torch.Tensor) -> torch.Tensor:
        """Logits [B, S, V]: one einsum over stacked session matrices, and patches unfolded along the last axis."""
        model, patch = self.model, self.model.config.patch
        adapter, encoder = model.session_adapter, model.encoder
        assert adapter is not None and patch is not None and isinstance(encoder, GRUEncoder)
        weights_BCC = torch.stack([adapter.weights[i] for i in session_B])
        biases_B1C = torch.stack([adapter.biases[i] for i in session_B])
        adapted = functional.softsign(torch.einsum("btc,bcd->btd", signal_BTC, weights_BCC) + biases_B1C)
        channels_first_BCT = functional.dropout(adapted, adapter.dropout.p, adapter.training).permute(0, 2, 1)
        windows_BCSK = channels_first_BCT.unfold(2, patch.size, patch.stride)
        frames_BSD = windows_BCSK.permute(0, 2, 3, 1).flatten(2)
        logits: torch.Tensor = model.head(encoder.gru(frames_BSD, encoder.start(len(signal_BTC)))[0])
        return logits
