"""The acceptance rows of MODE-SSM, one test a row; what another file tests in depth is asserted here in short.

A5, A7 to A11 are `tests/training/test_curriculum.py` (the loss is the sum of its parts, all stages run, the held
transducer, trainable counts, accumulation, resume); A6 needs minutes of training and is `make behaviour`.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch

from sottovoce.core.errors import DataError
from sottovoce.core.records import read_json_lines
from sottovoce.core.symbols import PHONEMES
from sottovoce.core.trial import Batch
from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15
from sottovoce.features.augmentation import Draws
from sottovoce.losses import transducer_loss
from sottovoce.metrics import percent
from sottovoce.models.compose import ModelConfig, build_model
from sottovoce.models.ssm_config import SSMConfig
from sottovoce.models.stem import StemConfig
from sottovoce.models.transducer import TransducerConfig
from sottovoce.training.branches import CTC, TRANSDUCER, PartInputs
from sottovoce.training.branches.transducer import length_scaled
from sottovoce.training.composition import compose_config
from sottovoce.training.guard import GradientGuard
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import build_trainer, fit

pytestmark = pytest.mark.slow

SMALL = [
    "data.num_workers=0",
    "preprocessor.num_channels=16",
    "model.stem.width=16",
    "model.ssm={layers: 2, width: 16, state_size: 4, head_size: 4}",
    "model.transducer={embedding_size: 6, units: 8, layers: 1, joint_size: 8}",
    "training.stages=[{name: joint, steps: 200, components: [preprocessor, encoder, ctc_decoder, rnnt_decoder], "
    "loss_weights: {ctc: 0.3, rnnt: 1.0}}]",
    "training.rnnt_warmup_batches=0",
    "training.scheduler.warmup_steps=20",
    "training.optimizer.lr=0.003",
    "training.batch_size=2",
    "training.gradient_accumulation_steps=1",
    "training.validate_every_steps=200",
    "training.checkpoint_every_steps=200",
    "training.log_every_steps=1",
    "training.num_threads=1",
]


@pytest.fixture(scope="module")
def small_t15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "small"
    simulate_t15(folder, SimulationSettings(sessions=2, trials=12, val_trials=4, electrodes=8, seed=3))
    return folder


def _loop(data: Path, runs: Path) -> tuple[Prepared, RunLoop]:
    config = compose_config(["recipe=mode_ssm", f"data.data_root={data}", f"runs_dir={runs}", *SMALL])
    prepared = prepare(config)
    return prepared, RunLoop(prepared, runs)


def _metrics(runs: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in read_json_lines(runs / "metrics.jsonl"):
        found.setdefault(record["name"], []).append(record["value"])
    return found


def test_a1_the_transducer_loss_is_finite_positive_and_differentiable() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    arguments = (torch.tensor([[1, 2, 3], [4, 4, 0]]), torch.tensor([5, 4]), torch.tensor([3, 2]))
    nats = transducer_loss(logits, *arguments)
    assert bool((nats > 0).all())
    assert bool(nats.isfinite().all())
    assert torch.autograd.gradcheck(lambda x: transducer_loss(x, *arguments), (logits,))
    with pytest.raises(ValueError, match="blank"):  # an impossible target is an error, never a number
        transducer_loss(logits, torch.tensor([[1, 0, 3], [4, 4, 0]]), *arguments[1:])


@pytest.mark.parametrize(("bins", "labels"), [((50, 45), (10, 8)), ((200, 180), (40, 35))])
def test_a2_transducer_and_ctc_losses_are_of_one_size(bins: tuple[int, int], labels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            stem=StemConfig(width=128),
            ssm=SSMConfig(layers=2, width=128),
            transducer=TransducerConfig(),
            num_channels=512,
            num_symbols=41,
        )
    )
    batch = Batch(
        signal=torch.randn(2, bins[0], 512),
        lengths_B=torch.tensor(bins),
        labels_BU=torch.randint(1, 41, (2, labels[0])),
        label_lengths_B=torch.tensor(labels),
        session_B=torch.zeros(2, dtype=torch.int64),
        trial_ids=("a", "b"),
    )
    encoded = model.encode(batch.signal, batch.lengths_B, batch.session_B)
    inputs = PartInputs(model, batch, encoded, 0, (0, 1), Draws(0, 0, (0, 1), torch.device("cpu")))
    nats = {"ctc": CTC.nats(inputs, None), "rnnt": TRANSDUCER.nats(inputs, "none")}
    ratio = (nats["rnnt"].sum() / nats["ctc"].sum()).item()
    assert 0.3 < ratio < 3
    # The source's second scaling divides the transducer's loss by half of the batch's mean frames; ours by the trial's.
    halves = length_scaled(nats["rnnt"], encoded.lengths_B, batch.label_lengths_B, "frames")
    torch.testing.assert_close(halves, nats["rnnt"] / (encoded.lengths_B / 2))


def test_a3_a4_200_joint_steps_are_clean_and_the_loss_falls(small_t15: Path, tmp_path: Path) -> None:
    prepared, loop = _loop(small_t15, tmp_path)
    fit(prepared, loop, build_trainer(prepared.config))
    values = _metrics(tmp_path)
    assert not [e for e in read_json_lines(tmp_path / "events.jsonl") if e["event"] == "step_skipped"]
    losses = values["train/transducer_loss"]
    assert len(losses) == 200
    assert min(losses) > 0
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    # The switch-on without a hold, at the first step, raises no gradient beyond 10 times its running median.
    norms = values["train/gradient_norm"]
    assert max(norms[i] / sorted(norms[:i])[i // 2] for i in range(5, 200)) < 10


def test_a3_one_poisoned_gradient_costs_one_step(small_t15: Path, tmp_path: Path) -> None:
    prepared, loop = _loop(small_t15, tmp_path)
    head = loop.computer.model.transducer
    assert head is not None

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan") if loop.computer.progress.step == 50 else gradient

    head.output.weight.register_hook(poison)
    fit(prepared, loop, build_trainer(prepared.config))
    skipped = [e for e in read_json_lines(tmp_path / "events.jsonl") if e["event"] == "step_skipped"]
    assert [(e["step"], e["code"]) for e in skipped] == [(51, "nonfinite_gradient")]
    assert "transducer.output.weight" in skipped[0]["evidence"]
    assert loop.computer.progress.step == 200


def test_a4_a_loss_of_exactly_zero_is_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    zero = {"trial a": 0.0, "trial b": 0.0}
    assert GradientGuard().inspect({"w": weight}, zero, likelihoods=True).cause == "zero_loss"
    assert weight.grad is None
    weight.grad = torch.ones(2)
    elsewhere = GradientGuard().inspect(
        {"w": weight}, {"trial a": 0.0}, lambda flags: [*flags[:2], True, *flags[3:]], likelihoods=True
    )
    assert elsewhere.cause is None


def test_a4_a_label_longer_than_its_frames_is_refused(tmp_path: Path) -> None:
    simulate_t15(tmp_path / "d", SimulationSettings(sessions=1, trials=4, val_trials=0, electrodes=8, seed=3))
    config = compose_config(["recipe=mode_ssm", f"data.data_root={tmp_path / 'd'}", *SMALL, "model.stem.stride=40"])
    with pytest.raises(DataError, match="ctc_infeasible"):
        prepare(config)


def test_a12_45_sessions_512_channels_41_symbols() -> None:
    config = compose_config(["recipe=mode_ssm", "data.data_root=d"])
    assert config.preprocessor.num_channels == 512
    assert len(PHONEMES) == 41
    assert config.data.max_sessions is None
    assert config.data.on_fault == "raise"  # no trial is left out silently: with `skip`, the run says how many


def test_a12_the_sources_quality_filter_says_how_many_trials_it_leaves_out(tmp_path: Path) -> None:
    data = tmp_path / "d"
    simulate_t15(data, SimulationSettings(sessions=1, trials=8, val_trials=2, electrodes=8, seed=3))
    with h5py.File(next(data.rglob("data_train.hdf5")), "r+") as file:
        file["trial_0001/input_features"][:, :3] = 0.5
        durations = sorted(len(file[key]["input_features"]) * 20 for key in file if key != "trial_0001")
    quality = ["data.missing_channel_threshold=0.1", f"data.max_sequence_ms={durations[-1] - 1}"]
    config = compose_config(["recipe=mode_ssm", f"data.data_root={data}", *SMALL, *quality])
    prepared = prepare(config)
    longer = sum(fault.fault == "outside_length_limits" for fault in prepared.skipped)
    assert longer >= 1
    assert sum(fault.fault == "too_many_missing_channels" for fault in prepared.skipped) == 1
    assert len(prepared.train_indices) + len(prepared.val_indices) == 10 - 1 - longer


def test_a13_rates_are_printed_in_percent() -> None:
    assert percent(0.05) == "5.0 %"
    assert percent(1.0) == "100.0 %"
