"""The kernels for CUDA against the compiled route, where there is a GPU."""

import math

import pytest
import torch

from sottovoce.losses import fused_transducer_loss, transducer_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("route", ["triton", "scan"])
@pytest.mark.parametrize("size", [(4, 6, 3, 5), (3, 200, 40, 41), (2, 50, 70, 600)])
def test_the_same_as_on_the_cpu(route: str, size: tuple[int, int, int, int]) -> None:
    num_trials, num_frames, num_labels, num_symbols = size
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_trials, num_frames, num_labels + 1, num_symbols, generator=generator)
    targets = torch.randint(1, num_symbols, (num_trials, num_labels), generator=generator)
    frames, labels = (torch.arange(n, n - num_trials, -1) for n in (num_frames, num_labels))
    logits[0, 0, 1, 3] = -math.inf
    here, there = logits.clone().requires_grad_(), logits.cuda().requires_grad_()
    expected = transducer_loss(here, targets, frames, labels)
    nats = transducer_loss(there, targets.cuda(), frames.cuda(), labels.cuda(), route=route)
    expected.sum().backward()
    nats.sum().backward()
    torch.testing.assert_close(nats.cpu(), expected, rtol=1e-6, atol=0)
    assert there.grad is not None
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=0, atol=2e-6)


def test_the_fused_joint_is_the_same_as_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, generator=generator) for size in ((2, 30, 16), (2, 6, 16), (7, 16), (7,))]
    targets, frames, labels = torch.tensor([[1, 2, 3, 3, 4]] * 2), torch.tensor([30, 21]), torch.tensor([5, 2])
    here, there = [x.clone().requires_grad_() for x in inputs], [x.cuda().requires_grad_() for x in inputs]
    expected, nats = (
        fused_transducer_loss(encoder, predictor, weight, bias, targets, frames, labels)
        for encoder, predictor, weight, bias in (here, there)
    )
    expected.sum().backward()
    nats.sum().backward()
    torch.testing.assert_close(nats.cpu(), expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(there, here, strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-4, atol=1e-4)
