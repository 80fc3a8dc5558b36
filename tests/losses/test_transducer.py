"""Every route against enumeration, recursion, closed forms and each other."""

import math
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch.autograd import gradcheck

from sottovoce.losses import ctc_loss, transducer_loss
from sottovoce.losses.transducer_reference import NEVER
from tests.losses.slow_transducer import alpha_beta, by_enumeration, by_recursion

ROUTES = ["compiled", "scan"]


@dataclass(frozen=True)
class Ragged:
    """Four trials; the last has an empty target. The padding of the targets holds what must not be read."""

    logits: torch.Tensor
    targets: torch.Tensor
    frames: torch.Tensor
    labels: torch.Tensor

    def target(self, b: int) -> list[int]:
        return [int(label) for label in self.targets[b, : self.labels[b]]]

    def alone(self, b: int) -> torch.Tensor:
        return self.logits[b, : self.frames[b], : self.labels[b] + 1]


def _ragged(blank: int = 0, seed: int = 0) -> Ragged:
    logits = 2 * torch.randn(4, 6, 4, 5, generator=torch.Generator().manual_seed(seed))
    other = [label for label in range(5) if label != blank]
    a, b, c = other[0], other[1], other[3]
    targets = torch.tensor([[a, a, b], [c, -1, 99], [c, c, c], [-7, blank, 99]])
    return Ragged(logits, targets, torch.tensor([6, 4, 1, 3]), torch.tensor([3, 1, 3, 0]))


def _nats(batch: Ragged, logits: torch.Tensor, blank: int = 0, route: str = "auto") -> torch.Tensor:
    return transducer_loss(logits, batch.targets, batch.frames, batch.labels, blank=blank, route=route)


