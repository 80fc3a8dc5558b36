"""Checkpoints: safetensors and JSON, replaced atomically.

A checkpoint is a folder. `checkpoint.json` names the tensor files that belong to it, and replacing that one file is
the moment a new checkpoint becomes valid: a process killed before leaves the old one whole, and a disk that fills up
costs nothing but the new one.

    checkpoints/last/checkpoint.json  model-00000200.safetensors  optimizer-00000200.safetensors
    checkpoints/best/checkpoint.json  model-00000180.safetensors
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sottovoce.core.errors import CheckpointError, NewerVersionError

FORMAT: Final = 1
INDEX: Final = "checkpoint.json"
_PLAIN_NAME: Final = re.compile(r"[\w-]+\.safetensors")
"""A file of the checkpoint's own folder, never a path that leads elsewhere."""
Tensors = dict[str, torch.Tensor]


def write_checkpoint(folder: Path, step: int, parts: dict[str, Tensors], state: dict[str, Any]) -> None:
    """Make (`step`, `parts`, `state`) the content of `folder`; until that is complete the old content stays.

    Args:
        parts: tensors by part (`model`, `optimizer`) and name.
        state: everything else, as JSON values.

    Raises:
        CheckpointError: the file system refused (disk full, no permission); the previous checkpoint is intact.
    """
    names: dict[str, str] = {}
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part, tensors in parts.items():
            path = folder / f"{part}-{step:08d}.safetensors"
            temporary = path.with_suffix(".writing")
            written.append(temporary)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
            _to_disk(temporary)
            temporary.replace(path)
            names[part] = path.name
        temporary = folder / f"{INDEX}.writing"
        written.append(temporary)
        index = {"format": FORMAT, "step": step, "files": names, "state": state}
        temporary.write_text(json.dumps(index, indent=1), encoding="utf-8")
        _to_disk(temporary)
        temporary.replace(folder / INDEX)
    except (OSError, SafetensorError) as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder} ({error}); the previous one is intact. "
            "Free some space, then continue with resume="
        ) from error
    for path in folder.iterdir():
        if path.name != INDEX and path.name not in names.values():
            path.unlink()


def has_checkpoint(folder: Path) -> bool:
    """True once a checkpoint has been written to `folder` completely."""
    return (folder / INDEX).exists()


def read_state(folder: Path) -> tuple[int, dict[str, Any]]:
    """Step and JSON state of the checkpoint in `folder`.

    Raises:
        CheckpointError: there is none, it is damaged, names files elsewhere, or a newer version wrote it.
    """
    index = _read_index(folder)
    return index["step"], index["state"]


def read_tensors(folder: Path, part: str) -> Tensors:
    """Tensors of one part (`model`, `optimizer`) of the checkpoint in `folder`, on the CPU.

    Raises:
        CheckpointError: the part is missing or damaged.
    """
    name = _read_index(folder)["files"].get(part)
    if name is None:
        raise CheckpointError(f"the checkpoint {folder} has no {part}; it cannot be continued from, only evaluated")
    try:
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / name} cannot be read ({error}); the checkpoint is damaged") from error


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.exists():
        raise CheckpointError(f"{folder} holds no checkpoint: {INDEX} is missing. Has the run written one yet?")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint index ({error})") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{path} is not a checkpoint index: it holds no object")
    kinds = {"format": int, "step": int, "files": dict, "state": dict}
    if wrong := [key for key, kind in kinds.items() if not isinstance(index.get(key), kind)]:
        raise CheckpointError(f"{path} is not a checkpoint index: {wrong[0]} is missing or of the wrong kind")
    if index["format"] > FORMAT:
        raise NewerVersionError(
            f"{path} has format {index['format']}, this version reads format {FORMAT}; update sottovoce"
        )
    for name in index["files"].values():
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise CheckpointError(
                f"{path} names the file {name!r:.100}, which is not a tensor file beside it; it is damaged"
            )
    return index


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Give `model` the weights of the checkpoint in `folder`.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another model.
    """
    tensors, expected = read_tensors(folder, "model"), model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        found = [tuple(t[name].shape) if name in t else None for t in (tensors, expected)]
        if found[0] != found[1]:
            raise CheckpointError(
                f"{folder} does not fit the run's configuration: {name} has shape {found[0]}, expected {found[1]}; "
                "was config.yaml changed?"
            )
    model.load_state_dict(tensors)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[torch.Tensor, str]) -> Tensors:
    """The optimiser's state as flat tensors `PARAMETER::KEY`."""
    return {
        f"{names[parameter]}::{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: Tensors, parameters: dict[str, torch.nn.Parameter]
) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        CheckpointError: the state belongs to a parameter that the model does not have.
    """
    for name, value in tensors.items():
        owner, key = name.split("::")
        if owner not in parameters:
            raise CheckpointError(f"the checkpoint's optimiser state names {owner}, which the model does not have")
        parameter = parameters[owner]
        optimizer.state[parameter][key] = value.to(parameter.device)
