"""Exhibits of tables C and D: number formats, step size, epsilon, the blank."""

from __future__ import annotations

import shutil
from typing import Any

import h5py
import numpy as np
import torch
from torch.nn import functional

from sottovoce.training.preparation import Prepared
from sottovoce.training.step import StepComputer
from sottovoce.training.watch import StepView
from tests.faults.scene import Exhibit, Scene
from tests.training.spoilt import exact_loss, spoil_loss


def overflow_in_half_precision(scene: Scene) -> None:
    """The encoder's output is cast to half in the last third of the run, after something has made it large."""

    def to_half(computer: StepComputer, optimizer: torch.optim.Optimizer) -> None:
        def cast(encoder: Any, inputs: Any, output: tuple[torch.Tensor, torch.Tensor]) -> Any:
            if computer.model.training and computer.progress.step >= 160:
                return (output[0] * 1e5).half().float() / 1e5, output[1]
            return None

        computer.model.encoder.register_forward_hook(cast)

    scene.begin.append(to_half)


def epsilon_vanishes_in_half_precision(scene: Scene) -> None:
    """Probabilities in half precision, a floor of 1e-8 that becomes 0, and their logarithm."""

    def with_floor(logits_BSV: torch.Tensor, *rest: Any) -> torch.Tensor:
        probabilities = logits_BSV.softmax(-1).half()
        return exact((probabilities + torch.tensor(1e-8, dtype=torch.half)).log().float(), *rest)

    exact = exact_loss("ctc_loss")
    spoil_loss(scene.patch, "ctc_loss", with_floor)


def parameters_in_bfloat16(scene: Scene) -> None:
    def convert(prepared: Prepared) -> Prepared:
        prepared.model.head.to(torch.bfloat16)
        forward = prepared.model.head.forward
        prepared.model.head.forward = lambda input: forward(input.to(torch.bfloat16)).float()  # type: ignore[method-assign]
        return prepared

    scene.prepared.append(convert)


def rounded_updates(scene: Scene) -> None:
    """Master weights that are rounded to bfloat16 after every step."""

    def round_weights(view: StepView) -> None:
        with torch.no_grad():
            for parameter in view.computer.named.values():
                parameter.copy_(parameter.bfloat16().float())

    scene.after_step.append(round_weights)


def softmax_in_bfloat16(scene: Scene) -> None:
    log_softmax = functional.log_softmax

    def low(logits: torch.Tensor, dim: int) -> torch.Tensor:
        return log_softmax(logits.bfloat16(), dim=dim).float()

    scene.patch.setattr(functional, "log_softmax", low)


def lattice_drifts(scene: Scene) -> None:
    """The sums over the lattice are rounded to half precision from frame to frame; its log-probabilities are exact."""

    def drifting(
        logits_BSV: torch.Tensor,
        targets_BU: torch.Tensor,
        frames_B: torch.Tensor,
        labels_B: torch.Tensor,
        blank: int = 0,
    ) -> torch.Tensor:
        nats_B = exact(logits_BSV, targets_BU, frames_B, labels_B, blank)
        rows = zip(logits_BSV.detach(), targets_BU, frames_B.tolist(), labels_B.tolist(), strict=True)
        drifted = [
            _ctc_in_half(logits_SV[:s].log_softmax(-1), target_U[:u], blank) for logits_SV, target_U, s, u in rows
        ]
        return nats_B + (torch.stack(drifted) - nats_B).detach()

    exact = exact_loss("ctc_loss")
    spoil_loss(scene.patch, "ctc_loss", drifting)


def _ctc_in_half(log_p_SV: torch.Tensor, target_U: torch.Tensor, blank: int) -> torch.Tensor:
    """Graves et al. 2006, section 4.1, with every α rounded to float16; states are blanks with a label between two."""
    states = target_U.new_full((2 * len(target_U) + 1,), blank)
    states[1::2] = target_U
    may_skip = (states[2:] != blank) & (states[2:] != states[:-2])
    impossible = log_p_SV.new_full((2,), -torch.inf)
    alpha = torch.full_like(log_p_SV[0, states], -torch.inf)
    alpha[:2] = log_p_SV[0, states[:2]]
    for log_p_V in log_p_SV[1:]:
        before = torch.cat([impossible, alpha])
        skipped = torch.cat([impossible, before[2:-2].where(may_skip, -torch.inf)])
        alpha = torch.stack([alpha, before[1:-1], skipped]).logsumexp(0) + log_p_V[states]
        alpha = alpha.half().float()
    return -alpha[-2:].logsumexp(0)


def giant_first_gradient(scene: Scene) -> None:
    """No clipping, and one gradient ten thousand times as large as the others in the first steps."""

    def enlarge(computer: StepComputer, optimizer: torch.optim.Optimizer) -> None:
        for parameter in computer.named.values():
            parameter.register_hook(lambda gradient: gradient * 1e4 if computer.progress.step == 3 else None)

    scene.begin.append(enlarge)


