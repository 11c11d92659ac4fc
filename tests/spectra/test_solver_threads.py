"""Exponents have the same bits whatever number of threads torch has, and all of the threads are used."""

import threading

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from specdiag.spectra import live_alpha as engine
from specdiag.spectra.solver_threads import SolverThreads


@pytest.fixture
def torch_threads():
    """Sets the number of threads of torch."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_matrix_that_torch_solves_has_the_same_bits_on_one_thread_and_on_two(torch_threads):
    torch.manual_seed(0)
    matrix = torch.randn(1, 2240, 2240)
    found = []
    for count in (1, 2):
        torch_threads(count)
        found += engine.exponents([matrix], "alpha")
    assert found[0] == found[1]


def test_matrices_are_shared_by_as_many_threads_as_torch_has(torch_threads, monkeypatch):
    torch_threads(2)
    together = threading.Barrier(2, timeout=30)
    solve = engine._exponent
    monkeypatch.setattr(engine, "_exponent", lambda *given: together.wait() < 2 and solve(*given))
    assert all(alpha > 1 for alpha in engine.exponents(list(torch.randn(4, 1, 64, 64)), "alpha"))
    assert torch.get_num_threads() == 2


def test_each_thread_has_one_and_everybody_else_has_his_own_again(torch_threads):
    torch_threads(2)
    with threadpool_limits(2, user_api="blas"):
        with SolverThreads(2) as threads:
            assert threads.submit(torch.get_num_threads).result() == 1
            assert torch.get_num_threads() == 2
            assert _of_scipy() == 1
        assert _of_scipy() == 2


def _of_scipy():
    (count,) = {each["num_threads"] for each in threadpool_info() if "scipy.libs" in each["filepath"]}
    return count


def test_an_error_in_one_thread_is_raised_and_the_threads_end(torch_threads):
    torch_threads(2)
    before = set(threading.enumerate())
    with SolverThreads(2) as threads:
        started = set(threading.enumerate()) - before
        with pytest.raises(ZeroDivisionError):
            threads.submit(lambda: 1 // 0).result()
    assert torch.get_num_threads() == 2
    assert len(started) == 2
    assert not started.intersection(threading.enumerate())
