"""A curriculum from its first step to its last: what is on, what moves, what is logged, and that it can be killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from sottovoce.core.checkpoints import read_state
from sottovoce.core.errors import ConfigurationError
from sottovoce.core.records import read_json_lines
from sottovoce.data.simulate.settings import SimulationSettings
from sottovoce.data.simulate.simulation import simulate_t15
from sottovoce.models.compose import COMPONENTS
from sottovoce.models.transducer import TransducerHead
from sottovoce.runs.trained_decoder import load
from sottovoce.training.composition import compose_config
from sottovoce.training.loop import RunLoop
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import build_trainer, fit
from sottovoce.training.step import StepRecord
from tests.training.small_runs import assert_same_run, train
from tests.training.warm import Running

pytestmark = pytest.mark.slow

CTC_STEPS, HELD_STEPS, RAMP_STEPS, JOINT_STEPS, MODE_STEPS, DENOISE_STEPS = 5, 4, 4, 12, 4, 3
RELEASED = CTC_STEPS + HELD_STEPS
JOINT_END = CTC_STEPS + JOINT_STEPS
TOTAL = JOINT_END + MODE_STEPS + DENOISE_STEPS


def overrides(data: Path, runs: Path, name: str, *more: str) -> list[str]:
    """All four stages in some seconds."""
    return [
        "recipe=mode_ssm",
        f"data.data_root={data}",
        f"runs_dir={runs}",
        f"run_name={name}",
        "data.num_workers=0",
        "preprocessor.num_channels=16",
        "model.stem.width=16",
        "model.ssm={layers: 2, width: 16, state_size: 4, head_size: 4}",
        "model.transducer={embedding_size: 6, units: 8, layers: 1, joint_size: 8}",
        "model.head_dropout=0",
        "training.stages.0.epochs=null",
        f"training.stages.0.steps={CTC_STEPS}",
        "training.stages.1.epochs=null",
        f"training.stages.1.steps={JOINT_STEPS}",
        "training.stages.2.epochs=null",
        f"training.stages.2.steps={MODE_STEPS}",
        "training.stages.3.epochs=null",
        f"training.stages.3.steps={DENOISE_STEPS}",
        "model.flow_bridge={enabled: true, width: 8, blocks: 1, groups: 2, heads: 2}",
        "data.mode_labels=pseudo",
        f"training.rnnt_warmup_batches={HELD_STEPS}",
        f"training.rnnt_ramp_steps={RAMP_STEPS}",
        "training.scheduler.warmup_steps=2",
        "training.optimizer.lr=0.003",
        "training.loss_normalisation=per_utterance",
        "training.batch_size=2",
        "training.gradient_accumulation_steps=2",
        "training.validate_every_steps=6",
        "training.checkpoint_every_steps=3",
        "training.log_every_steps=1",
        "training.num_threads=1",
        *more,
    ]


class WatchedLoop(RunLoop):
    """Keeps the transducer's weights after every step."""

    def __init__(self, prepared: Prepared, run_dir: Path) -> None:
        super().__init__(prepared, run_dir)
        self.transducers = [self._transducer()]

    def _transducer(self) -> torch.Tensor:
        head = self.computer.model.transducer
        assert head is not None
        return torch.cat([p.detach().flatten() for p in head.parameters()])

    def after_step(self, record: StepRecord) -> None:
        super().after_step(record)
        self.transducers.append(self._transducer())


