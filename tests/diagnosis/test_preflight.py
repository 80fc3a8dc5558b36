"""Preflight as a whole: silent on healthy recipes, in no way noticed by the run, and told on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sottovoce.cli.main import main
from sottovoce.core.findings import Finding
from sottovoce.core.records import read_json_lines
from sottovoce.diagnosis.preflight import preflight
from sottovoce.diagnosis.preflight.untrained_run import UntrainedRun
from sottovoce.diagnosis.watcher import RunWatch
from sottovoce.training.composition import compose_config
from sottovoce.training.preparation import Prepared, prepare
from sottovoce.training.run import start
from tests.training.small_runs import assert_same_run, overrides

SMALL_SSM = (
    "preprocessor.num_channels=16",
    "model.stem.width=16",
    "model.ssm.width=16",
    "model.ssm.head_size=8",
    "model.flow_bridge.enabled=true",
    "training.num_threads=1",
)
Prepare = Callable[..., Prepared]


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings if finding.severity != "note"]


@pytest.fixture
def demo(tiny_t15: Path, tmp_path: Path) -> Prepare:
    return lambda *more: prepare(compose_config(overrides(tiny_t15, tmp_path, "run", *more)))


@pytest.mark.parametrize("more", [(), ("training.loss_normalisation=per_token", "data.sessions_per_batch=2")])
def test_a_healthy_demo_gets_no_finding(demo: Prepare, more: tuple[str, ...]) -> None:
    assert codes(preflight(demo(*more))) == []


def test_a_healthy_curriculum_gets_no_finding(tiny_t15: Path) -> None:
    prepared = prepare(compose_config(["recipe=mode_ssm_small", f"data.data_root={tiny_t15}", *SMALL_SSM]))
    assert codes(preflight(prepared)) == []


@pytest.mark.slow
def test_healthy_samples_get_no_finding(shared_data: Path) -> None:
    for recipe, data in (("t15_gru", "t15_sample"), ("recordings", "fsdd")):
        prepared = prepare(compose_config([f"recipe={recipe}", f"data.data_root={shared_data / data}"]))
        assert codes(preflight(prepared)) == []


def snapshot(prepared: Prepared) -> dict[str, object]:
    model = prepared.model
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "learns": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "random": torch.get_rng_state(),
        "bridge": model.use_flow_bridge,
    }


def equal(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def test_everything_is_left_as_it_was(tiny_t15: Path) -> None:
    prepared = prepare(compose_config(["recipe=mode_ssm_small", f"data.data_root={tiny_t15}", *SMALL_SSM]))
    weight = prepared.model.head.weight
    weight.grad = torch.full_like(weight, 3.0)
    assert prepared.model.stem is not None
    prepared.model.stem.eval()
    before = snapshot(prepared)
    preflight(prepared)
    assert equal(snapshot(prepared), before)


def test_a_failing_check_leaves_everything_as_it_was(demo: Prepare) -> None:
    prepared = demo()
    untrained, before = UntrainedRun.of(prepared), snapshot(prepared)
    with pytest.raises(ZeroDivisionError), untrained.untouched():
        untrained.enter()
        untrained.computer.add(untrained.part()).loss.backward()
        with torch.no_grad():
            prepared.model.head.weight.zero_()
        raise ZeroDivisionError
    assert equal(snapshot(prepared), before)


@pytest.mark.slow
def test_training_after_preflight_is_training_without(tiny_t15: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("with", "without"):
        prepared = prepare(compose_config(overrides(tiny_t15, tmp_path, name)))
        runs.append(start(prepared, RunWatch(prepared, preflight(prepared)) if name == "with" else None))
    assert_same_run(*runs)


def test_an_error_ends_the_run_before_it_has_a_directory(
    tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.nn.functional.ctc_loss", _zero_infinity(torch.nn.functional.ctc_loss))
    assert main(["train", *overrides(tiny_t15, tmp_path / "runs", "bad", "training.preflight=true")]) == 1
    told = capsys.readouterr().err
    assert "zero_infinity" in told and "training.preflight=false" in told
    assert not (tmp_path / "runs").exists()


def _zero_infinity(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def replaced(*arguments: object, **named: object) -> torch.Tensor:
        return function(*arguments, **{**named, "zero_infinity": True})

    return replaced


def test_findings_of_a_run_that_goes_on_are_events(
    demo: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = demo("training.steps=3")
    monkeypatch.setattr("sottovoce.diagnosis.preflight.targets.LEAST_MARGIN", 1000)
    run_dir = start(prepared, RunWatch(prepared, preflight(prepared)))
    events = [e for e in read_json_lines(run_dir / "events.jsonl") if e["event"] == "ctc_infeasible"]
    assert [(e["step"], e["severity"], e["source"]) for e in events] == [(0, "warning", "preflight")]
    assert "ctc_infeasible" in capsys.readouterr().err


def test_check_takes_a_recipe(
    tiny_t15: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configured = overrides(tiny_t15, tmp_path / "runs", "none")
    assert main(["check", *configured, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    weights = sum(p.numel() for p in prepare(compose_config(configured)).model.parameters())
    assert printed["memory"]["weights"] == 4 * 4 * weights  # float32; weights, gradients and two moments
    assert printed["memory"]["activations"] > 0
    assert printed["trials"] == 30 and not [f for f in printed["findings"] if f["severity"] != "note"]
    monkeypatch.setattr("torch.nn.functional.ctc_loss", _zero_infinity(torch.nn.functional.ctc_loss))
    assert main(["check", *configured]) == 1
    assert "error: zero_infinity" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert main(["check", str(tiny_t15), "more"]) == 2
