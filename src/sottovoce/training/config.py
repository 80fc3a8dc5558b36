"""The configuration of a run: the sections defined beside what they configure, and the training's own."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from sottovoce.core.configuration import MISSING
from sottovoce.core.errors import ConfigurationError
from sottovoce.core.symbols import LETTERS
from sottovoce.data.config import KEYS_WITHOUT_EFFECT, DataConfig
from sottovoce.decoding.config import DecodingConfig
from sottovoce.evaluation.scoring import METRICS
from sottovoce.features.config import AugmentationConfig, PreprocessorConfig
from sottovoce.losses.combine import LOSS_SCALINGS, NORMALISATIONS
from sottovoce.losses.flow_matching import CorruptionConfig
from sottovoce.models.compose import ModelConfig
from sottovoce.models.transducer import TransducerHead
from sottovoce.training.guard import GuardConfig
from sottovoce.training.schedules import SchedulerConfig
from sottovoce.training.stages import StageConfig
from sottovoce.training.teachers import DistillationConfig
from sottovoce.training.tracking import WandbConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with three named groups: `bias`, `session` and `other` (the official T15 grouping)."""

    lr: float = 5e-3
    """Peak learning rate of the groups `other` and `bias`."""
    session_lr: float | None = None
    """Peak learning rate of the session adapters; absent: `lr`."""
    weight_decay: float = 1e-3
    """Decoupled, on the group `other` alone: biases and session adapters never decay."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    """Far above the usual gradient size (official T15: 0.1) Adam turns into momentum SGD with rate lr/eps."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or (self.session_lr or 1) <= 0 or self.eps <= 0 or self.weight_decay < 0:
            raise ConfigurationError(
                "training.optimizer: lr, session_lr and eps must be positive, weight_decay at least 0; "
                f"got {self.lr}, {self.session_lr}, {self.eps}, {self.weight_decay}"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigurationError(f"training.optimizer: betas must lie in [0, 1); got {self.beta1}, {self.beta2}")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how a decoder is trained. Steps, not epochs, drive the run."""

    steps: int | None = None
    """Optimiser steps of the whole run; absent where `stages` say how long it is."""
    stages: tuple[StageConfig, ...] = ()
    """The curriculum, one stage after the other; without any, the CTC loss trains everything for `steps` steps."""
    rnnt_warmup_batches: int = 100
    """The transducer stays switched off for this many optimiser steps of the stages that give it a weight."""
    rnnt_ramp_steps: int = 100
    """Then its weight rises linearly over this many steps."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Other runs that teach this one, beside the labels."""
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    """What the flow bridge learns to undo, in a stage that weighs the loss `denoise`."""
    batch_size: int = 16
    """Trials in one forward pass of one process."""
    gradient_accumulation_steps: int = 1
    """Forward passes summed into one optimiser step; 4 × 1 gives the gradient of 1 × 4 exactly."""
    max_grad_norm: float = 10.0
    """Global gradient norm above which a step is scaled down; 0 switches clipping off."""
    loss_normalisation: str = "per_utterance"
    """`per_utterance` (nats of the whole target, official T15) or `per_token` (nats divided by target length)."""
    loss_scaling: str = "none"
    """How the transducer's loss is scaled against CTC's before the weights: `none`; `length` (divided by the geometric
    mean of its frames and labels, as mode-ssm does) or `frames` (by half its frames, as mode-ssm did before);
    `gradient_norm` (so that both send equal gradients into the encoder)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    precision: str = "float32"
    """`float32`, `bfloat16` (autocast; losses stay in float32), or `auto`: bfloat16 where a GPU has it in hardware."""
    compile: bool = False
    """`torch.compile` the model; pays off on GPUs and long runs only."""
    validate_every_steps: int = 200
    """Decode the validation split this often, and after the last step."""
    selection_metric: str = "per"
    """The best checkpoint has the lowest validation `per`, `wer` or `cer`, or the highest `wra`; ties go to the lower
    loss."""
    checkpoint_every_steps: int = 200
    """Write `checkpoints/last` this often, and after the last step."""
    log_every_steps: int = 10
    """Average and write the training metrics this often."""
    max_bad_steps: int = 10
    """This many skipped steps in a row end the run."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    preflight: bool = True
    """Before the first step, look for everything that can be known to be wrong (some seconds); errors end the run."""
    num_threads: int | None = None
    """CPU threads of PyTorch's operations; absent: one a core. Exact resume needs the same number."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "gradient_accumulation_steps", "validate_every_steps", "max_bad_steps")
        if (self.steps is None) == (not self.stages):
            raise ConfigurationError("training: give exactly one of steps and stages")
        if self.rnnt_warmup_batches < 0 or self.rnnt_ramp_steps < 0:
            raise ConfigurationError(
                "training: rnnt_warmup_batches and rnnt_ramp_steps must be at least 0; "
                f"got {self.rnnt_warmup_batches} and {self.rnnt_ramp_steps}"
            )
        for name in (*counts, "checkpoint_every_steps", "log_every_steps", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"training.{name}={value}: must be at least 1")
        if self.max_grad_norm < 0:
            raise ConfigurationError(
                f"training.max_grad_norm={self.max_grad_norm}: must be at least 0 (0 = no clipping)"
            )
        if self.loss_normalisation not in NORMALISATIONS:
            raise ConfigurationError(
                f"training.loss_normalisation={self.loss_normalisation}: choose one of {', '.join(NORMALISATIONS)}"
            )
        if self.loss_scaling not in LOSS_SCALINGS:
            raise ConfigurationError(
                f"training.loss_scaling={self.loss_scaling}: choose one of {', '.join(LOSS_SCALINGS)}"
            )
        if self.selection_metric not in METRICS:
            raise ConfigurationError(
                f"training.selection_metric={self.selection_metric}: choose one of {', '.join(METRICS)}"
            )
        if self.precision not in ("float32", "bfloat16", "auto"):
            raise ConfigurationError(f"training.precision={self.precision}: choose float32, bfloat16 or auto")


@dataclass(frozen=True)
class TrainerConfig:
    """Where it runs; handed to Lightning's Trainer as it is."""

    accelerator: str = "auto"
    """`auto`, `cpu` or `gpu`."""
    devices: int = 1
    """Processes (one a GPU, or plain processes on a CPU) on each node."""
    num_nodes: int = 1
    """Machines; start one `sottovoce train` on each with torchrun or SLURM."""
    strategy: str = "auto"
    """Lightning's strategy name; `auto` is DistributedDataParallel where there is more than one process."""

    def __post_init__(self) -> None:
        if self.devices < 1 or self.num_nodes < 1:
            raise ConfigurationError(
                f"trainer: devices and num_nodes must be at least 1; got {self.devices}, {self.num_nodes}"
            )


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on; written whole into its directory as `config.yaml`."""

    recipe: str = MISSING
    """Name of the shipped configuration that the run started from."""
    run_name: str | None = None
    """Folder under `runs_dir`; absent: the recipe's name and a number."""
    runs_dir: str = "runs"
    seed: int = 10
    """Every random draw of the run follows from this number."""
    data: DataConfig = field(default_factory=DataConfig)
    preprocessor: PreprocessorConfig = field(default_factory=PreprocessorConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigurationError(f"seed={self.seed}: must be at least 0")
        if self.run_name is not None and (not self.run_name or Path(self.run_name).name != self.run_name):
            raise ConfigurationError(f"run_name={self.run_name}: must be the name of a folder, without slashes")
        if not self.data.data_root:
            raise ConfigurationError("data.data_root is empty; give data.data_root=FOLDER")
        if self.data.cache_data and self.data.num_workers:
            raise ConfigurationError(
                f"data.num_workers={self.data.num_workers} with data.cache_data=true would keep a copy in each "
                "process; set one of them to 0 or false"
            )
        if self.decoding.section().needs == TransducerHead.component and self.model.transducer is None:
            raise ConfigurationError(
                f"decoding.decoder={self.decoding.decoder}, but the model has none; set model.transducer={{}} or "
                "choose greedy"
            )
        self._refuse_keys_without_effect()

    def _refuse_keys_without_effect(self) -> None:
        signal, data = self.preprocessor.signal, self.data
        for key in KEYS_WITHOUT_EFFECT[signal]:
            section, name = key.split(".")
            configured = getattr(self, section)
            default = next(entry.default for entry in fields(configured) if entry.name == name)
            if getattr(configured, name) != default:
                raise ConfigurationError(f"{key} has no effect with {signal}; leave it out")
        if data.held_out_speakers and data.test_fraction != DataConfig.test_fraction:
            raise ConfigurationError("data.test_fraction has no effect where speakers are held out; leave it out")
        if data.symbols == LETTERS.name and data.lexicon is not None:
            raise ConfigurationError("data.lexicon has no effect with letters; leave it out")
