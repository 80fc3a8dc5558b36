"""Damaged and tampered capsules: one clear line and exit code 2, and nothing in them is ever executed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sottovoce.cli.main import main
from sottovoce.core.checkpoints import Tensors
from sottovoce.diagnosis.capsules.capsule import capsules_of
from tests.diagnosis.bad_runs import bad_run, first_capsule, long_labels
from tests.diagnosis.run_directories import RunDirectory

pytestmark = pytest.mark.slow

State = dict[str, Any]


@pytest.fixture(scope="module")
def run_dir(tiny_t15: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with capsules, and the other files that `diagnose RUN` needs."""
    folder = bad_run(tiny_t15, tmp_path_factory.mktemp("runs"), long_labels)
    written = RunDirectory(tmp_path_factory.mktemp("written")).write()
    for name in ("config.yaml", "environment.json"):
        shutil.copy(written / name, folder / name)
    return folder


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first_capsule(run_dir), tmp_path / "it"))


def at(*keys: str | int, value: Any) -> Callable[[State], None]:
    """Put `value` at that place of an index."""

    def change(index: State) -> None:
        inner: Any = index["state"]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def without(*keys: str | int) -> Callable[[State], None]:
    """Remove what is at that place."""

    def change(index: State) -> None:
        inner: Any = index["state"]
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


def files(part: str, name: Any) -> Callable[[State], None]:
    def change(index: State) -> None:
        index["files"][part] = name

    return change


BEFORE: dict[str, Callable[[State], None]] = {
    "no environment": without("environment"),
    "empty environment": at("environment", value={}),
    "environment is a list": at("environment", value=[]),
    "no threads": at("environment", "num_threads", value=0),
    "negative threads": at("environment", "num_threads", value=-1),
    "a million threads": at("environment", "num_threads", value=10**6),
    "threads as a word": at("environment", "num_threads", value="two"),
    "threads as a truth": at("environment", "num_threads", value=True),
    "machine as a word": at("environment", "machine", value="laptop"),
    "packages as a list": at("environment", "packages", value=[]),
    "blank beyond the symbols": at("blank", value=1000),
    "negative blank": at("blank", value=-1),
    "blank as a word": at("blank", value="0"),
    "infinite blank": at("blank", value=1e999),
    "no stages": at("stages", value=[]),
    "stage of no steps": at("stages", 0, "steps", value=0),
    "stage without a configuration": at("stages", 0, "config", value=None),
    "stage with a wrong configuration": at("stages", 0, "config", "components", value=["heart"]),
    "stage with a loss that the model lacks": at(
        "stages", 0, "config", value={"steps": 9, "components": ["rnnt_decoder"], "loss_weights": {"ctc": 0, "rnnt": 1}}
    ),
    "position beyond the stages": at("state", "progress", "position", "index", value=1),
    "negative position": at("state", "progress", "position", "index", value=-1),
    "position as a word": at("state", "progress", "position", "rnnt_steps", value="x"),
    "progress of another version": at("state", "progress", value={"position": {}}),
    "unknown progress": at("state", "progress", "novelty", value=1),
    "balance of words": at("state", "balance", value={"ctc": "large"}),
    "balance of another loss": at("state", "balance", value={"heart": 1.0}),
    "bridge as a word": at("state", "use_flow_bridge", value="no"),
    "step as a word": at("step_before", value="x"),
    "no processes": at("num_processes", value=0),
    "processes as a word": at("num_processes", value="1"),
    "more processes than there are": at("num_processes", value=3),
    "cause that the guard does not know": at("verdict", "cause", value="weather"),
    "cause as a list": at("verdict", "cause", value=[]),
    "norm as a list": at("verdict", "gradient_norm", value=[]),
    "no limit": without("verdict", "limit"),
    "gradients of another kind": at("verdict", "gradients", value={"head.bias": {"weight": 1}}),
    "a number too large for any float": at("verdict", "group_norms", value={"other": 10**400}),
    "precision as a word": at("bfloat16", value="yes"),
    "another device": at("device", value="abacus"),
    "owned as a word": at("owned", value="head.bias"),
    "metrics of numbers": at("metrics", value=[1]),
    "configuration as a list": at("config", value=[]),
    "other channels for features and model": at("config", "preprocessor", "num_channels", value=15),
    "model without channels": at("config", "model", "num_channels", value=None),
    "file elsewhere": files("model", "/etc/hostname"),
    "file above": files("model", "../../1/before/model-00000001.safetensors"),
    "file in a folder": files("model", "deeper/model.safetensors"),
    "file as a number": files("model", 7),
    "file that is no tensor file": files("model", "checkpoint.json"),
}
PROCESS: dict[str, Callable[[State], None]] = {
    "too few trials": at("parts", 0, "trial_ids", value=["one"]),
    "no trials": at("parts", 0, "trial_ids", value=[]),
    "trials as numbers": at("parts", 0, "trial_ids", value=[1, 2]),
    "too few positions": at("parts", 0, "positions", value=[0]),
    "negative positions": at("parts", 0, "positions", value=[-1, 0]),
    "positions as words": at("parts", 0, "positions", value=["a", "b"]),
    "parts as a word": at("parts", value="two"),
    "part of no step": without("parts", 0, "step"),
    "micro-batch as a word": at("parts", 0, "micro_batch", value="x"),
    "losses of another trial": at("losses", 0, 1, value="nobody"),
    "another loss": at("losses", 0, 0, value="hinge"),
    "loss as a word": at("losses", 0, 2, value="large"),
    "losses of two": at("losses", 0, value=["ctc", 1.0]),
    "modes of another trial": at("modes", value={"nobody": [0.5, True]}),
    "modes as words": at("modes", value={"nobody": "loud"}),
}


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return apply