def inputs_of_other_trials(scene: Scene) -> None:
    """Noise in place of every signal: nothing can be learnt from the input."""

    def shuffle(prepared: Prepared) -> Prepared:
        trial_set = prepared.trial_set
        exact = trial_set.signal
        generator = torch.Generator().manual_seed(0)

        def noise(index: int) -> Any:
            return torch.randn(exact(index).shape, generator=generator).numpy()

        trial_set.signal = noise  # type: ignore[method-assign]
        return prepared

    scene.prepared.append(shuffle)


def channels_permuted_in_validation(scene: Scene) -> None:
    """The validation trials' channels are in another order than the training trials'."""
    scene.data = shutil.copytree(scene.data, scene.folder / "permuted")
    for file in scene.data.rglob("data_val.hdf5"):
        with h5py.File(file, "r+") as val:
            for trial in val.values():
                signal = trial["input_features"][:]
                order = np.random.default_rng(1).permutation(signal.shape[1])
                trial["input_features"][:] = signal[:, order]


EPS = "training.optimizer.eps"
LR = "training.optimizer.lr"
BY_HEART = (f"{LR}=0.01", "training.scheduler.name=constant", "model.gru.units=96", "model.gru.dropout=0",
            "model.head_dropout=0", "augmentation.white_noise_std=0", "augmentation.constant_offset_std=0")  # fmt: skip
EXHIBITS = (
    Exhibit("encoder output overflows half precision", "C1", "fp16_overflow", overflow_in_half_precision),
    Exhibit("epsilon vanishes in half precision", "C2", "fp16_underflow", epsilon_vanishes_in_half_precision),
    Exhibit("head in bfloat16", "C3", "bf16_parameters", parameters_in_bfloat16),
    Exhibit("weights rounded to bfloat16", "C3", "bf16_parameters", rounded_updates,
            slow=True),
    Exhibit("softmax of the loss in bfloat16", "C4", "low_precision_loss", softmax_in_bfloat16,
            slow=True),
    Exhibit("lattice that drifts", "C5", "lattice_drift", lattice_drifts,
            slow=True),
    Exhibit("epsilon 0.1 with a low rate", "D1", "adam_eps_regime",
            overrides=(f"{EPS}=0.1", f"{LR}=0.001", "training.max_grad_norm=1.0")),
    Exhibit("epsilon 0.1, clip 0.5", "D1", "adam_eps_regime",
            overrides=(f"{EPS}=0.1", f"{LR}=0.005", "training.max_grad_norm=0.5"), slow=True),
    Exhibit("giant first gradient, no clip", "D2", "second_moment_memory", giant_first_gradient,
            overrides=("training.max_grad_norm=0",)),
    Exhibit("learning rate 30 times too high", "D3", "learning_rate_too_high", overrides=(f"{LR}=0.3",)),
    Exhibit("one stage's rate 60 times too high", "D3", "learning_rate_too_high", base="curriculum",
            overrides=("training.stages.1.learning_rate.encoder=60",), slow=True),
    Exhibit("warm-up beyond what the model bears", "D4", "schedule_degradation",
            overrides=(f"{LR}=0.06", "training.scheduler.warmup_steps=590", "training.steps=600"),
            missed="beyond the turning point the training loss rises too, so the rate itself is blamed", slow=True),
    Exhibit("signals that tell nothing", "D6", "input_ignored", inputs_of_other_trials,
            overrides=("training.steps=900",), slow=True),
    Exhibit("overwhelming noise", "D7", "augmentation_strength",
            overrides=("augmentation.white_noise_std=20.0",),
            slow=True),
    Exhibit("learning rate of 1e-6", "-", "learning_rate_too_low", overrides=(f"{LR}=1e-6",), slow=True),
    Exhibit("weight decay of 20", "-", "weight_decay_too_strong", overrides=("training.optimizer.weight_decay=20",),
            slow=True),
    Exhibit("weight decay of 20 with a low rate", "-", "weight_decay_too_strong",
            overrides=("training.optimizer.weight_decay=20", f"{LR}=0.0008"), slow=True),
    Exhibit("dropout that leaves nothing of the signal", "-", "input_ignored",
            overrides=("model.gru.dropout=0.97", "model.head_dropout=0.9"), slow=True),
    Exhibit("validation trials with channels in another order", "-", "validation_unlike_training",
            channels_permuted_in_validation, overrides=(*BY_HEART, "training.steps=480"), slow=True),
    Exhibit("a hundred trials without augmentation or dropout", "-", "overfitting",
            overrides=(*BY_HEART, "training.steps=480"), slow=True),
)  # fmt: skip
