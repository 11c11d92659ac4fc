"""AlphaDecay with mode="background": the run of round-robin to the bit, its measurements beside the training."""

import copy
import json
import sys
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np
import pytest
import torch
from command import call
from helpers import PATIENCE
from live_models import Decoder, Q, train

from specdiag.optim import AlphaDecay
from specdiag.optim.rules import background


def build(lr=1e-2, **options):
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    return model, optimizer, AlphaDecay(model, optimizer, **options)


def run(steps=8, **options):
    model, optimizer, decay = build(**options)
    train(model, optimizer, steps, decay=decay)
    decay.detach()
    return model, decay


def assert_alike(first, second):
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def solving_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("specdiag")]


@pytest.fixture
def slow(monkeypatch):
    """Threads that need 20 ms longer for a matrix."""
    exponent = background.exponent_on_cpu
    monkeypatch.setattr(background, "exponent_on_cpu", lambda *given: time.sleep(0.02) or exponent(*given))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "options", [{"every": 1}, {"every": 3}, {"every": 40, "measure_first": True}, {"basis": "square"}]
)
def test_it_is_the_run_of_round_robin(options):
    options = {"every": 5, **options}
    expected, round_robin = run(**options)
    model, decay = run(mode="background", **options)
    assert decay.alphas == round_robin.alphas
    assert decay.ratios == round_robin.ratios
    assert max(decay.ratios.values()) == 3.0
    assert_alike(model, expected)


@pytest.mark.usefixtures("one_thread")
def test_at_every_step_it_is_the_run_of_sweep():
    expected, sweep = run(every=1, mode="sweep")
    model, decay = run(every=1, mode="background")
    assert decay.alphas == sweep.alphas
    assert_alike(model, expected)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("every", "mode"), [(1, "background"), (4, "background"), (4, "round-robin")])
def test_a_run_that_stops_anywhere_goes_on_to_the_bit_in_either_mode(every, mode):
    expected, whole = run(7, every=every, mode="background")
    for stop in range(1, 7):
        first, optimizer, decay = build(every=every, mode="background")
        train(first, optimizer, stop, decay=decay)
        state = json.loads(json.dumps(decay.state_dict()))
        second, second_optimizer, second_decay = build(every=every, mode=mode)
        second.load_state_dict(first.state_dict())
        second_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        second_decay.load_state_dict(state)
        train(second, second_optimizer, 7 - stop, decay=second_decay, start=stop)
        assert second_decay.ratios == whole.ratios
        assert_alike(second, expected)
        decay.detach()
        second_decay.detach()


@pytest.mark.usefixtures("one_thread")
def test_what_is_due_was_begun_by_the_last_step_of_the_optimizer(monkeypatch):
    begun, submit = [], background.SolverThreads.submit
    monkeypatch.setattr(background.SolverThreads, "submit", lambda own, task: begun.append(task) or submit(own, task))
    _, optimizer, decay = build(every=4, mode="background")
    counts = [0]
    for step in range(6):
        decay.step(step)
        counts.append(len(begun))
        optimizer.step()
        counts.append(len(begun))
    decay.detach()
    assert list(np.diff(counts)) == [3, 3, *(0, 3) * 5]


@pytest.mark.usefixtures("one_thread")
def test_weights_that_change_after_the_step_are_measured_as_they_are():
    runs = []
    for mode in ("round-robin", "background"):
        model, optimizer, decay = build(every=1, mode=mode)
        train(model, optimizer, 2, decay=decay)
        with torch.no_grad():
            model.layers[0].self_attn.q_proj.weight[:32] *= 3
        decay.step(2)
        runs.append(decay.alphas)
        decay.detach()
    assert runs[0] == runs[1]
    assert runs[0] != run(3, every=1)[1].alphas


@pytest.mark.usefixtures("one_thread", "slow")
def test_what_is_measured_is_a_copy():
    """A write that torch does not count, as through `.data`, finds the weights copied already."""
    model, optimizer, decay = build(every=1, mode="background")
    train(model, optimizer, 2, decay=decay)
    for p in model.parameters():
        p.data.fill_(float("nan"))
    decay.step(2)
    decay.detach()
    assert decay.alphas == run(3, every=1)[1].alphas


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("skipped", [{2}, {1, 3}])
def test_steps_of_the_optimizer_that_are_left_out_or_doubled(skipped):
    """As a gradient scaler leaves them out."""
    runs = []
    for mode in ("round-robin", "background"):
        model, optimizer, decay = build(every=3, mode=mode)
        for step in range(6):
            torch.manual_seed(step)
            model(torch.randint(80, (2, 8))).loss.backward()
            decay.step(step)
            for _ in range(0 if step in skipped else 1 + (step == 4)):
                optimizer.step()
        decay.detach()
        runs.append((model, decay))
    assert runs[0][1].ratios == runs[1][1].ratios
    assert_alike(runs[0][0], runs[1][0])


@pytest.mark.usefixtures("one_thread")
def test_two_optimizers_and_a_closure():
    runs = []
    for mode in ("round-robin", "background"):
        model = Decoder()
        hidden = [p for p in model.layers.parameters() if p.ndim == 2]
        taken = set(hidden)
        optimizers = [
            torch.optim.Muon(hidden, lr=1e-2, weight_decay=0.1),
            torch.optim.AdamW([p for p in model.parameters() if p not in taken], lr=1e-2),
        ]
        decay = AlphaDecay(model, optimizers, every=2, mode=mode)
        train(model, optimizers, 3, decay=decay)

        def closure(model=model, decay=decay):
            loss = model(torch.arange(16).view(2, 8)).loss
            loss.backward()
            decay.step()
            return loss

        for _ in range(3):
            torch.manual_seed(0)
            optimizers[0].step(closure)
            optimizers[1].step()
        decay.detach()
        runs.append((model, decay))
    assert runs[0][1].ratios == runs[1][1].ratios
    assert_alike(runs[0][0], runs[1][0])