BATCH: dict[str, Callable[[Tensors], None]] = {
    "signal of other channels": tensor("0.signal", lambda x: x[:, :, 1:]),
    "signal of two dimensions": tensor("0.signal", lambda x: x[:, :, 0]),
    "signal of whole numbers": tensor("0.signal", lambda x: x.long()),
    "signal in half precision": tensor("0.signal", lambda x: x.half()),
    "signal of fewer trials": tensor("0.signal", lambda x: x[:1]),
    "signal of no bins": tensor("0.signal", lambda x: x[:, :0]),
    "lengths too large": tensor("0.lengths_B", lambda x: x + 10**6),
    "lengths of 0": tensor("0.lengths_B", lambda x: x * 0),
    "negative lengths": tensor("0.lengths_B", lambda x: -x),
    "lengths as floats": tensor("0.lengths_B", lambda x: x.float()),
    "labels beyond the symbols": tensor("0.labels_BU", lambda x: x + 1000),
    "negative labels": tensor("0.labels_BU", lambda x: x - 1000),
    "blank among the labels": tensor("0.labels_BU", lambda x: x * 0),
    "labels of one dimension": tensor("0.labels_BU", lambda x: x[:, 0]),
    "label lengths too large": tensor("0.label_lengths_B", lambda x: x + 10**6),
    "negative label lengths": tensor("0.label_lengths_B", lambda x: -x),
    "sessions beyond the model's": tensor("0.session_B", lambda x: x + 10**6),
    "negative sessions": tensor("0.session_B", lambda x: x - 5),
    "no lengths": lambda tensors: tensors.__delitem__("0.lengths_B"),
}
RANDOM: dict[str, Callable[[Tensors], None]] = {
    "random state too short": tensor("cpu", lambda x: x[:100]),
    "random state of floats": tensor("cpu", lambda x: x.float()),
    "random state of noughts": tensor("cpu", lambda x: x * 0),
    "no random state": lambda tensors: tensors.clear(),
}
MODEL: dict[str, Callable[[Tensors], None]] = {
    "a weight of another shape": tensor("head.bias", lambda x: x[1:]),
    "a missing weight": lambda tensors: tensors.__delitem__("head.bias"),
}


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `diagnose --replay` says of what it cannot read."""
    assert main(["diagnose", str(path), "--replay"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert str(path) in printed.err
    return printed.err


def change_index(folder: Path, change: Callable[[State], None]) -> None:
    index = json.loads((folder / "checkpoint.json").read_text())
    change(index)
    (folder / "checkpoint.json").write_text(json.dumps(index))


def test_an_untouched_copy_is_replayed(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(copy), "--replay"]) == 1
    assert "bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize("what", BEFORE)
def test_the_state_before(what: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_index(copy / "before", BEFORE[what])
    refused(copy, capsys)


@pytest.mark.parametrize("what", PROCESS)
def test_the_state_of_a_process(what: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_index(copy / "process-0", PROCESS[what])
    refused(copy, capsys)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        *(("process-0/batch", what) for what in BATCH),
        *(("before/random", what) for what in RANDOM),
        *(("before/model", what) for what in MODEL),
    ],
)
def test_tensors(place: str, what: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = copy.glob(f"{place}-*.safetensors")
    tensors = load_file(path)
    (BATCH | RANDOM | MODEL)[what](tensors)
    save_file(tensors, path)
    refused(copy, capsys)


def test_an_index_that_is_nested_without_end(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "before" / "checkpoint.json").write_text("[" * 10**6)
    assert "is not a checkpoint index" in refused(copy, capsys)


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


def _pickled(trap: Path) -> bytes:
    return pickle.dumps(_Trap(trap))


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(_pickled(tmp_path / "trap"))
    assert (tmp_path / "trap").read_text() == "executed"


@pytest.mark.parametrize("way", ["pickle", "torch.save"])
@pytest.mark.parametrize(
    "place",
    [
        "before/model-*",
        "before/optimizer-*",
        "before/random-*",
        "before/checkpoint.json",
        "process-0/batch-*",
        "process-0/checkpoint.json",
    ],
)
def test_nothing_is_executed(
    place: str, way: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap, (path,) = tmp_path / "trap", copy.glob(place)
    if way == "pickle":
        path.write_bytes(_pickled(trap))
    else:
        torch.save(_Trap(trap), path)
    refused(copy, capsys)
    assert not trap.exists()


def test_nor_a_pickle_that_the_index_names(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "before" / "weights.pkl").write_bytes(_pickled(tmp_path / "trap"))
    change_index(copy / "before", files("model", "weights.pkl"))
    refused(copy, capsys)
    assert not (tmp_path / "trap").exists()


def test_nor_the_configuration_of_a_run(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, trap = Path(shutil.copytree(run_dir, tmp_path / "run")), tmp_path / "trap"
    (path / "config.yaml").write_text(f"seed: !!python/object/apply:os.system ['touch {trap}']\n")
    refused(path, capsys)
    assert not trap.exists()


def test_one_damaged_capsule_leaves_the_others(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(run_dir, tmp_path / "run"))
    damaged, *whole = sorted(capsules_of(path))
    assert whole
    change_index(path / "capsules" / str(damaged) / "before", BEFORE["empty environment"])
    assert main(["diagnose", str(path), "--replay"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("bit for bit") == len(whole)
    assert printed.err.count("\n") == 1
    assert f"capsules/{damaged} does not hold what a capsule must" in printed.err
    assert main(["diagnose", str(path), "--replay", "--json"]) == 1
    printed = capsys.readouterr()
    assert [replayed["step"] for replayed in json.loads(printed.out)["replays"]] == whole
    assert f"capsules/{damaged}" in json.loads(printed.out)["damaged"][0]
