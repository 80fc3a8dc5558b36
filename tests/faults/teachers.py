"""Exhibits of rows H5 to H9: a student whose teachers would be fine, spoilt."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from sottovoce.core.trial import Batch
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import prepare
from sottovoce.training.run import start
from sottovoce.training.teachers import Teacher
from tests.faults.scene import COMMON, GRU, RECORDINGS, Exhibit, Scene
from tests.training.spoilt import exact_loss, spoil_loss

TEACHER_STEPS = 800
Logits = tuple[torch.Tensor, torch.Tensor]


def train_teachers(data: Path, folder: Path) -> tuple[Path, Path]:
    """Two runs of the base `gru` that decode more than half of the phonemes of `data`."""
    places = (f"data.data_root={data}", f"runs_dir={folder}", f"training.steps={TEACHER_STEPS}")
    first, second = (
        start(prepare(compose_config([*GRU, *COMMON, *places, f"run_name=teacher{seed}", f"seed={seed}"])))
        for seed in (31, 32)
    )
    return first, second


def ask(scene: Scene, *teachers: Path) -> None:
    """Two healthy teachers, or those that are given."""
    named = ",".join(map(str, teachers or scene.teachers()))
    scene.overrides.append(f"training.distillation.teachers=[{named}]")


def voices_teacher(scene: Scene, name: str, *overrides: str) -> Path:
    """A run of the base `recordings` on the scene's data."""
    places = (f"data.data_root={scene.data}", f"runs_dir={scene.folder}", f"run_name={name}")
    return start(prepare(compose_config([*RECORDINGS, *COMMON, *places, *overrides])))


def ask_voices(scene: Scene) -> None:
    """A teacher of all three speakers."""
    ask(scene, voices_teacher(scene, "teacher", "training.steps=200"))


def ask_voices_out_of_fold(scene: Scene) -> None:
    """Two teachers, each of which has heard two of the three speakers; nothing else is held out."""
    rows = [line.split(",") for line in (scene.data / "manifest.csv").read_text().splitlines()]
    folders = {"student": "", "without_ben": "ben", "without_cleo": "cleo"}
    for name, left_out in folders.items():
        shutil.copytree(scene.data, scene.folder / name)
        lines = [",".join([*rows[0], "split"])]
        for file, speaker, word in rows[1:]:
            split = {"6": "val", "7": "test"}.get(file.split("_")[2][0], "train")
            lines += [f"{file},{speaker},{word},{split}"] if speaker != left_out else []
        (scene.folder / name / "manifest.csv").write_text("\n".join(lines) + "\n")
    teachers = []
    for name in list(folders)[1:]:
        scene.data = scene.folder / name
        teachers.append(voices_teacher(scene, f"of_{name}", "training.steps=200"))
    scene.data = scene.folder / "student"
    ask(scene, *teachers)


def another_table(scene: Scene) -> None:
    """A teacher of as many columns that stand for other symbols."""
    other = shutil.copytree(scene.teachers()[0], scene.folder / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["data"]["symbols"] = "letters"
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    ask(scene, other)


def _spoil_logits(scene: Scene, change: Callable[[Teacher, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    exact = Teacher.logits

    def wrong(self: Teacher, batch: Batch, session_B: torch.Tensor) -> Logits:
        logits_BSV, frames_B = exact(self, batch, session_B)
        return change(self, logits_BSV, frames_B), frames_B

    scene.patch.setattr(Teacher, "logits", wrong)
    ask(scene)


def recordings_swapped(scene: Scene) -> None:
    """A cache by the wrong key: each trial gets what the teacher said of the next."""
    _spoil_logits(scene, lambda teacher, logits_BSV, frames_B: logits_BSV.roll(1, 0))


def columns_shifted_by_one(scene: Scene) -> None:
    """An offset between two tables that both begin with a blank: the blank stays, all else moves."""

    def shifted(teacher: Teacher, logits_BSV: torch.Tensor, frames_B: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits_BSV[:, :, :1], logits_BSV[:, :, 1:].roll(1, 2)], 2)

    _spoil_logits(scene, shifted)


def one_teacher_late(scene: Scene) -> None:
    """By three frames: its symbols fall where the other says blank."""

    def late(teacher: Teacher, logits_BSV: torch.Tensor, frames_B: torch.Tensor) -> torch.Tensor:
        silence_BSV = 20 * torch.nn.functional.one_hot(
            torch.zeros_like(logits_BSV[:, :3, 0]).long(), logits_BSV.shape[2]
        )
        return torch.cat([silence_BSV, logits_BSV[:, :-3]], 1) if teacher.name.endswith("32") else logits_BSV

    _spoil_logits(scene, late)


def blank_left_out(scene: Scene) -> None:
    """Both sides renormalised over the labels."""
    exact = exact_loss("distillation_loss")

    def wrong(logits_BSV: torch.Tensor, log_q_BSV: torch.Tensor, *rest: Any) -> torch.Tensor:
        return exact(logits_BSV[:, :, 1:], log_q_BSV[:, :, 1:].log_softmax(-1), *rest)

    spoil_loss(scene.patch, "distillation_loss", wrong)
    ask(scene)


def held_out_speaker_heard(scene: Scene) -> None:
    """A teacher trained on all three speakers, one of whom the student holds out."""
    ask(scene, voices_teacher(scene, "teacher", "training.steps=12"))


museum_only = functools.partial(Exhibit, slow=True)
EXHIBITS = (
    museum_only("a teacher with another symbol table", "H5", "teacher_audio_mismatch", another_table),
    museum_only("teachers of another stride", "H5", "teacher_audio_mismatch", ask, overrides=("model.patch.stride=3",)),
    museum_only("each trial gets the lesson of the next", "H5", "teacher_audio_mismatch", recordings_swapped),
    museum_only("symbols of the teachers shifted by one", "H5", "teacher_audio_mismatch", columns_shifted_by_one),
    museum_only("blank left out of the divergence", "H6", "blank_without_gradient", blank_left_out),
    museum_only("teachers alone", "H7", "distillation_without_labels", ask,
                overrides=("training.distillation.weight=1",)),
    museum_only("one teacher three frames late", "H8", "teacher_spikes_misaligned", one_teacher_late),
    Exhibit("a teacher has heard the held-out speaker", "H9", "teacher_heard_test_speaker", held_out_speaker_heard,
            "recordings", ("data.held_out_speakers=[ada]",)),
)  # fmt: skip
