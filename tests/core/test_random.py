import torch

from sottovoce.core.random import numpy_generator, seed_for, torch_generator


def test_seeds_depend_on_everything_and_on_nothing_else() -> None:
    seeds = {
        seed_for(1, "sampling", 0),
        seed_for(2, "sampling", 0),
        seed_for(1, "dropout", 0),
        seed_for(1, "sampling", 1),
        seed_for(1, "sampling", 0, 0),
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(1, "sampling", 7) == seed_for(1, "sampling", 7)


def test_generators_repeat() -> None:
    a = torch.randn(5, generator=torch_generator(3, "augmentation", 4))
    b = torch.randn(5, generator=torch_generator(3, "augmentation", 4))
    assert torch.equal(a, b)
    assert numpy_generator(3, "split").random() == numpy_generator(3, "split").random()
    assert numpy_generator(3, "split").random() != numpy_generator(3, "split", 1).random()
