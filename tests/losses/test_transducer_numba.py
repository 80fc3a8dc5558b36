"""What the compiled route computes with: exponentials, logarithms and maxima that become vector code."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch

from sottovoce.losses.transducer_numba import _exp_32, _exp_64, _largest, _log_add, _logs, _sum_of_exp, _threads

pytestmark = pytest.mark.slow


def test_exponentials_err_less_than_the_precision_of_the_result() -> None:
    for exp, dtype, least, error in ((_exp_32, np.float32, -87.0, 3e-7), (_exp_64, np.float64, -700.0, 1e-14)):
        values = np.concatenate([np.linspace(least, 0, 5001), -np.logspace(-9, 0, 500)]).astype(dtype)
        exact = np.exp(values.astype(np.longdouble))
        found = np.array([exp(x) for x in values], np.longdouble)
        assert np.abs(found / exact - 1).max() < error
        assert [exp(dtype(x)) for x in (0.0, -1e4, -np.inf)] == [1.0, 0.0, 0.0]
        assert np.isnan(exp(dtype(np.nan)))


def test_logarithms_err_less_than_1e_14() -> None:
    differences = np.concatenate([-np.linspace(0, 60, 3001), -np.logspace(-9, 0, 500), [-1e9]])
    found = np.array([_log_add(3.0, 3.0 + d) for d in differences])
    np.testing.assert_allclose(found, np.logaddexp(3.0, 3.0 + differences), rtol=1e-14)
    assert np.isnan(_log_add(np.nan, 0.0))
    assert np.isnan(_log_add(0.0, np.nan))
    sums = np.concatenate([np.linspace(1, 600, 5001), 2.0 ** np.arange(20)]).astype(np.float32)
    logs = sums.copy()
    _logs(logs)
    np.testing.assert_array_max_ulp(logs, np.log(sums.astype(np.float64)).astype(np.float32), 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 17])
@pytest.mark.parametrize("num_symbols", [1, 2, 16, 41, 100])
def test_maxima_and_sums_of_any_size(rows: int, num_symbols: int) -> None:
    logits = (10 * np.random.default_rng(0).standard_normal((rows, num_symbols))).astype(np.float32)
    largest, sums = np.empty(rows, np.float32), np.empty(rows, np.float32)
    _largest(logits, largest)
    _sum_of_exp(logits, largest, sums)
    assert np.array_equal(largest, logits.max(1))
    np.testing.assert_allclose(sums, np.exp(logits.astype(np.float64) - largest[:, None]).sum(1), rtol=1e-6)


def test_the_first_loss_of_a_process_leaves_pytorch_its_threads() -> None:
    program = """
import torch
from sottovoce.losses import transducer_loss
torch.set_num_threads(1)
logits = torch.randn(2, 5, 3, 4, requires_grad=True)
transducer_loss(logits, torch.tensor([[1, 2], [3, 0]]), torch.tensor([5, 4]), torch.tensor([2, 1])).sum().backward()
print(torch.get_num_threads())
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "1\n"


def test_as_many_threads_as_pytorch_uses() -> None:
    threads, most = torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # set as numba starts
    try:
        for wanted in (1, most, 4 * most):
            before = numba.get_num_threads()
            torch.set_num_threads(wanted)
            with _threads() as workers:
                assert workers == numba.get_num_threads() == min(wanted, most)
            assert numba.get_num_threads() == before
    finally:
        torch.set_num_threads(threads)
