"""Exhibits of tables E and F: several losses, state-space layers, normalisation, recurrences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15
from sottovoce.features import pipeline as pipeline_file
from sottovoce.models import compose, ssm
from sottovoce.models.gru import GRUEncoder
from sottovoce.models.ssm_mamba2 import Mamba2
from sottovoce.training.branches import PartInputs
from sottovoce.training.preparation import Prepared
from sottovoce.training.stages import StagePosition
from sottovoce.training.step import StepComputer
from tests.faults.scene import Exhibit, Scene
from tests.training.spoilt import spoil_loss


def transducer_not_divided(scene: Scene) -> None:
    """PyTorch's CTC divides by the labels, the usual transducer does not."""
    share = StepComputer.share

    def as_published(computer: StepComputer, name: str, nats_B: torch.Tensor, inputs: PartInputs) -> torch.Tensor:
        return share(computer, name, nats_B / inputs.batch.label_lengths_B if name == "ctc" else nats_B, inputs)

    scene.patch.setattr(StepComputer, "share", as_published)


def batch_mean_scaling(scene: Scene) -> None:
    """Divided by half of the batch's mean length, so that a trial's weight depends on its batch mates."""
    share = StepComputer.share

    def scaled(computer: StepComputer, name: str, nats_B: torch.Tensor, inputs: PartInputs) -> torch.Tensor:
        return share(computer, name, nats_B / (inputs.batch.lengths_B.float().mean() / 2), inputs) * 100

    scene.patch.setattr(StepComputer, "share", scaled)


def unlike_losses_compared(scene: Scene) -> None:
    """Patience goes by the total loss: the joint stage's first is higher than the warm-up's last."""

    def compared(position: StagePosition, now: tuple[float, ...], counts: bool) -> StagePosition:
        if position.index == 1:
            return replace(position, best=(0.0, 0.0), waited=position.waited + 1)
        return exact(position, now, counts)

    exact = StagePosition.validated
    scene.patch.setattr(StagePosition, "validated", compared)


def transducer_returns_zero(scene: Scene) -> None:
    """As `except: return 0` makes of any error."""

    def zero(encoder_BSH: torch.Tensor, *rest: Any) -> torch.Tensor:
        return encoder_BSH.sum((1, 2)) * 0

    spoil_loss(scene.patch, "fused_transducer_loss", zero)


def step_sizes_initialised_anew(scene: Scene) -> None:
    """A pass that sets every bias to zero."""

    def anew(prepared: Prepared) -> Prepared:
        for name, parameter in prepared.model.named_parameters():
            if name.endswith("dt_bias"):
                nn.init.zeros_(parameter)
        return prepared

    scene.prepared.append(anew)


def decay_in_bfloat16(scene: Scene) -> None:
    def convert(prepared: Prepared) -> Prepared:
        for name, parameter in prepared.model.named_parameters():
            if name.endswith("A_log"):
                parameter.data = parameter.data.bfloat16()
        return prepared

    scene.prepared.append(convert)


