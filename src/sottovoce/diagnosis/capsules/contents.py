"""What a capsule must hold: kinds, shapes and ranges, checked as it is read. Whatever passes can be computed again.

Every function raises ValueError that says what is wrong. Legend: B trials, T bins, N samples, C channels, U labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import torch

from sottovoce.core.checkpoints import Tensors
from sottovoce.core.signals import SignalKind
from sottovoce.core.trial import Batch, valid_mask
from sottovoce.training.branches import BRANCHES
from sottovoce.training.config import RunConfig
from sottovoce.training.stages import Curriculum
from sottovoce.training.teachers import TeacherTargets

T = TypeVar("T")
MOST_THREADS: Final = 1024
"""More threads than any machine of today has cores; a number beyond it is damage, and would be asked for."""
MOST_PROCESSES: Final = 65536


def held(state: Any, key: str, kind: type[T]) -> T:
    """`state[key]`, which must be of `kind`."""
    if not isinstance(state, dict) or key not in state:
        raise ValueError(f"{key} is missing")
    value = state[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{key} is {_shown(value)}, expected {kind.__name__}")
    return value


def whole(state: Any, key: str, least: int = 0, most: int = 2**62) -> int:
    """The whole number `state[key]`, from `least` to `most`."""
    value = held(state, key, int)
    if not least <= value <= most:
        raise ValueError(f"{key} is {_shown(value)}, expected {least} to {_shown(most)}")
    return value


def chosen(state: Any, key: str, choices: Sequence[Any]) -> Any:
    """`state[key]`, which must be one of `choices`."""
    if (value := held(state, key, object)) not in choices:
        raise ValueError(f"{key} is {_shown(value)}, expected one of {', '.join(map(str, choices))}")
    return value


def texts(state: Any, key: str) -> tuple[str, ...]:
    """The list of strings `state[key]`."""
    values = held(state, key, list)
    if odd := [value for value in values if not isinstance(value, str)]:
        raise ValueError(f"{key} holds {_shown(odd[0])}, expected strings")
    return tuple(values)


def numbers(state: Any, key: str) -> dict[str, float]:
    """The mapping from names to numbers `state[key]`; NaN and infinities are written as words."""
    return {str(name): number(value, f"{key}.{name}") for name, value in held(state, key, dict).items()}


def number(value: Any, what: str) -> float:
    """`value`, a number or the word for one that JSON does not know."""
    words = ("nan", "inf", "-inf")
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or value in words):
        raise ValueError(f"{what} is {_shown(value)}, expected a number")
    return float(value)


def environment(state: Any) -> dict[str, Any]:
    """What the capsule was written on, as far as a replay uses it."""
    found: dict[str, Any] = held(state, "environment", dict)
    whole(found, "num_threads", 1, MOST_THREADS)
    for section in ("packages", "machine"):
        held(found, section, dict)
    return found


def check_curriculum(curriculum: Curriculum, index: int, config: RunConfig) -> None:
    """The stages ask for what the model has, and the run stood in one of them."""
    if not index < len(curriculum.stages):
        raise ValueError(f"position.index is {index}, but there are {len(curriculum.stages)} stages")
    lacking = [name for name, branch in BRANCHES.items() if not branch.available(config.model)]
    for stage in curriculum.stages:
        if missing := [loss for loss in lacking if stage.config.weight_of(loss)]:
            raise ValueError(f"stage {stage.name} weighs the loss {missing[0]}, which the model has no part for")


def check_random(tensors: Tensors) -> None:
    """The state of PyTorch's generator."""
    state = tensors.get("cpu")
    if state is None:
        raise ValueError("the random state cpu is missing")
    try:
        torch.Generator().set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the random state cannot be set ({' '.join(str(error).split())})") from error


def check_batch(batch: Batch, positions: Sequence[int], config: RunConfig, blank: int) -> None:
    """The tensors of a batch fit each other, its trials and the model."""
    size, model = len(batch.trial_ids), config.model
    if size == 0 or len(positions) != size:
        raise ValueError(f"{size} trial_ids and {len(positions)} positions, expected as many and at least one")
    channels = () if config.preprocessor.signal == SignalKind.WAVEFORM else (config.preprocessor.num_channels,)
    _shape("signal", batch.signal, torch.float32, (size, None, *channels))
    _shape("labels_BU", batch.labels_BU, torch.int64, (size, None))
    num_sessions = 2**62 if model.session_adapter is None else model.num_sessions or 0
    ranges = {"lengths_B": (1, batch.signal.shape[1]), "label_lengths_B": (0, batch.labels_BU.shape[1])}
    for name, (least, most) in (ranges | {"session_B": (0, num_sessions - 1)}).items():
        values_B = getattr(batch, name)
        _shape(name, values_B, torch.int64, (size,))
        if bool(((values_B < least) | (values_B > most)).any()):
            raise ValueError(f"{name} holds {int(values_B.min())} to {int(values_B.max())}, expected {least} to {most}")
    labels_BU, num_symbols = batch.labels_BU, model.num_symbols or 0
    wrong_BU = (labels_BU < 0) | (labels_BU >= num_symbols)  # beyond a trial's labels too: the predictor reads them
    wrong_BU |= (labels_BU == blank) & valid_mask(batch.label_lengths_B, labels_BU.shape[1])
    if wrong := labels_BU[wrong_BU].tolist():
        raise ValueError(f"labels_BU holds {wrong[0]}, which is the blank or none of the {num_symbols} symbols")


def check_teacher_targets(targets: TeacherTargets, size: int, config: RunConfig) -> None:
    """What the teachers said fits the batch of `size` trials and the model."""
    frames = targets.weights_BS.shape[-1]
    _shape("log_q_BSV", targets.log_q_BSV, torch.float32, (size, frames, config.model.num_symbols))
    _shape("weights_BS", targets.weights_BS, torch.float32, (size, frames))


def _shape(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    """`tensor` is of `dtype` and `shape`; None stands for any length but 0, save for labels."""
    fits = tensor.dim() == len(shape) and all(
        want in (None, got) for want, got in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype != dtype or not fits:
        wanted = " × ".join("any" if want is None else str(want) for want in shape)
        got = " × ".join(map(str, tensor.shape))
        raise ValueError(f"{name} is {tensor.dtype} {got}, expected {dtype} {wanted}")


def _shown(value: Any) -> str:
    """The value, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def check_names(names: Iterable[Any], known: Sequence[str], what: str) -> None:
    """All of `names` are among `known`."""
    if odd := [name for name in names if name not in known]:
        raise ValueError(f"{what} names {_shown(odd[0])}, expected of {', '.join(known)}")
