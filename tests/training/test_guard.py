import math

import pytest
import torch
from torch import nn

from sottovoce.core.errors import TrainingAborted
from sottovoce.training import GradientGuard


def model_and_optimizer() -> tuple[nn.Linear, torch.optim.AdamW, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), dict(model.named_parameters())


def backward(model: nn.Linear, factor: float = 1.0) -> None:
    model(torch.ones(1, 3)).sum().mul(factor).backward()


def test_a_good_step_passes_unchanged() -> None:
    model, _, parameters = model_and_optimizer()
    backward(model)
    before = [p.grad.clone() for p in model.parameters()]
    verdict = GradientGuard(max_norm=100.0).inspect(parameters, {"t": 1.0})
    assert not verdict.skipped
    assert not verdict.clipped
    assert verdict.gradient_norm == pytest.approx(math.sqrt(2 * 3 + 2))
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_clipping_scales_to_the_limit() -> None:
    model, _, parameters = model_and_optimizer()
    backward(model)
    verdict = GradientGuard(max_norm=0.5).inspect(parameters, {})
    assert verdict.clipped
    assert verdict.gradient_norm == pytest.approx(math.sqrt(8))
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("bad", ["loss", "gradient", "elsewhere"])
def test_a_bad_step_moves_neither_weights_nor_moments(bad: str) -> None:
    model, optimizer, parameters = model_and_optimizer()
    guard = GradientGuard(max_norm=1.0)
    backward(model)
    guard.inspect(parameters, {"t": 1.0})
    optimizer.step()
    optimizer.zero_grad()
    weights = [p.detach().clone() for p in model.parameters()]
    moments = [{k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()]

    backward(model, math.nan if bad == "gradient" else 1.0)
    losses = {"good": 3.0, "trial_7": math.inf} if bad == "loss" else {"good": 3.0}
    verdict = guard.inspect(parameters, losses, lambda flags: [flags[0] or bad == "elsewhere", *flags[1:]])
    optimizer.step()

    assert verdict.cause == ("nonfinite_gradient" if bad == "gradient" else "nonfinite_loss")
    assert {"loss": "trial_7 (inf)", "gradient": "weight, bias", "elsewhere": "in another process"}[
        bad
    ] == verdict.evidence
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    for before, parameter in zip(moments, model.parameters(), strict=True):
        assert all(torch.equal(before[key], optimizer.state[parameter][key]) for key in before)
    assert guard.skipped == {verdict.cause: 1}


def test_clip_grad_norm_alone_would_have_poisoned_the_weights() -> None:
    """Why the guard exists: PyTorch's clipping multiplies every gradient by NaN."""
    model, optimizer, _ = model_and_optimizer()
    backward(model)
    model.bias.grad[0] = math.nan
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert all(bool(p.isnan().all()) for p in model.parameters())


def test_too_many_in_a_row_end_the_run_and_a_good_step_forgives() -> None:
    model, _, parameters = model_and_optimizer()
    guard = GradientGuard(max_bad_steps=3)
    for factor in (math.nan, math.nan, 1.0, math.nan, math.nan):
        model.zero_grad()
        backward(model, factor)
        guard.inspect(parameters, {})
    backward(model, math.nan)
    with pytest.raises(TrainingAborted, match=r"nonfinite_gradient in 3 steps in a row.*weight"):
        guard.inspect(parameters, {})
    assert guard.skipped["nonfinite_gradient"] == 5


def test_evidence_is_short() -> None:
    _, _, parameters = model_and_optimizer()
    verdict = GradientGuard().inspect(parameters, {f"trial_{i}": math.nan for i in range(9)})
    assert verdict.evidence == "trial_0 (nan), trial_1 (nan), trial_2 (nan) and 6 more"


def test_finite_gradients_whose_norm_overflows() -> None:
    model, _, parameters = model_and_optimizer()
    backward(model)
    model.weight.grad.fill_(2e38)
    verdict = GradientGuard(max_norm=1.0).inspect(parameters, {})
    assert verdict.cause == "nonfinite_gradient"
    assert verdict.evidence == "the norm overflows; largest: weight"