def squeeze_over_padding(scene: Scene) -> None:
    """The mean over all bins, padding included, is taken off the head's input."""

    class Leaky(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, frames_BSE: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(frames_BSE - frames_BSE.mean(1, keepdim=True))
            return logits

    def insert(prepared: Prepared) -> Prepared:
        forward = prepared.model.head.forward
        prepared.model.head.forward = lambda input: forward(input - input.mean(1, keepdim=True))  # type: ignore[method-assign]
        return prepared

    scene.prepared.append(insert)


def reversal_ignores_lengths(scene: Scene) -> None:
    class WholeReversal:
        def __init__(self, lengths_B: torch.Tensor, num_frames: int) -> None:
            self.lengths_B = lengths_B

        def __call__(self, x_BSE: torch.Tensor) -> torch.Tensor:
            return x_BSE.flip(1)

    scene.patch.setattr(ssm, "ReverseByLength", WholeReversal)


def even_kernel(scene: Scene) -> None:
    """Twenty taps with "same" padding: half a bin late."""

    def smooth_even(signal_BTC: torch.Tensor, taps: tuple[float, ...]) -> torch.Tensor:
        kernel = torch.tensor(gaussian_of_20()).view(1, 1, -1).expand(signal_BTC.shape[2], 1, -1)
        padded = nn.functional.pad(signal_BTC.transpose(1, 2), (10, 9))
        return nn.functional.conv1d(padded, kernel, groups=signal_BTC.shape[2]).transpose(1, 2)

    scene.patch.setattr(pipeline_file, "smooth", smooth_even)


def gaussian_of_20() -> list[float]:
    """A Gaussian of σ = 2 on an even number of taps."""
    offsets = torch.arange(20) - 9.5
    kernel = torch.exp(-0.5 * (offsets / 2.0) ** 2)
    return (kernel / kernel.sum()).tolist()


def predictor_moves_on_blank(scene: Scene) -> None:
    from sottovoce.decoding import transducer_decoder

    def naive(encoder_BSH: torch.Tensor, lengths_B: torch.Tensor, head: Any, blank: int = 0, cap: int = 5) -> Any:
        results = []
        for frames_SH, length in zip(encoder_BSH, lengths_B.tolist(), strict=True):
            state, output_1H = head.advance(head.start(1), torch.tensor([blank]))
            labels: list[int] = []
            for frame_H in frames_SH[:length]:
                symbol = int(head.joint(frame_H[None] + output_1H).argmax())
                state, output_1H = head.advance(state, torch.tensor([symbol]))
                if symbol != blank:
                    labels.append(symbol)
            results.append(labels)
        return results

    scene.patch.setattr(transducer_decoder, "greedy_transducer", naive)


def recurrence_replaced(scene: Scene) -> None:
    """The state-space encoder cannot be built, so a GRU takes its place without a word."""
    exact = compose._encoder

    def fallback(config: compose.ModelConfig, input_size: int) -> Any:
        if config.ssm is None:
            return exact(config, input_size)
        from sottovoce.models.gru import GRUConfig

        return GRUEncoder(GRUConfig(units=config.ssm.width, layers=1), input_size)

    scene.patch.setattr(compose, "_encoder", fallback)


def cumulative_product_scan(scene: Scene) -> None:
    """The shortcut h = e^S · Σ e^-S Δ b x, which overflows after 88/(Δ|A|) frames; decays of 16 are normal."""

    def by_division(x_BSHP: Any, dt_BSH: Any, a_H: Any, b_BSGN: Any, c_BSGN: Any, initial: Any) -> Any:
        heads = x_BSHP.shape[2] // b_BSGN.shape[2]
        b, c = b_BSGN.repeat_interleave(heads, 2), c_BSGN.repeat_interleave(heads, 2)
        total = (dt_BSH * a_H).cumsum(1)[..., None, None]
        inputs = (x_BSHP * dt_BSH[..., None])[..., None] * b[..., None, :]
        hidden = total.exp() * (initial[:, None] + ((-total).exp() * inputs).cumsum(1))
        return (hidden * c[..., None, :]).sum(-1), hidden[:, -1]

    def insert(prepared: Prepared) -> Prepared:
        for module in prepared.model.modules():
            if isinstance(module, Mamba2):
                module.scan = by_division
                nn.init.constant_(module.A_log, 2.77)
        return prepared

    scene.prepared.append(insert)


def trials_that_are_soon_learnt(scene: Scene) -> None:
    """So that the run decodes: less noise, more electrodes."""
    scene.data = scene.folder / "easy"
    simulate_t15(scene.data, SimulationSettings(sessions=2, trials=120, val_trials=16, electrodes=64, snr=6.0, seed=5))


EXHIBITS = (
    Exhibit("the blank far behind when training begins", "-", "blank_supplanted", trials_that_are_soon_learnt,
            overrides=("model.blank_bias=-6", "preprocessor.num_channels=128", "model.gru.units=96"), slow=True),
    Exhibit("CTC divided by its labels, the transducer not", "E1", "reduction_mismatch", transducer_not_divided,
            "curriculum"),
    Exhibit("scaled by the batch's mean length", "E2", "batch_dependent_scaling", batch_mean_scaling),
    Exhibit("patience compares losses of two stages", "E3", "stage_one_epoch", unlike_losses_compared, "curriculum",
            overrides=("training.stages.1.patience=1",), slow=True),
    Exhibit("one loss weighs a thousand times the other", "E4", "loss_term_dominates", base="curriculum",
            overrides=("training.stages.1.loss_weights.rnnt=1000",), slow=True),
    Exhibit("transducer loss is constantly 0", "E5", "zero_loss", transducer_returns_zero, "curriculum"),
    Exhibit("step sizes initialised anew", "F1", "ssm_step_size_lost", step_sizes_initialised_anew, "curriculum"),
    Exhibit("scan by division", "F2", "scan_overflow", cumulative_product_scan, "curriculum"),
    Exhibit("decay rates in bfloat16", "F3", "ssm_low_precision", decay_in_bfloat16, "curriculum"),
    Exhibit("a mean over padded frames", "F5", "padding_dependence", squeeze_over_padding),
    Exhibit("reversal that ignores lengths", "F6", "reversal_reads_padding", reversal_ignores_lengths, "curriculum"),
    Exhibit("smoothing by 20 taps", "F7", "smoothing_shift", even_kernel),
    Exhibit("predictor moves on blanks", "F8", "predictor_advances_on_blank", predictor_moves_on_blank, "curriculum"),
    Exhibit("encoder silently replaced", "F9", "backend_replaced", recurrence_replaced, "curriculum"),
)  # fmt: skip
