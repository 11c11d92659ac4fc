"""BLAS has one thread for as long as anybody needs it, and its bits do not depend on who ends first."""

import gc
import threading

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import specdiag
from specdiag.spectra import measure
from specdiag.spectra.solver_threads import SolverThreads
from specdiag.system import blas_threads
from specdiag.system.blas_threads import OneBlasThread


def numbers():
    """How many threads each BLAS has."""
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """Three threads, and nobody else who needs one: live alphas that other tests left open do."""
    for state in ("_users", "_callers"):
        monkeypatch.setattr(blas_threads, state, {})
    with threadpool_limits(3, user_api="blas"):
        yield


def network(n=8):
    rng = np.random.default_rng(0)
    return {f"layers.{i}.mlp.up_proj.weight": torch.from_numpy(rng.standard_normal((96, 64))) for i in range(n)}


def test_the_last_one_gives_the_callers_number_back():
    first, second = OneBlasThread(), OneBlasThread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert numbers() == {1}
    second.__exit__(None, None, None)
    assert numbers() == {3}


def test_a_number_that_the_caller_sets_in_between_does_not_last():
    with OneBlasThread():
        with threadpool_limits(2, user_api="blas"), OneBlasThread():
            assert numbers() == {1}
        assert numbers() == {1}
    assert numbers() == {3}


def test_a_number_that_the_caller_sets_afterwards_stays():
    first = OneBlasThread()
    first.__enter__()
    with threadpool_limits(2, user_api="blas"):
        first.__exit__(None, None, None)
        assert numbers() == {2}


def test_threads_that_nobody_closed_give_the_number_back_when_they_are_collected():
    threads = SolverThreads(1)
    assert numbers() == {1}
    del threads
    gc.collect()
    assert numbers() == {3}


def test_an_analysis_in_another_thread_has_one_too():
    seen = []
    with SolverThreads(1):  # this thread has set the number
        pass
    analysis = threading.Thread(
        target=specdiag.analyze,
        args=(network(),),
        kwargs={"device": "cpu", "progress": lambda _: seen.append(numbers())},
    )
    analysis.start()
    analysis.join(timeout=60)
    assert seen == [{1}] * 8
    assert numbers() == {3}


def test_threads_of_live_alphas_end_in_the_middle_of_an_analysis():
    threads = SolverThreads(1)
    seen = []

    def progress(_):
        threads.close()
        seen.append(numbers())

    specdiag.analyze(network(), device="cpu", progress=progress)
    assert seen == [{1}] * 8
    assert numbers() == {3}


def test_an_interrupted_analysis_is_over_at_once_for_the_next():
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(specdiag.Interrupted) as caught:
        specdiag.analyze(network(), device="cpu", jobs=1, progress=stop)
    for thread in threading.enumerate():
        if thread.name.startswith("specdiag"):
            thread.join(timeout=60)
    assert numbers() == {3}
    seen = []

    def collect(_):
        nonlocal caught
        caught = None  # the last that holds on to the interrupted one
        gc.collect()
        seen.append(numbers())

    specdiag.analyze(network(), device="cpu", progress=collect)
    assert seen == [{1}] * 8


def test_a_matrix_that_is_still_being_solved_keeps_its_one_thread(monkeypatch):
    entered, interrupted = threading.Event(), threading.Event()
    seen = []
    spectrum = measure.spectrum

    def slow(stack, *given, **options):
        if stack.shape[1] == 80:
            entered.set()
            assert interrupted.wait(timeout=60)
            seen.append(numbers())
        return spectrum(stack, *given, **options)

    def stop(_):
        assert entered.wait(timeout=60)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "spectrum", slow)
    state = network(1) | {"layers.9.mlp.up_proj.weight": torch.ones(80, 80, dtype=torch.float64)}
    with pytest.raises(specdiag.Interrupted):
        specdiag.analyze(state, device="cpu", jobs=2, progress=stop)
    interrupted.set()
    for thread in threading.enumerate():
        if thread.name.startswith("specdiag"):
            thread.join(timeout=60)
    assert seen == [{1}]
    assert numbers() == {3}
