"""The guard in loops, models and number formats that are not ours."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sottovoce.core.errors import ConfigurationError, TrainingAborted
from sottovoce.training import GradientGuard
from sottovoce.training.buffers import SMALL
from sottovoce.training.verdict import GuardConfig
from tests.training.test_guard import gradient

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "when-training-fails.md"


class Normed(nn.Module):
    """A batch norm, a table too large to be copied at every step, and a mask that is infinite by design."""

    mask: torch.Tensor
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("table", torch.ones(SMALL + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))

    def running(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Running mean and variance of the batch norm."""
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        return self.norm.running_mean, self.norm.running_var


def step(model: nn.Module, guard: GradientGuard, x: torch.Tensor, **more: Any) -> Any:
    """One step of plain gradient descent under the guard."""
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = (model(x) * torch.arange(1.0, 3.0)).square().sum()
    loss.backward()
    verdict = guard.inspect(parameters, {"loss": loss.item()}, model=model, **more)
    optimizer.step()
    optimizer.zero_grad()
    return verdict


def test_a_bad_step_does_not_stay_in_the_buffers() -> None:
    torch.manual_seed(0)
    model, guard = Normed(), GradientGuard()
    guard.keep(dict(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert not step(model, guard, torch.randn(4, 2)).skipped
    mean, var = (statistic.clone() for statistic in model.running())
    bad = torch.randn(4, 2)
    bad[0] = math.nan
    with torch.no_grad():
        model.table[3] = math.nan
    verdict = step(model, guard, bad)
    assert (verdict.action, verdict.buffers) == ("skip", ("table", "norm.running_mean", "norm.running_var"))
    now_mean, now_var = model.running()
    assert torch.equal(now_mean, mean)  # of the step before, not of when `keep` was called
    assert torch.equal(now_var, var)
    assert model.table.isfinite().all()
    assert model.mask.tolist() == [0.0, -math.inf]
    assert not step(model, guard, torch.randn(4, 2)).skipped
    assert model.eval()(torch.ones(1, 2)).isfinite().all()


def test_buffers_need_no_copy_by_keep_once_a_step_was_good() -> None:
    torch.manual_seed(0)
    model, guard = Normed(), GradientGuard()
    step(model, guard, torch.randn(4, 2))
    assert step(model, guard, torch.full((4, 2), math.nan)).buffers == ("norm.running_mean", "norm.running_var")


def test_buffers_lost_in_the_first_step_with_nothing_kept_end_it() -> None:
    with pytest.raises(TrainingAborted, match=r"norm.running_mean, norm.running_var: the buffers hold NaN.*call keep"):
        step(Normed(), GradientGuard(), torch.full((4, 2), math.nan))


def test_keep_puts_back_lost_buffers_and_says_so() -> None:
    model, guard = Normed(), GradientGuard()
    parameters, optimizer = dict(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=0.1)
    assert guard.keep(parameters, optimizer, model) is None
    model.running()[1].fill_(math.inf)
    verdict = guard.keep(parameters, optimizer, model)
    assert verdict is not None
    assert (verdict.cause, verdict.buffers) == ("poisoned_weights", ("norm.running_var",))
    assert model.running()[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_are_taken_in_float32(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(1000, dtype=dtype))
    weight.grad = torch.full_like(weight, 4000.0)
    verdict = GradientGuard().inspect({"w": weight}, {})
    assert verdict.action == "step"
    assert verdict.gradient_norm == pytest.approx(4000 * math.sqrt(1000), rel=1e-6)
    verdict = GradientGuard(max_norm=1.0).inspect({"w": weight}, {})
    assert verdict.clipped
    assert weight.grad.float().norm() == pytest.approx(1.0, rel=1e-2)


def test_formats_may_be_mixed() -> None:
    weights = [nn.Parameter(torch.ones(1, dtype=d)) for d in (torch.float16, torch.float64, torch.float32)]
    for weight, value in zip(weights, (2.0, 3.0, 6.0), strict=True):
        weight.grad = torch.full_like(weight, value)
    assert GradientGuard().inspect(dict(zip("abc", weights, strict=True)), {}).gradient_norm == pytest.approx(7.0)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_an_owner_is_known_by_the_parameter_not_by_its_name() -> None:
    model = Tied()
    mine = {
        own: model.get_parameter(name)
        for own, name in (("tied", "b.weight"), ("first", "a.bias"), ("second", "b.bias"))
    }
    model(torch.ones(1, 2)).sum().backward()
    assert GradientGuard().inspect(mine, {}, model=model).action == "step"
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    compiled(torch.ones(1, 2)).sum().backward()
    assert next(iter(dict(compiled.named_parameters()))).startswith("_orig_mod.")
    assert GradientGuard().inspect(dict(model.named_parameters()), {}, model=compiled).action == "step"


def test_buffers_of_a_compiled_model_are_those_of_the_model() -> None:
    model, guard = Normed(), GradientGuard()
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    guard.keep(dict(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert step(compiled, guard, torch.full((4, 2), math.nan)).buffers == ("norm.running_mean", "norm.running_var")


def test_another_optimisers_gradients_are_its_own() -> None:
    mine, theirs = nn.Linear(2, 2), nn.Linear(2, 1)
    model, other = nn.Sequential(mine, theirs), torch.optim.SGD(theirs.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    gradient(theirs.weight).fill_(math.nan)  # for the other's guard to judge
    kept = theirs.bias.grad
    guard = GradientGuard()
    assert guard.inspect(dict(mine.named_parameters()), {}, model=model, others=[other]).action == "step"
    verdict = guard.inspect(dict(mine.named_parameters()), {"loss": math.nan}, model=model, others=[other])
    assert verdict.skipped
    assert all(p.grad is None for p in mine.parameters())
    assert theirs.bias.grad is kept


def test_only_likelihoods_are_never_0() -> None:
    weight = nn.Parameter(torch.ones(2))
    for likelihoods, cause in ((False, None), (True, "zero_loss")):
        weight.grad = torch.ones(2)
        assert GradientGuard().inspect({"w": weight}, {"hinge": 0.0}, likelihoods=likelihoods).cause == cause


def test_a_parameter_may_have_no_group() -> None:
    weights = {name: nn.Parameter(torch.ones(1)) for name in "ab"}
    for weight in weights.values():
        weight.grad = torch.full((1,), 3.0)
    verdict = GradientGuard().inspect(weights, {}, groups={"a": "first"})
    assert verdict.group_norms == {"first": 3.0}
    assert verdict.gradient_norm == pytest.approx(math.sqrt(18))


@pytest.mark.parametrize("entry", [1.0, math.nan])
def test_sparse_gradients(entry: float) -> None:
    table = nn.Embedding(10, 3, sparse=True)
    (table(torch.tensor([1, 1, 2])).sum() * entry).backward()
    verdict = GradientGuard(max_norm=1.0).inspect({"table": table.get_parameter("weight")}, {})
    if math.isnan(entry):
        assert (verdict.cause, verdict.evidence, table.weight.grad) == ("nonfinite_gradient", "table", None)
        assert verdict.gradients["table"].nonfinite == 1.0
    else:  # row 1 was looked up twice
        assert verdict.action == "clip"
        assert verdict.gradient_norm == pytest.approx(math.sqrt(3 * 4 + 3 * 1))
        assert gradient(table.weight).to_dense().norm() == pytest.approx(1.0, rel=1e-5)


def test_an_empty_parameter_in_a_bad_step() -> None:
    empty, other = nn.Parameter(torch.ones(0)), nn.Parameter(torch.ones(1))
    empty.grad, other.grad = torch.ones(0), torch.full((1,), math.nan)
    verdict = GradientGuard().inspect({"empty": empty, "other": other}, {})
    assert (verdict.evidence, verdict.gradients["empty"].norm) == ("other", 0.0)
    empty.grad, other.grad = torch.ones(0), torch.full((1,), 3e38)
    more = {"more": nn.Parameter(torch.ones(1))}
    more["more"].grad = torch.full((1,), 2e38)
    assert GradientGuard().inspect({"empty": empty, "other": other} | more, {}).evidence.endswith("largest: other")


def test_state_that_is_no_tensor_is_kept_too() -> None:
    """LBFGS remembers numbers, lists of tensors and lists with nothing in them."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.eye(2)).sub(3.0).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    parameters, guard = dict(model.named_parameters()), GradientGuard()
    assert guard.keep(parameters, optimizer) is None
    kept = [p.detach().clone() for p in model.parameters()]
    optimizer.step(closure)
    after = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        model.weight.fill_(math.nan)
    assert guard.keep(parameters, optimizer) is not None
    assert all(torch.equal(p, k) for p, k in zip(model.parameters(), kept, strict=True))
    optimizer.step(closure)  # the same step from the same state
    assert all(torch.equal(p, k) for p, k in zip(model.parameters(), after, strict=True))


def test_moments_that_are_not_finite_are_not_kept() -> None:
    """An infinite second moment stops its weight for ever, and no weight shows it."""
    weight = nn.Parameter(torch.ones(2))
    optimizer, guard = torch.optim.Adam([weight]), GradientGuard()
    weight.grad = torch.ones(2)
    optimizer.step()
    assert guard.keep({"w": weight}, optimizer) is None
    optimizer.state[weight]["exp_avg_sq"][1] = math.inf
    verdict = guard.keep({"w": weight}, optimizer)
    assert verdict is not None
    assert (verdict.cause, verdict.evidence) == ("poisoned_weights", "w::exp_avg_sq")
    assert optimizer.state[weight]["exp_avg_sq"].isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_norm": -1.0}, "max_norm=-1.0: must be at least 0"),
        ({"max_norm": math.nan}, "max_norm=nan: must be at least 0"),
        ({"max_bad_steps": 0}, "max_bad_steps=0: must be at least 1"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        GradientGuard(**arguments)
    with pytest.raises(ConfigurationError, match="clip_above_median=nan: must be above 1"):
        GuardConfig(clip_above_median=math.nan)


def scaled_steps(guard: GradientGuard, scaler: torch.amp.GradScaler, count: int, factor: float = 1.0) -> nn.Linear:
    """Steps whose gradients pass through float16 while they are scaled."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(count):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 2)).sum() * factor).backward()
        for parameter in model.parameters():
            parameter.grad = gradient(parameter).half().float()
        scaler.unscale_(optimizer)
        guard.inspect(dict(model.named_parameters()), {}, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
    return model


def test_a_scaler_that_looks_for_its_scale_makes_no_bad_steps() -> None:
    guard, scaler = GradientGuard(), torch.amp.GradScaler("cpu", init_scale=2.0**30)
    scaled_steps(guard, scaler, 20)
    assert (guard.overflows, scaler.get_scale()) == (15, 2.0**15)
    assert (guard.in_a_row, guard.recent, guard.skipped) == (0, [False] * 5, {})
    again = GradientGuard()
    again.restore(guard.state())
    assert again.overflows == 15


def test_a_scale_that_has_nothing_left_to_give_is_no_excuse() -> None:
    guard, scaler = GradientGuard(max_bad_steps=3), torch.amp.GradScaler("cpu", init_scale=8.0)
    with pytest.raises(TrainingAborted, match="nonfinite_gradient in 3 steps in a row"):
        scaled_steps(guard, scaler, 20, factor=math.nan)
    assert guard.overflows == 3  # under 8, 4 and 2


def test_the_loop_of_the_guide() -> None:
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "GradientGuard(" in b]
    torch.manual_seed(0)
    batches = [torch.randn(8, 4) for _ in range(6)]
    batches[3][0] = math.nan
    scope: dict[str, Any] = {"batches": batches}
    exec(block, scope)
    assert scope["guard"].skipped == {"nonfinite_loss": 1}
    model = scope["model"]
    assert all(bool(t.isfinite().all()) for t in (*model.parameters(), *model.buffers()))
    assert scope["optimizer"].state[next(model.parameters())]["step"] == 5