def _gradient(batch: Ragged, logits: torch.Tensor, blank: int, route: str, weights: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    (_nats(batch, logits, blank, route) * weights).sum().backward()
    assert logits.grad is not None
    return logits.grad


def _uniform(frames: int, num_labels: int, route: str = "auto") -> float:
    logits, targets = torch.zeros(1, frames, num_labels + 1, 41), torch.arange(num_labels)[None] % 40 + 1
    return transducer_loss(logits, targets, torch.tensor([frames]), torch.tensor([num_labels]), route=route).item()


@pytest.mark.parametrize("route", ROUTES)
def test_uniform_logits_against_the_closed_form(route: str) -> None:
    """(T + U)·ln V − ln C(T + U − 1, U)."""
    assert _uniform(50, 10, route) == pytest.approx(197.95065, abs=2e-5)
    assert _uniform(60, 10, route) == pytest.approx(233.39774, abs=2e-5)
    assert _uniform(1, 4, route) == pytest.approx(5 * math.log(41), rel=1e-6)
    assert _uniform(9, 0, route) == pytest.approx(9 * math.log(41), rel=1e-6)
    assert 60 * math.log(41) - math.log(math.comb(59, 10)) == pytest.approx(197.95065, abs=5e-6)


def test_the_true_ratio_to_ctc_is_no_hundredfold() -> None:
    """On the same utterance with uniform logits it is 1.2 to 1.3; unequal reductions make 13 to 47 of it."""
    for frames, num_labels, ratio, as_averaged in ((50, 10, 1.32, 13.2), (60, 10, 1.27, 12.7), (200, 30, 1.25, 37.5)):
        lengths = torch.tensor([frames]), torch.tensor([num_labels])
        ctc = ctc_loss(torch.zeros(1, frames, 41), torch.arange(1, num_labels + 1)[None], *lengths).item()
        assert _uniform(frames, num_labels) / ctc == pytest.approx(ratio, abs=0.005)
        assert _uniform(frames, num_labels) / (ctc / num_labels) == pytest.approx(as_averaged, abs=0.05)


@pytest.mark.parametrize("blank", [0, 2, 4])
@pytest.mark.parametrize("route", ROUTES)
def test_loss_against_all_alignments_and_gradient_against_the_recursion(route: str, blank: int) -> None:
    batch, weights = _ragged(blank), torch.tensor([1.0, -2.0, 0.5, 3.0])
    nats = _nats(batch, batch.logits, blank, route)
    gradient = _gradient(batch, batch.logits, blank, route, weights)
    assert nats.dtype == gradient.dtype == torch.float32
    for b in range(4):
        slow = batch.alone(b).double().requires_grad_()
        value = by_recursion(slow, batch.target(b), blank)
        value.backward()
        assert slow.grad is not None
        assert value.item() == pytest.approx(by_enumeration(batch.alone(b), batch.target(b), blank), rel=1e-12)
        assert nats[b].item() == pytest.approx(value.item(), rel=1e-6)
        own = gradient[b, : batch.frames[b], : batch.labels[b] + 1]
        torch.testing.assert_close(own.double(), weights[b] * slow.grad, atol=1e-6, rtol=0)


def test_every_anti_diagonal_holds_the_whole_probability() -> None:
    """The reference itself: ⊕ of α + β over the cells with t + u = n is ln P for every n."""
    batch = _ragged()
    alpha, beta = alpha_beta(batch.alone(0), batch.target(0), 0)
    for n in range(9):
        cells = [(n - u, u) for u in range(4) if 0 <= n - u < 6]
        whole = torch.logsumexp(torch.stack([alpha[cell] + beta[cell] for cell in cells]), 0)
        assert whole.item() == pytest.approx(beta[0, 0].item(), rel=1e-12)
        assert whole.item() == pytest.approx(-_nats(batch, batch.logits)[0].item(), rel=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_occupancies_of_every_anti_diagonal_sum_to_one(route: str) -> None:
    """The gradient at a symbol that is neither blank nor in the target is p · occupancy of the cell."""
    num_frames, num_labels = 7, 3
    logits = torch.randn(1, num_frames, num_labels + 1, 6, generator=torch.Generator().manual_seed(5))
    lengths = torch.tensor([num_frames]), torch.tensor([num_labels])
    leaf = logits.clone().requires_grad_()
    transducer_loss(leaf, torch.tensor([[1, 2, 1]]), *lengths, route=route).sum().backward()
    assert leaf.grad is not None
    occupancy = (leaf.grad[..., 5] / logits.softmax(-1)[..., 5])[0]
    for n in range(num_frames + num_labels):
        on_diagonal = [occupancy[n - u, u].item() for u in range(num_labels + 1) if 0 <= n - u < num_frames]
        assert sum(on_diagonal) == pytest.approx(1.0, abs=2e-6)


def test_gradcheck_in_double() -> None:
    whole = _ragged()
    logits = whole.logits[:3, :4, :3, :4].double().requires_grad_()
    batch = Ragged(logits, torch.tensor([[1, 1], [3, -1], [2, 2]]), torch.tensor([4, 2, 1]), torch.tensor([2, 0, 1]))
    assert _nats(batch, logits).dtype == torch.float64
    assert gradcheck(lambda values: _nats(batch, values), (logits,))


@pytest.mark.parametrize("route", ROUTES)
def test_finite_differences_in_single_precision(route: str) -> None:
    batch = _ragged(seed=3)
    gradient = _gradient(batch, batch.logits, 0, route, torch.ones(4))
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        direction = torch.randn(batch.logits.shape, generator=generator)
        up, down = (_nats(batch, batch.logits + sign * 0.01 * direction, 0, route).sum().double() for sign in (1, -1))
        assert ((up - down) / 0.02).item() == pytest.approx((gradient * direction).sum().item(), abs=2e-3)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_float32_errs_less_than_1e_5_on_long_utterances(route: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(2, 500, 61, 41, generator=generator)
    targets, lengths = torch.randint(1, 41, (2, 60), generator=generator), torch.tensor([60, 35])
    batch = Ragged(logits, targets, torch.tensor([500, 431]), lengths)
    exact_nats = _nats(batch, logits.double())
    torch.testing.assert_close(_nats(batch, logits, 0, route).double(), exact_nats, rtol=1e-6, atol=0)
    exact = _gradient(batch, logits.double(), 0, "scan", torch.ones(2))
    gradient = _gradient(batch, logits, 0, route, torch.ones(2)).double()
    assert (gradient - exact).norm().item() <= 2e-6 * exact.norm().item()
    assert (gradient - exact).abs().max().item() <= 1e-5
    assert gradient.sum(-1).abs().max().item() < 2e-6
    assert gradient.abs().sum((1, 2, 3)).le(2 * (batch.frames + batch.labels)).all()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("num_symbols", [2, 15, 16, 33, 300])
def test_any_number_of_symbols(route: str, num_symbols: int) -> None:
    """Sizes at and beside the widths of vector instructions."""
    generator = torch.Generator().manual_seed(num_symbols)
    logits = torch.randn(2, 9, 18, num_symbols, generator=generator)
    targets = torch.randint(1, num_symbols, (2, 17), generator=generator)
    batch = Ragged(logits, targets, torch.tensor([9, 5]), torch.tensor([17, 11]))
    for b in range(2):
        expected = by_recursion(batch.alone(b), batch.target(b), 0).item()
        assert _nats(batch, logits, 0, route)[b].item() == pytest.approx(expected, rel=1e-6)
    exact = _gradient(batch, logits.double(), 0, "scan", torch.ones(2))
    torch.testing.assert_close(_gradient(batch, logits, 0, route, torch.ones(2)).double(), exact, atol=1e-6, rtol=0)


@pytest.mark.parametrize("route", ROUTES)
def test_padding_is_not_read_and_gets_no_gradient(route: str) -> None:
    batch = _ragged()
    poisoned = batch.logits.clone()
    for b in range(4):
        poisoned[b, batch.frames[b] :] = math.nan
        poisoned[b, :, batch.labels[b] + 1 :] = math.inf
    assert torch.equal(_nats(batch, poisoned, 0, route), _nats(batch, batch.logits, 0, route))
    gradient = _gradient(batch, poisoned, 0, route, torch.ones(4))
    assert torch.equal(gradient, _gradient(batch, batch.logits, 0, route, torch.ones(4)))
    for b in range(4):
        assert gradient[b, batch.frames[b] :].count_nonzero() == 0
        assert gradient[b, :, batch.labels[b] + 1 :].count_nonzero() == 0


@pytest.mark.parametrize("route", ROUTES)
def test_batch_mates_do_not_matter(route: str) -> None:
    batch = _ragged()
    together = _nats(batch, batch.logits, 0, route)
    for b in range(4):
        lengths = batch.frames[b, None], batch.labels[b, None]
        targets = torch.tensor([batch.target(b)], dtype=torch.int64)
        alone = transducer_loss(batch.alone(b)[None], targets, *lengths, route=route)
        assert alone.item() == pytest.approx(together[b].item(), rel=1e-7)


@pytest.mark.parametrize("frames", [40, 300])
def test_lattices_worked_on_one_after_another_are_those_of_the_whole_batch(frames: int) -> None:
    """Of 40 frames 6 trials go together, of 300 each goes alone; float32 and float64, ragged."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, frames, 8, 6, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([frames, frames - 9, 3, 1, frames, 2, 9, 11, frames - 1]), torch.arange(9) % 8
    targets = torch.randint(1, 6, (9, 7), generator=generator)
    found = {}
    for route, dtype in (("scan", torch.float32), ("scan", torch.float64), ("compiled", torch.float32)):
        leaf = logits.to(dtype, copy=True).requires_grad_()
        nats = transducer_loss(leaf, targets, *lengths, route=route)
        nats.sum().backward()
        assert leaf.grad is not None
        found[route, dtype] = nats.detach().double(), leaf.grad.double()
    for nats, gradient in found.values():
        torch.testing.assert_close(nats, found["scan", torch.float64][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, found["scan", torch.float64][1], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_not_a_number_stays_with_its_utterance(route: str) -> None:
    batch = _ragged()
    for symbol, value in ((4, math.nan), (4, -math.nan), (1, math.inf)):
        logits = batch.logits.clone()
        logits[1, 2, 0, symbol] = value
        assert _nats(batch, logits, 0, route).isfinite().tolist() == [True, False, True, True]
        gradient = _gradient(batch, logits, 0, route, torch.ones(4))
        assert [gradient[b].isfinite().all().item() for b in range(4)] == [True, False, True, True]


@pytest.mark.parametrize("route", ROUTES)
def test_an_impossible_symbol_costs_nothing_until_every_path_needs_it(route: str) -> None:
    batch = _ragged()
    logits = batch.logits.clone()
    logits[0, :5, 0, 1] = -math.inf  # the first label of trial 0 can come on the last frame only
    logits[3, 0, 0, 4] = -math.inf
    nats, gradient = _nats(batch, logits, 0, route), _gradient(batch, logits, 0, route, torch.ones(4))
    for b in (0, 3):
        expected = by_recursion(batch_alone := logits[b, : batch.frames[b], : batch.labels[b] + 1], batch.target(b), 0)
        assert nats[b].item() == pytest.approx(expected.item(), rel=1e-6), batch_alone
    assert gradient.isfinite().all()
    assert gradient[0, :5, 0, 1].count_nonzero() == 0
    logits[0, 5, 0, 1] = -math.inf
    assert _nats(batch, logits, 0, route)[0].item() == math.inf
    assert _gradient(batch, logits, 0, route, torch.ones(4))[0, :6].isnan().all()


@pytest.mark.parametrize("route", ROUTES)
def test_logits_far_apart_need_no_common_range(route: str) -> None:
    """Log-probabilities whose differences leave even float64's exponents."""
    batch = _ragged()
    logits = batch.logits * 1000
    for b in range(4):
        expected = by_recursion(logits[b, : batch.frames[b], : batch.labels[b] + 1], batch.target(b), 0).item()
        assert expected < -NEVER / 1000
        assert _nats(batch, logits, 0, route)[b].item() == pytest.approx(expected, rel=1e-6)
    shifted = _nats(batch, batch.logits + 5000 * torch.arange(6)[:, None, None], 0, route)
    torch.testing.assert_close(shifted, _nats(batch, batch.logits, 0, route), rtol=0, atol=0.02)


def test_low_precision_logits_are_computed_in_float32() -> None:
    batch = _ragged()
    for dtype in (torch.bfloat16,):
        logits = batch.logits.to(dtype)
        assert torch.equal(_nats(batch, logits), _nats(batch, logits.float()))
        assert _gradient(batch, logits, 0, "auto", torch.ones(4)).dtype == dtype


def test_a_gradient_can_be_asked_for_twice_and_through_a_strided_view() -> None:
    batch = _ragged()
    wide = batch.logits.repeat_interleave(2, dim=3).requires_grad_()
    nats = _nats(batch, wide[..., ::2]).sum()
    first, second = (torch.autograd.grad(nats, wide, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first[..., ::2], _gradient(batch, batch.logits, 0, "auto", torch.ones(4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": [6, 4, 0, 3]}, "utterance 2: 0 frames, but it must be 1 to 6"),
        ({"frames": [7, 4, 1, 3]}, "utterance 0: 7 frames, but it must be 1 to 6"),
        ({"labels": [3, 1, 4, 0]}, "utterance 2: 4 labels, but it must be 0 to 3"),
        ({"labels": [3, -1, 3, 0]}, "utterance 1: -1 labels, but it must be 0 to 3"),
        ({"labels": [3, 1, 3, 2]}, "utterance 3: label 0 is -7, but symbols are 0 to 4"),
        ({"labels": [3, 3, 3, 0]}, "utterance 1: label 1 is -1, but symbols are 0 to 4"),
        ({"targets": [[1, 0, 2], [1, 1, 1], [1, 1, 1], [1, 1, 1]]}, "utterance 0: label 1 is the blank (0)"),
        ({"targets": [[1, 1], [1, 1], [1, 1], [1, 1]]}, "one row of the lattice more than labels"),
        ({"frames": [6, 4, 1]}, "frame lengths must be whole numbers of shape [4]"),
        ({"labels": [3.0, 1.0, 3.0, 0.0]}, "target lengths must be whole numbers of shape [4]"),
        ({"blank": 5}, "blank is 5, but the 5 symbols are 0 to 4"),
        ({"route": "fastest"}, "route must be one of auto, compiled, scan, triton, not 'fastest'"),
        ({"route": "triton"}, "route 'triton' needs float32 on cuda, not torch.float32 on cpu"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    batch = _ragged()
    given: dict[str, object] = {"targets": batch.targets, "frames": batch.frames, "labels": batch.labels}
    given |= {key: torch.tensor(value) if isinstance(value, list) else value for key, value in change.items()}
    options = {key: given.pop(key) for key in ("blank", "route") if key in given}
    with pytest.raises(ValueError, match=re.escape(message)):
        transducer_loss(batch.logits, given["targets"], given["frames"], given["labels"], **options)  # type: ignore[arg-type]


def test_an_empty_batch_has_no_losses() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for route in ROUTES:
        logits = torch.zeros(0, 5, 3, 4, requires_grad=True)
        nats = transducer_loss(logits, torch.zeros(0, 2, dtype=torch.int64), nothing, nothing, route=route)
        nats.sum().backward()
        assert nats.shape == (0,)


def test_numba_is_imported_with_the_first_loss_only() -> None:
    code = "import sys, sottovoce.losses; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_compiled_route_wants_float32_and_logits_four_dimensions() -> None:
    batch = _ragged()
    with pytest.raises(ValueError, match=re.escape("route 'compiled' needs float32 on cpu, not torch.float64 on cpu")):
        _nats(batch, batch.logits.double(), 0, "compiled")
    with pytest.raises(
        ValueError, match=re.escape("logits must be [trials, frames, labels + 1, symbols], not [6, 4, 5]")
    ):
        transducer_loss(batch.logits[0], batch.targets, batch.frames, batch.labels)


def test_half_precision_is_refused_with_the_remedy() -> None:
    logits = torch.zeros(1, 3, 2, 4, dtype=torch.float16)
    for loss, shape in ((transducer_loss, logits), (ctc_loss, logits[:, :, 0])):
        with pytest.raises(ValueError, match=r"float16, which overflows.*bfloat16"):
            loss(shape, torch.tensor([[1]]), torch.tensor([3]), torch.tensor([1]))
