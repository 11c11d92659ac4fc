"""Timing: worker processes that have imported everything, and whole processes from start to exit.

This side imports nothing but the standard library: the peak size of a child counts from its parent's.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIBRARY_CHOICES = ("OPENBLAS_", "MKL_", "OMP_", "GOMP_", "KMP_", "BLIS_")
"""Variables that would choose threads or kernels for a library: nobody here inherits them."""

_PAUSE = 0.1
"""Seconds before each measurement: the OpenMP threads of whoever ran before spin for a while."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to get the exponents of a checkpoint.

    Attributes:
        module: the file under contenders/.
        options: what its `analyse` takes besides the folder.
        arguments: of the whole process, the folder aside.
    """

    module: str
    options: dict[str, Any]
    arguments: tuple[str, ...]


class Worker:
    """A child that has imported one contender and answers each `run` line with seconds and exponents."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the child writes to it as long as it lives
        self._child = subprocess.Popen(
            [sys.executable, HERE / "peers.py", "--worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment(),
        )  # fmt: skip

    def ready(self) -> str | None:
        """None once everything is imported, or why it cannot be."""
        return self._read()["missing"]

    def run(self, folder: Path) -> dict[str, Any]:
        """One analysis: its `seconds`, and what the contender answers."""
        warm(folder)
        assert self._child.stdin is not None
        self._child.stdin.write(f"run {folder}\n")
        self._child.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the child."""
        self._child.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise SystemExit(f"the worker '{self.name}' died:\n{self._errors.read()[-2000:]}")
        return json.loads(line)


def serve(contender: Contender) -> None:
    """The child's side of `Worker`. What libraries print goes to stderr; stdout carries the answers alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        module = importlib.import_module(f"contenders.{contender.module}")
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=answers, flush=True)
        return
    print(json.dumps({"missing": None}), file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        answer = module.analyse(line.removeprefix("run ").strip(), **contender.options)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, **answer}), file=answers, flush=True)


def whole_process(contender: Contender, folder: Path) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of a fresh process that analyses `folder` and prints its answer."""
    warm(folder)
    command = [a.replace("FOLDER", str(folder)) for a in contender.arguments]
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=errors, cwd=HERE, env=environment()
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} exited with {child.returncode}:\n{errors.read()[-2000:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def warm(folder: Path) -> None:
    """Bring the weights into the page cache, and let other processes come to rest."""
    with (folder / "model.safetensors").open("rb") as file:
        while file.read(1 << 24):
            pass
    time.sleep(_PAUSE)


class Others:
    """Processors that everything but this process and its children has kept busy since the beginning, on average.

    Two OpenMP threads that share two processors with somebody else wait for each other: figures of a busy machine
    flatter whoever does not wait.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._before = _busy_seconds()

    def cores(self) -> float | None:
        """None where the system does not say. Children count once they have ended."""
        if self._before is None:
            return None
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        ours = sum(u.ru_utime + u.ru_stime for u in used)
        return max(0.0, (_busy_seconds() or 0.0) - self._before - ours) / (time.perf_counter() - self._start)


def _busy_seconds() -> float | None:
    """Processor seconds of everybody since the machine started: user, nice, system, interrupts, stolen."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def environment() -> dict[str, str]:
    """This environment without anything that chooses threads or kernels for a library, or keeps results."""
    return {k: v for k, v in os.environ.items() if not k.startswith(LIBRARY_CHOICES)} | {"SPECDIAG_CACHE": ""}