@pytest.fixture(scope="module")
def blocks_t15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions with several blocks each, so that their modes can be told apart."""
    folder = tmp_path_factory.mktemp("data") / "blocks"
    settings = SimulationSettings(sessions=2, trials=12, val_trials=4, electrodes=8, block_trials=4, seed=3)
    simulate_t15(folder, settings)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(blocks_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    done = train(*overrides(blocks_t15, runs, "whole"))
    assert done.returncode == 0, done.stderr
    return runs / "whole"


def test_stages_follow_each_other_and_say_what_they_train(uninterrupted: Path) -> None:
    events = read_json_lines(uninterrupted / "events.jsonl")
    told = [(e["step"], e["event"], e.get("stage")) for e in events if "stage" in e or e["event"] == "unfrozen"]
    assert told == [
        (0, "stage_started", "ctc_warmup"),
        (CTC_STEPS, "stage_finished", "ctc_warmup"),
        (CTC_STEPS, "stage_started", "joint"),
        (RELEASED, "unfrozen", None),
        (JOINT_END, "stage_finished", "joint"),
        (JOINT_END, "stage_started", "mode"),
        (JOINT_END + MODE_STEPS, "stage_finished", "mode"),
        (JOINT_END + MODE_STEPS, "stage_started", "denoise"),
        (TOTAL, "stage_finished", "denoise"),
    ]
    assert not [e for e in events if e["event"] == "step_skipped"]
    run = load(uninterrupted)
    assert run.model.transducer is not None
    size = sum(p.numel() for p in run.model.transducer.parameters())
    (unfrozen,) = (e for e in events if e["event"] == "unfrozen")
    assert unfrozen["trainable_parameters"] - unfrozen["trainable_before"] == size
    started = [e for e in events if e["event"] == "stage_started"]
    assert started[0]["trainable_parameters"] == unfrozen["trainable_before"]
    assert started[1]["loss_weights"] == {"ctc": 0.3, "rnnt": 1.0}
    _, state = read_state(uninterrupted / "checkpoints" / "last")
    assert set(state["progress"]["trained"]) == set(COMPONENTS)
    assert [e["step"] for e in events if e["event"] == "modes_refreshed"] == [18, JOINT_END + MODE_STEPS, TOTAL]
    (measured,) = (e for e in events if e["event"] == "flow_bridge_measured")
    assert measured["used"] == (measured["with_bridge"] < measured["without"]) == run.model.use_flow_bridge


def test_the_loss_is_the_weighted_sum_of_its_logged_parts(uninterrupted: Path) -> None:
    values: dict[str, dict[int, float]] = {}
    for record in read_json_lines(uninterrupted / "metrics.jsonl"):
        values.setdefault(record["name"], {})[record["step"]] = record["value"]
    began = {"train/transducer_loss": RELEASED, "train/mode_loss": JOINT_END, "train/flow_loss": TOTAL - DENOISE_STEPS}
    for name, step in began.items():
        assert min(values[name]) == step + 1
    for step, loss in values["train/loss"].items():
        expected = values["train/ctc_loss"][step] * (1.0 if step <= CTC_STEPS else 0.3)
        if step > RELEASED:
            expected += min(1.0, (step - RELEASED) / RAMP_STEPS) * values["train/transducer_loss"][step]
        if step > JOINT_END:
            expected += 0.1 * values["train/mode_loss"][step]
        if step > JOINT_END + MODE_STEPS:
            expected += 0.05 * values["train/flow_loss"][step]
        assert loss == pytest.approx(expected, rel=1e-6)
    assert min(values["val/ctc_per"]) == 12  # validated with the transducer since its release
    assert min(values["val/mode_accuracy"]) == 18


def test_the_held_transducer_is_neither_run_nor_moved(
    blocks_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(compose_config(overrides(blocks_t15, tmp_path, "watched", "training.validate_every_steps=100")))
    loop = WatchedLoop(prepared, tmp_path / "watched")
    (tmp_path / "watched").mkdir()
    steps_with_a_call = set()
    project = TransducerHead.project

    def watched(head: TransducerHead, frames: torch.Tensor) -> torch.Tensor:
        if head.training:
            steps_with_a_call.add(loop.computer.progress.step)
        return project(head, frames)

    monkeypatch.setattr(TransducerHead, "project", watched)
    fit(prepared, loop, build_trainer(prepared.config))
    assert steps_with_a_call == set(range(RELEASED, TOTAL))
    moved = [not torch.equal(a, b) for a, b in zip(loop.transducers, loop.transducers[1:], strict=False)]
    assert moved == [False] * RELEASED + [True] * (TOTAL - RELEASED)


def test_killed_in_every_stage_and_resumed(blocks_t15: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """In the warm-up of CTC, with the transducer held back and released, while the mode and while the bridge learns."""
    run, metrics = tmp_path / "killed", tmp_path / "killed" / "metrics.jsonl"
    arguments = overrides(blocks_t15, tmp_path, "killed")
    for step in (3, 7, 12, 19, 22):
        process = Running(["train", *arguments])
        while not (metrics.exists() and any(r["step"] >= step for r in read_json_lines(metrics))):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        arguments = [f"resume={run}"]
    resumed = train(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(uninterrupted, run)


@pytest.mark.parametrize("scaling", ["none", "gradient_norm"])
def test_four_small_batches_are_one_large_one(blocks_t15: Path, tmp_path: Path, scaling: str) -> None:
    found = []
    for batch, micro_batches in ((4, 1), (1, 4)):
        more = [
            f"training.batch_size={batch}",
            f"training.gradient_accumulation_steps={micro_batches}",
            "training.validate_every_steps=100",
            "augmentation.white_noise_std=0",
            "augmentation.constant_offset_std=0",
            "model.ssm.dropout=0",
            "model.stem.dropout=0",
            "model.transducer.dropout=0",
            "model.speaking_mode={dropout: 0, contrastive_weight: 0}",  # the contrastive term compares batch mates
            "model.flow_bridge.dropout=0",
            f"training.loss_scaling={scaling}",
        ]
        prepared = prepare(compose_config(overrides(blocks_t15, tmp_path, f"of-{batch}", *more)))
        (tmp_path / f"of-{batch}").mkdir()
        loop = WatchedLoop(prepared, tmp_path / f"of-{batch}")
        fit(prepared, loop, build_trainer(prepared.config))
        records = read_json_lines(tmp_path / f"of-{batch}" / "metrics.jsonl")
        found.append([r["value"] for r in records if r["name"] in ("train/loss", "train/gradient_norm")])
    assert len(found[0]) == 2 * TOTAL
    assert found[0] == pytest.approx(found[1], rel=2e-4)


def test_two_processes_are_one(blocks_t15: Path, tmp_path: Path) -> None:
    """The same global batch over two processes: losses, gradients and validation agree in every stage."""
    common = [
        "training.gradient_accumulation_steps=1",
        "augmentation.white_noise_std=0",
        "augmentation.constant_offset_std=0",
        "model.ssm.dropout=0",
        "model.stem.dropout=0",
        "model.transducer.dropout=0",
        "model.speaking_mode={dropout: 0, contrastive_weight: 0}",  # the contrastive term compares batch mates
        "model.flow_bridge.dropout=0",
        "trainer.accelerator=cpu",
    ]
    found = []
    for name, more in (("one", ["training.batch_size=4"]), ("two", ["training.batch_size=2", "trainer.devices=2"])):
        done = train(*overrides(blocks_t15, tmp_path, name, *common, *more))
        assert done.returncode == 0, done.stderr
        records = read_json_lines(tmp_path / name / "metrics.jsonl")
        wanted = ("train/loss", "train/transducer_loss", "train/gradient_norm", "val/loss", "val/per")
        found.append({(r["step"], r["name"]): r["value"] for r in records if r["name"] in wanted})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        assert found[1][key] == pytest.approx(value, rel=1e-3), key


def test_patience_ends_a_stage_on_its_own_metric(blocks_t15: Path, tmp_path: Path) -> None:
    more = ["training.validate_every_steps=1", "training.stages.0.patience=1", "training.optimizer.lr=1e-30"]
    more += ["training.stages.0.metric=cer", "training.stages.1.metric=wer"]
    done = train(*overrides(blocks_t15, tmp_path, "patient", *more))
    assert done.returncode == 0, done.stderr
    events = read_json_lines(tmp_path / "patient" / "events.jsonl")
    ends = [(e["step"], e["stage"], e["reason"]) for e in events if e["event"] == "stage_finished"]
    # The first validation is the best so far, the second no better. While the transducer is held back nothing counts:
    # the validation after its release is the joint stage's first, and three more are no better (its own patience).
    first_with_transducer = 2 + HELD_STEPS + 1
    assert ends == [
        (2, "ctc_warmup", "no better for a while"),
        (first_with_transducer + 3, "joint", "no better for a while"),
        (first_with_transducer + 3 + MODE_STEPS, "mode", "all its steps are done"),
        (first_with_transducer + 3 + MODE_STEPS + DENOISE_STEPS, "denoise", "all its steps are done"),
    ]
    assert events[-1]["event"] == "run_finished"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([f"training.rnnt_warmup_batches={TOTAL - CTC_STEPS}"], "holds the transducer back for all 19 steps"),
        (
            ["training.stages=[{name: a, steps: 30, components: [encoder, ctc_decoder]}]"],
            "no stage trains the transducer",
        ),
    ],
)
def test_a_transducer_that_would_never_learn_is_refused(
    blocks_t15: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        prepare(compose_config(overrides(blocks_t15, tmp_path, "never", *more)))


def test_a_stage_of_the_mode_head_alone_and_a_release_at_a_stages_end(blocks_t15: Path, tmp_path: Path) -> None:
    """The transducer is due when the joint stage ends: it is told, and the next stage that wants it begins with it."""
    stages = (
        "training.stages=[{name: joint, steps: 4, components: [encoder, ctc_decoder, rnnt_decoder], "
        "loss_weights: {ctc: 0.3, rnnt: 1.0}}, {name: again, steps: 2, components: [encoder, ctc_decoder, "
        "rnnt_decoder], loss_weights: {ctc: 0.3, rnnt: 1.0}}, {name: mode, steps: 2, components: [mode_head], "
        "loss_weights: {ctc: 0, mode: 1}}]"
    )
    done = train(*overrides(blocks_t15, tmp_path, "boundary", stages))
    assert done.returncode == 0, done.stderr
    events = read_json_lines(tmp_path / "boundary" / "events.jsonl")
    assert [(e["step"], e["components"]) for e in events if e["event"] == "unfrozen"] == [(4, ["rnnt_decoder"])]
    assert not [e for e in events if e["event"] == "step_skipped"]
    _, state = read_state(tmp_path / "boundary" / "checkpoints" / "last")
    assert state["progress"]["trained"] == ["ctc_decoder", "encoder", "mode_head", "rnnt_decoder"]


def test_a_warm_up_longer_than_the_run_is_refused(blocks_t15: Path, tmp_path: Path) -> None:
    more = ["training.scheduler.warmup_steps=24", "training.scheduler.max_steps=null"]
    config = compose_config(overrides(blocks_t15, tmp_path, "short", *more))
    with pytest.raises(ConfigurationError, match="leaves nothing of the 24 steps"):
        prepare(config)


TRACKED = "wandb.enabled=true wandb.entity=YOUR_USERNAME"
ROOT = "data.data_root=data/raw/t15_copyTask_neuralData/hdf5_data_final preprocessor.num_channels=512"


@pytest.mark.parametrize(
    ("given", "batch", "epochs"),
    [
        (
            f'{TRACKED} wandb.run_name="rnnt-scaled-3sess-test" {ROOT} data.max_sessions=3 training.batch_size=1 '
            "training.gradient_accumulation_steps=4 training.stages.0.epochs=2 training.stages.1.epochs=2 "
            "training.optimizer.lr=0.00005",
            (1, 4),
            (2, 2),
        ),
        (
            f'{TRACKED} wandb.run_name="rnnt-scaled-full-training" wandb.tags="[production,45-sessions,rnnt-scaled]" '
            f"{ROOT} training.batch_size=1 training.gradient_accumulation_steps=4 training.stages.0.epochs=5 "
            "training.stages.1.epochs=8 training.stages.2.epochs=5 training.optimizer.lr=0.00005",
            (1, 4),
            (5, 8, 5),
        ),
        (
            f'{TRACKED} wandb.run_name="rnnt-gradual-unfreeze" wandb.tags="[full-dataset,rnnt-v3-warmup,45-sessions]" '
            f"{ROOT} training.batch_size=4 training.gradient_accumulation_steps=2 training.stages.0.epochs=5 "
            "training.stages.1.epochs=8 training.optimizer.lr=0.00001",
            (4, 2),
            (5, 8),
        ),
    ],
)
def test_the_source_documents_commands_mean_what_they_meant(
    given: str, batch: tuple[int, int], epochs: tuple[int, ...]
) -> None:
    words = [word.replace('"', "") for word in given.split()]  # as a shell hands them over
    config = compose_config(["recipe=mode_ssm", *words])
    training = config.training
    assert (training.batch_size, training.gradient_accumulation_steps) == batch
    assert tuple(stage.epochs for stage in training.stages)[: len(epochs)] == epochs
    assert config.wandb.enabled
    assert config.wandb.entity == "YOUR_USERNAME"