@pytest.fixture
def late(monkeypatch):
    """Threads that begin with a matrix only when the training waits for it: 20 ms of each step, however busy it is."""
    waiting = threading.Event()
    exponent, measure, close = background.exponent_on_cpu, background.Background.measure, background.Background.close

    def awaited(*given):
        assert waiting.wait(PATIENCE)
        time.sleep(0.02)
        return exponent(*given)

    def measured(*given):
        waiting.set()
        try:
            return measure(*given)
        finally:
            waiting.clear()

    monkeypatch.setattr(background, "exponent_on_cpu", awaited)
    monkeypatch.setattr(background.Background, "measure", measured)
    monkeypatch.setattr(background.Background, "close", lambda own: waiting.set() or close(own))


@pytest.mark.usefixtures("one_thread", "late")
def test_slow_threads_change_time_alone_and_it_is_said_once(caplog):
    model, decay = run(45, every=4, mode="background")
    expected, _ = run(45, every=4)
    assert_alike(model, expected)
    assert decay.waited > 40 * 0.02
    (said,) = [r.message for r in caplog.records if "take longer than forward and backward" in r.message]
    assert "raise every" in said


@pytest.mark.usefixtures("one_thread")
def test_threads_that_keep_up_are_not_waited_for(slow, caplog, monkeypatch):
    running, waits, submit, result = [], [], background.SolverThreads.submit, Future.result

    def asked(future, timeout=None):
        waits.append(not future.done())
        return result(future, timeout)

    def submitted(threads, task):
        running.append(submit(threads, task))
        return running[-1]

    monkeypatch.setattr(background.SolverThreads, "submit", submitted)
    monkeypatch.setattr(Future, "result", asked)
    _, optimizer, decay = build(every=12, mode="background")
    for step in range(45):
        decay.step(step)
        waits.clear()
        optimizer.step()
        wait(running)
        decay.step(step + 1)
        assert not any(waits)
    assert len(running) > 45
    decay.detach()
    assert "take longer" not in caplog.text


@pytest.mark.usefixtures("one_thread")
def test_an_error_in_a_thread_is_one_of_step(monkeypatch):
    def failing(*_):
        raise MemoryError("no room for a Gram matrix")

    model, optimizer, decay = build(every=1, mode="background")
    train(model, optimizer, 2, decay=decay)
    decay.step(2)
    monkeypatch.setattr(background, "exponent_on_cpu", failing)
    optimizer.step()
    with pytest.raises(MemoryError, match="no room for a Gram matrix"):
        decay.step(3)
    decay.detach()


@pytest.mark.usefixtures("one_thread")
def test_a_matrix_that_is_not_finite_keeps_its_exponent(caplog):
    model, optimizer, decay = build(every=1, mode="background")
    train(model, optimizer, 2, decay=decay)
    decay.step(2)
    before = decay.alphas[Q]
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    optimizer.step()
    decay.step(3)
    decay.detach()
    assert decay.alphas[Q] == before
    assert "could not be measured" in caplog.text


@pytest.mark.usefixtures("slow")
def test_detaching_ends_the_threads():
    others = solving_threads()  # of decays that were left attached, until they are collected
    model, optimizer, decay = build(every=1, mode="background")
    assert [thread for thread in solving_threads() if thread not in others]
    train(model, optimizer, 2, decay=decay)
    decay.detach()
    assert not [thread for thread in solving_threads() if thread not in others]
    train(model, optimizer, 1)


def test_the_threads_of_training_and_its_bits_stay():
    """With two of them, and all ratios 1."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = Decoder(width=256, mlp=512)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        train(model, optimizer, 5)
        expected, model = model, Decoder(width=256, mlp=512)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        with AlphaDecay(model, optimizer, every=1, mode="background", s1=1.0, s2=1.0) as decay:
            seen = []
            late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            late.start()
            late.join()
            train(model, optimizer, 5, decay=decay)
            assert [torch.get_num_threads(), *seen] == [2, 2]
        assert_alike(model, expected)
    finally:
        torch.set_num_threads(before)


def test_the_interpreter_ends_though_nobody_detached():
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from helpers import PATIENCE
from live_models import Decoder, train
from specdiag.optim import AlphaDecay
model = Decoder()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
train(model, optimizer, 2, decay=AlphaDecay(model, optimizer, every=1, mode="background"))
raise SystemExit(3)
"""
    assert call([sys.executable, "-c", program]).returncode == 3


@pytest.mark.usefixtures("one_thread")
def test_processes_may_be_forked_meanwhile():
    """As a DataLoader forks its workers."""
    model, optimizer, decay = build(every=1, mode="background")
    for epoch in range(3):
        train(model, optimizer, 2, decay=decay, start=2 * epoch)
        loader = torch.utils.data.DataLoader(torch.randn(4, 64, 64), num_workers=2, collate_fn=_norms)
        assert len(list(loader)) == 4
    decay.detach()


def _norms(matrices):
    return [float(np.linalg.eigvalsh(m.numpy() @ m.numpy().T)[-1]) for m in matrices]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_exponents_are_those_of_the_cpu():
    model = Decoder().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    with AlphaDecay(model, optimizer, every=1, mode="background") as decay:
        for step in range(5):
            model(torch.randint(80, (2, 8), device="cuda")).loss.backward()
            decay.step(step)
            optimizer.step()
        decay.step(5)
        found = decay.alphas
    model.cpu()
    plain = AlphaDecay(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1), measure_first=True)
    plain.step(0)
    assert found == plain.alphas
