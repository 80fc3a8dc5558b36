"""The curriculum's arithmetic and its refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sottovoce.core.errors import ConfigurationError
from sottovoce.models.compose import COMPONENTS
from sottovoce.training.stages import Stage, StageConfig, activity, planned

JOINT = StageConfig(
    "joint_train",
    epochs=2,
    components=("encoder", "ctc_decoder", "rnnt_decoder"),
    loss_weights={"ctc": 0.3, "rnnt": 1.0},
    learning_rate={"encoder": 0.5},
)
PRESENT = ("preprocessor", "encoder", "ctc_decoder", "rnnt_decoder")


def test_without_stages_there_is_one_with_ctc_alone() -> None:
    (stage,) = planned((), steps=70, steps_per_epoch=9, present=PRESENT)
    assert stage.steps == 70
    assert activity(stage.config, 0, 100, 100).weights == {"ctc": 1.0}
    assert activity(stage.config, 0, 100, 100).rates == {"preprocessor": 1.0, "encoder": 1.0, "ctc_decoder": 1.0}


def test_epochs_become_steps_and_the_denoise_stage_goes_with_its_bridge() -> None:
    denoise = StageConfig(
        "denoise_train", steps=5, components=("flow_bridge",), loss_weights={"ctc": 0, "denoise": 0.05}
    )
    assert planned((JOINT, denoise), 0, 13, PRESENT) == (Stage(JOINT, 26),)
    assert planned((JOINT, denoise), 0, 13, (*PRESENT, "flow_bridge"))[1] == Stage(denoise, 5)


@pytest.mark.parametrize(
    ("before", "weight", "rates"),
    [
        (0, None, {"encoder": 0.5, "ctc_decoder": 1.0}),
        (99, None, {"encoder": 0.5, "ctc_decoder": 1.0}),
        (100, 0.02, {"encoder": 0.5, "ctc_decoder": 1.0, "rnnt_decoder": 1.0}),
        (149, 1.0, {"encoder": 0.5, "ctc_decoder": 1.0, "rnnt_decoder": 1.0}),
        (9999, 1.0, {"encoder": 0.5, "ctc_decoder": 1.0, "rnnt_decoder": 1.0}),
    ],
)
def test_the_transducer_is_held_back_and_then_ramped(
    before: int, weight: float | None, rates: dict[str, float]
) -> None:
    found = activity(JOINT, before, warmup_steps=100, ramp_steps=50)
    assert found.weights == ({"ctc": 0.3} if weight is None else {"ctc": 0.3, "rnnt": pytest.approx(weight)})
    assert found.rates == rates


def test_no_hold_and_no_ramp() -> None:
    assert activity(JOINT, 0, 0, 0).weights == {"ctc": 0.3, "rnnt": 1.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"components": ()}, "trains nothing"),
        ({"learning_rate": dict.fromkeys(COMPONENTS, 0.0)}, "trains nothing"),
        ({"loss_weights": {"ctc": 0}}, "all loss weights are 0"),
        ({"components": ("encoder", "ctc_decoder")}, "rnnt_decoder is frozen"),
        ({"loss_weights": {"ctc": 1}}, "loss_weights.rnnt is 0"),
        ({"loss_weights": {"ctc": -1}}, "must not be negative"),
        ({"steps": 3}, "exactly one of epochs and steps"),
        ({"epochs": 0}, "at least 1"),
        ({"metric": "loss"}, "choose one of per"),
        ({"components": (*JOINT.components, "encoder")}, "twice"),
        ({"learning_rate": {"mode_head": 2}}, "has no effect"),
        ({"components": ("encoder", "head")}, "no component 'head'"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        replace(JOINT, **changes)  # type: ignore[arg-type]


def test_missing_parts_and_double_names_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="has no rnnt_decoder"):
        planned((JOINT,), 0, 1, ("encoder", "ctc_decoder"))
    with pytest.raises(ConfigurationError, match="2 stages are called joint"):
        planned((JOINT, replace(JOINT, name="joint")), 0, 1, PRESENT)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_and_factors_are_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"ctc={value} must be finite"):
        StageConfig("x", steps=1, loss_weights={"ctc": value})
    with pytest.raises(ConfigurationError, match=rf"encoder={value} must be finite"):
        StageConfig("x", steps=1, learning_rate={"encoder": value})
