import dataclasses
import json
import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from sottovoce.core.errors import TrainingAborted
from sottovoce.training import GradientGuard
from sottovoce.training.guard import FEWEST_NORMS, MOST_ROLL_BACKS, WINDOW, owned_by
from sottovoce.training.verdict import MOST_NAMED, GuardConfig


def model_and_optimizer() -> tuple[nn.Linear, torch.optim.AdamW, dict[str, nn.Parameter]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), dict(model.named_parameters())


def backward(model: nn.Linear, factor: float = 1.0) -> None:
    model(torch.ones(1, 3)).sum().mul(factor).backward()


def gradient(parameter: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter that must have one."""
    assert parameter.grad is not None
    return parameter.grad


def test_a_good_step_passes_unchanged() -> None:
    model, _, parameters = model_and_optimizer()
    backward(model)
    before = [gradient(p).clone() for p in model.parameters()]
    verdict = GradientGuard(max_norm=100.0).inspect(parameters, {"t": 1.0})
    assert not verdict.skipped
    assert not verdict.clipped
    assert verdict.gradient_norm == pytest.approx(math.sqrt(2 * 3 + 2))
    assert all(torch.equal(a, gradient(p)) for a, p in zip(before, model.parameters(), strict=True))


def test_clipping_scales_to_the_limit() -> None:
    model, _, parameters = model_and_optimizer()
    backward(model)
    verdict = GradientGuard(max_norm=0.5).inspect(parameters, {})
    assert verdict.clipped
    assert verdict.gradient_norm == pytest.approx(math.sqrt(8))
    norm = torch.stack([gradient(p).norm() for p in model.parameters()]).norm()
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
    gradient(model.bias)[0] = math.nan
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
    gradient(model.weight).fill_(2e38)
    verdict = GradientGuard(max_norm=1.0).inspect(parameters, {})
    assert verdict.cause == "nonfinite_gradient"
    assert verdict.evidence == "the norm overflows; largest: weight"


def steps(guard: GradientGuard, factors: list[float]) -> list[str]:
    """What the guard does with steps of these gradient sizes."""
    model, _, parameters = model_and_optimizer()
    actions: list[str] = []
    for factor in factors:
        model.zero_grad()
        backward(model, factor)
        actions.append(guard.inspect(parameters, {}).action)
    return actions


def test_clipping_by_the_running_median_begins_once_there_is_one() -> None:
    guard = GradientGuard(config=GuardConfig(clip_above_median=2.0))
    assert steps(guard, [5.0, *[1.0] * (FEWEST_NORMS - 1)]) == ["step"] * FEWEST_NORMS
    assert steps(guard, [1.9, 2.1]) == ["step", "clip"]
    model, _, parameters = model_and_optimizer()
    backward(model, 10.0)
    verdict = guard.inspect(parameters, {})
    assert verdict.limit == pytest.approx(2 * math.sqrt(8))
    assert torch.stack([gradient(p).norm() for p in model.parameters()]).norm() == pytest.approx(
        verdict.limit, rel=1e-5
    )


def test_the_lower_of_two_limits_counts() -> None:
    guard = GradientGuard(max_norm=1.0, config=GuardConfig(clip_above_median=2.0))
    steps(guard, [1.0] * FEWEST_NORMS)
    model, _, parameters = model_and_optimizer()
    backward(model)
    assert guard.inspect(parameters, {}).limit == 1.0


def test_a_spike_is_skipped_and_does_not_move_the_median() -> None:
    guard = GradientGuard(config=GuardConfig(skip_above_median=4.0))
    assert steps(guard, [1.0] * FEWEST_NORMS + [3.9, 4.1, 1e6, 1.0])[-4:] == ["step", "skip", "skip", "step"]
    assert guard.skipped == {"gradient_spike": 2}
    assert max(guard.norms) == pytest.approx(3.9 * math.sqrt(8))
    assert guard.last_skip is not None
    assert "1000000.0 times the median" in guard.last_skip.evidence


def test_a_share_that_can_no_longer_be_met_ends_the_run() -> None:
    """41 of 200 are more than a fifth, whatever comes after the 41st."""
    guard = GradientGuard(config=GuardConfig(max_bad_share=0.2))
    pattern = [math.nan, 1.0]
    steps(guard, pattern * 40)
    assert (sum(guard.recent), len(guard.recent)) == (40, 80)
    with pytest.raises(TrainingAborted, match=r"nonfinite_gradient in 41 of the last 81 steps \(allowed: 40 of 200\)"):
        steps(guard, [math.nan])
    steps(GradientGuard(config=GuardConfig(max_bad_share=1.0)), pattern * (WINDOW // 2 + 1))


def test_early_skips_that_stay_below_the_share_are_forgotten() -> None:
    guard = GradientGuard(config=GuardConfig(max_bad_share=0.2))
    steps(guard, [math.nan, 1.0] * 40 + [1.0] * (WINDOW - 80))
    assert sum(guard.recent) == 40
    steps(guard, [1.0, 1.0, 1.0, math.nan])  # two steps out of the window, one of them bad
    assert sum(guard.recent) == 39


def test_a_gradient_that_no_optimiser_owns_is_refused_and_dropped() -> None:
    model, _, parameters = model_and_optimizer()
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    owned = owned_by(optimizer, parameters)
    assert list(owned) == ["weight"]
    backward(model)
    verdict = GradientGuard().inspect(owned, {}, model=model)
    assert (verdict.cause, verdict.evidence) == ("stale_optimizer", "bias")
    assert verdict.gradient_norm == pytest.approx(math.sqrt(6))
    assert {name: summary.norm for name, summary in verdict.gradients.items()} == {
        "weight": pytest.approx(math.sqrt(6)),
        "bias": pytest.approx(math.sqrt(2)),
    }
    assert model.weight.grad is None
    assert model.bias.grad is None


def test_lost_weights_and_moments_are_rolled_back_and_handed_over() -> None:
    model, optimizer, parameters = model_and_optimizer()
    guard = GradientGuard()
    backward(model)
    optimizer.step()
    assert guard.keep(parameters, optimizer) is None
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    moments = {name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in parameters.items()}
    for again in range(MOST_ROLL_BACKS):
        with torch.no_grad():
            model.weight[0, 0] = math.nan
            optimizer.state[model.weight]["exp_avg"].fill_(math.inf)
        model.zero_grad()
        backward(model)
        verdict = guard.inspect(parameters, {"t": math.nan})
        assert (verdict.action, verdict.cause, verdict.evidence) == ("roll_back", "poisoned_weights", "weight")
        assert verdict.lost is not None
        assert verdict.lost.weights["weight"][0, 0].isnan()
        assert verdict.lost.moments["weight"]["exp_avg"].isinf().all()
        for name, p in parameters.items():
            assert torch.equal(p, weights[name])
            assert all(torch.equal(optimizer.state[p][k], v) for k, v in moments[name].items())
        assert guard.roll_backs == again + 1
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(TrainingAborted, match=r"poisoned_weights: weight: .* again after 3 returns"):
        guard.keep(parameters, optimizer)


def test_moments_that_were_not_there_are_removed_again() -> None:
    model, optimizer, parameters = model_and_optimizer()
    guard = GradientGuard()
    guard.keep(parameters, optimizer)
    backward(model)
    optimizer.step()
    with torch.no_grad():
        model.bias.fill_(math.nan)
    assert guard.keep(parameters, optimizer) is not None
    assert not optimizer.state


def test_state_and_restore_continue_alike() -> None:
    config = GuardConfig(skip_above_median=4.0)
    first, second = GradientGuard(config=config), GradientGuard(config=config)
    steps(first, [1.0, 2.0] * FEWEST_NORMS + [math.nan])
    second.restore(json.loads(json.dumps(first.state())))
    assert second == dataclasses.replace(first, last_skip=None)
    further = [100.0, 1.5, math.nan, 2.0]
    assert steps(first, further) == steps(second, further)
    assert first.state() == second.state()


def test_group_norms_sum_to_the_total() -> None:
    model, _, parameters = model_and_optimizer()
    backward(model)
    verdict = GradientGuard().inspect(parameters, {}, groups={"weight": "a", "bias": "b"})
    assert verdict.group_norms == {"a": pytest.approx(math.sqrt(6)), "b": pytest.approx(math.sqrt(2))}
    assert math.hypot(*verdict.group_norms.values()) == pytest.approx(verdict.gradient_norm)


def test_a_bad_gradient_is_summarised_before_it_is_dropped() -> None:
    model, _, parameters = model_and_optimizer()
    backward(model)
    gradient(model.weight)[0, 0] = math.nan
    verdict = GradientGuard().inspect(parameters, {})
    summary = verdict.gradients["weight"]
    assert summary.norm == pytest.approx(math.sqrt(5))
    assert summary.largest == 1.0
    assert summary.nonfinite == pytest.approx(1 / 6)
    assert verdict.gradients["bias"].nonfinite == 0


def test_what_another_process_saw_is_reason_enough() -> None:
    for place, cause in enumerate(("nonfinite_loss", None, None, "nonfinite_gradient", "stale_optimizer")):
        model, _, parameters = model_and_optimizer()
        backward(model)
        flags = [i == place for i in range(6)]

        def agree(here: Sequence[bool], flags: list[bool] = flags) -> list[bool]:
            return [a or b for a, b in zip(here, flags, strict=True)]

        verdict = GradientGuard().inspect(parameters, {"t": 1.0}, agree)
        assert verdict.cause == cause
        assert verdict.evidence == ("in another process" if cause else "")


def test_a_refused_step_names_all_that_is_at_fault_in_fields() -> None:
    """The sentence names three; the event's lists end at a hundred, their counts do not."""
    _, _, parameters = model_and_optimizer()
    losses = {(loss, f"t{i}"): (-math.inf, math.nan)[i % 2] for i in range(120) for loss in ("ctc", "rnnt")}
    verdict = GradientGuard().inspect(parameters, losses | {("ctc", "fine"): 1.0})
    assert verdict.evidence == "t0 ctc (-inf), t0 rnnt (-inf), t1 ctc (nan) and 237 more"
    assert len(verdict.losses) == 240
    event = verdict.as_event()
    assert event["losses"][:3] == [["ctc", "t0", "-inf"], ["rnnt", "t0", "-inf"], ["ctc", "t1", "nan"]]
    assert (len(event["losses"]), event["num_trials"]) == (MOST_NAMED, 120)
    assert (event["parameters"], event["num_parameters"]) == ([], 0)


def test_the_parameters_at_fault_are_a_field() -> None:
    model, optimizer, parameters = model_and_optimizer()
    backward(model, math.nan)
    guard = GradientGuard()
    guard.keep(parameters, optimizer)
    verdict = guard.inspect(parameters, {"t": 1.0})
    assert verdict.as_event() == {
        "code": "nonfinite_gradient",
        "evidence": "weight, bias",
        "losses": [],
        "num_trials": 0,
        "parameters": ["weight", "bias"],
        "num_parameters": 2,
    }
    with torch.no_grad():
        model.bias.fill_(math.nan)
    backward(model, math.nan)
    verdict = guard.inspect(parameters, {"t": math.nan})
    assert (verdict.cause, verdict.parameters) == ("poisoned_weights", ("bias",))
