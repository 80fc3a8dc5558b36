import pytest
import torch

from sottovoce.models import ModelConfig, build_model
from sottovoce.models.gru import GRUConfig
from sottovoce.models.patching import PatchConfig
from sottovoce.models.session_adapter import SessionAdapterConfig
from sottovoce.training.config import OptimizerConfig
from sottovoce.training.guard import GradientGuard
from sottovoce.training.optimizer import build_optimizer, set_learning_rates
from sottovoce.training.schedules import SchedulerConfig, learning_rate_factor

OFFICIAL = OptimizerConfig(lr=5e-3, session_lr=5e-3, weight_decay=1e-3, eps=0.1)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(
        session_adapter=SessionAdapterConfig(0.0),
        patch=PatchConfig(4, 2),
        gru=GRUConfig(6, 2, 0.0),
        num_channels=3,
        num_sessions=3,
        num_symbols=5,
    )
    return build_model(config)


def test_the_three_official_groups() -> None:
    one = model()
    names = {id(p): name for name, p in one.named_parameters()}
    groups = {g["name"]: {names[id(p)] for p in g["params"]} for g in build_optimizer(one, OFFICIAL).param_groups}
    assert set(groups) == {"bias", "session", "other"}
    assert groups["session"] == {name for name in names.values() if name.startswith("session_adapter")}
    assert "head.bias" in groups["bias"]
    assert "encoder.gru.bias_hh_l1" in groups["bias"]
    assert "encoder.initial_state" in groups["other"]
    assert sum(map(len, groups.values())) == len(names)


def test_one_update_equals_adamw_s_formulas() -> None:
    """θ ← θ − lr·wd·θ − lr·m̂/(√v̂ + eps), three steps, clipped at 10, absent sessions untouched."""
    one = model()
    optimizer = build_optimizer(one, OFFICIAL)
    parameters = dict(one.named_parameters())
    expected = {name: p.detach().clone() for name, p in parameters.items()}
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    taken = dict.fromkeys(parameters, 0)
    schedule = SchedulerConfig(warmup_steps=2, max_steps=10)
    for step in range(3):
        rates = set_learning_rates(optimizer, learning_rate_factor(step, schedule, 10), {})
        signal = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(step))
        logits, _ = one(signal, torch.tensor([10, 10]), torch.tensor([0, 2]))
        (40 * logits.square().sum()).backward()
        norm = torch.stack([p.grad.norm() for p in one.parameters() if p.grad is not None]).norm()
        scale = min(1.0, 10 / (float(norm) + 1e-6))
        for name, parameter in parameters.items():
            if parameter.grad is None:
                continue
            group = "session" if name.startswith("session") else "bias" if ".bias" in name else "other"
            lr, decay = rates[group], 1e-3 if group == "other" else 0.0
            gradient = parameter.grad * scale
            taken[name] += 1
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            corrected = first[name] / (1 - 0.9 ** taken[name])
            root = (second[name] / (1 - 0.999 ** taken[name])).sqrt()
            expected[name] = expected[name] * (1 - lr * decay) - lr * corrected / (root + 0.1)
        assert GradientGuard(max_norm=10.0).inspect(parameters, {}).clipped
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in parameters.items():
        assert torch.allclose(parameter, expected[name], atol=2e-6), name
    assert taken["session_adapter.weights.1"] == 0


def test_the_first_step_has_rate_zero_and_the_schedule_its_published_values() -> None:
    schedule = SchedulerConfig(warmup_steps=1000, max_steps=120_000, min_lr_ratio=0.02)
    rates = {s: 0.005 * learning_rate_factor(s, schedule, 1) for s in (0, 500, 1000, 10_000, 60_500, 120_000, 130_000)}
    assert rates == pytest.approx(
        {0: 0, 500: 0.0025, 1000: 0.005, 10_000: 0.004931, 60_500: 0.00255, 120_000: 1e-4, 130_000: 1e-4}, abs=5e-7
    )
    constant = SchedulerConfig("constant", warmup_steps=4)
    assert [learning_rate_factor(s, constant, 10) for s in (0, 2, 4, 99)] == [0.0, 0.5, 1.0, 1.0]
    no_warmup = SchedulerConfig(warmup_steps=0)
    assert learning_rate_factor(0, no_warmup, 10) == 1.0
