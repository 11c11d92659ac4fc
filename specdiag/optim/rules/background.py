"""Exponents of weights as the optimizer leaves them, computed while the next batch goes forward and backward.

Between two steps of the optimizer the weights do not change. The exponents are therefore the same to the bit as those
of a measurement right before the next step, and only the time they take is hidden. A checkpoint needs no measurement
that is under way, and the speed of the threads changes nothing but the time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

import torch

from specdiag.live.matrices import LiveMatrix
from specdiag.optim.rules.replicas import Replicas
from specdiag.resources import available_cpus
from specdiag.spectra.live_alpha import Basis, exponent_on_cpu
from specdiag.spectra.solver_threads import SolverThreads

_log = logging.getLogger("specdiag")
_LATE, _WINDOW = 0.1, 20
"""A warning is logged where training waits more than this share of the time, over this many measurements."""


class Background:
    """Threads that measure copies of the weights in memory."""

    def __init__(self, matrices: Sequence[LiveMatrix], replicas: Replicas, basis: Basis) -> None:
        """Start the threads: one for each processor that training leaves free, at least one.

        Args:
            matrices: that will be measured.
            replicas: the ranks that share the work.
            basis: exponent that is measured.
        """
        self._matrices, self._replicas, self._basis = matrices, replicas, basis
        self._threads = SolverThreads(min(_free_cpus(matrices[0].parameter.device), len(matrices)))
        self._versions: dict[int, int] = {}
        self._running: dict[int, Future[float | None]] = {}
        self._waits: list[float] = []
        self._began, self._has_warned = time.perf_counter(), False

    def start(self, rounds: Sequence[Sequence[int]]) -> None:
        """Copy this rank's matrices of these rounds, and start to measure them. Collective.

        Args:
            rounds: indices of matrices, as `measurement_schedule.rounds` gives them.
        """
        for members, cuts in zip(rounds, self._replicas.cuts(rounds), strict=True):
            self._versions |= {i: self._version(i) for i in members}
            for i, cut in cuts.items():
                if i in self._running:
                    self._running[i].cancel()
                self._running[i] = self._threads.submit(partial(_measure_copy, *_copy_to_cpu(cut), self._basis))

    def measure(self, rounds: Sequence[Sequence[int]]) -> dict[int, float | None]:
        """Return exponents, as `Replicas.measure` does. Collective.

        It waits for measurements that were started. Rounds that were not, or whose weights have changed since, are
        measured now.

        Args:
            rounds: indices of matrices.

        Returns:
            The exponents of all ranks by index; None where a matrix has none.
        """
        rest = [members for members in rounds if any(self._version(i) != self._versions.get(i) for i in members)]
        self.start(rest)
        before = time.perf_counter()
        mine: dict[int, float | None] = {}
        failure: Exception | None = None
        try:
            mine = {i: self._running[i].result() for members in rounds for i in members if i in self._running}
        except Exception as error:  # noqa: BLE001 - raised once the other ranks know
            failure = error
        if not rest:
            self._record_wait(time.perf_counter() - before)
        self._cancel()
        return self._replicas.shared(rounds, mine, failure)

    def close(self) -> None:
        """End the threads."""
        self._cancel()
        self._threads.close()

    def _cancel(self) -> None:
        for each in self._running.values():
            each.cancel()
        self._running, self._versions = {}, {}

    def _version(self, index: int) -> int:
        """Return torch's count of the changes to a Parameter."""
        return self._matrices[index].parameter._version  # pyright: ignore[reportPrivateUsage]

    def _record_wait(self, wait: float) -> None:
        """Warn once where the threads cannot keep up."""
        self._waits.append(wait)
        if len(self._waits) < _WINDOW:
            return
        now, waited = time.perf_counter(), sum(self._waits)
        passed = now - self._began
        if waited > _LATE * passed and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "exponents in the background take longer than forward and backward: training waited %.1f of the last "
                "%.1f s for them; raise every, or leave more processors free than the %d that work on them",
                waited,
                passed,
                self._threads.count,
            )
        self._waits, self._began = [], now


def _copy_to_cpu(cut: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Copy a matrix to the memory of the CPU; return the copy and the event after which it is complete."""
    if cut.device.type != "cuda":
        return cut.to("cpu", copy=True), None
    copy = torch.empty(cut.shape, dtype=cut.dtype, pin_memory=True).copy_(cut, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(cut.device))
    return copy, event


def _measure_copy(copy: torch.Tensor, complete: torch.cuda.Event | None, basis: Basis) -> float | None:
    if complete is not None:
        complete.synchronize()
    return exponent_on_cpu(copy, basis)


def _free_cpus(device: torch.device) -> int:
    """Count the processors that each process of this machine may use, without those of its training."""
    training = torch.get_num_threads() if device.type == "cpu" else 1
    return max(1, available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - training)
