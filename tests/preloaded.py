"""Processes forked from one that has imported torch: to import it anew takes longer than most commands do.

A child differs from a new process in what is imported alone. Who tests starting, signals or imports starts a new one.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock, Timer
from typing import Any

READ_AT_IMPORT = ("PYTHON", "OMP_", "OPENBLAS_", "MKL_", "LC_", "LANG", "LD_", "KMP_")
"""Variables that take effect while Python, NumPy or torch start: a child cannot have others than its parent."""


PRELOADED = (
    "scipy.linalg", "torch.distributed.fsdp", "specdiag_cli.main", "specdiag_cli.analyze_output", "specdiag.analysis.analyze",
    "specdiag.checkpoint.reader",
)  # fmt: skip
_GIVEN = dict(os.environ)
"""The environment of the process that forks: a test may change its own later."""
_one_at_a_time = Lock()


def can_fork(env: Mapping[str, str]) -> bool:
    """True if a forked process would find its environment as a new one does."""
    return _early(env) == _early(_GIVEN)


def run_forked(
    lines: Sequence[Sequence[str]], envs: Sequence[Mapping[str, str]], cwd: Path | None, timeout: float, stdin: str = ""
) -> list[subprocess.CompletedProcess[str]]:
    """Run programs of Python side by side to their end.

    Args:
        lines: arguments of Python, `-m module`, `-c code` or a script first, of each program.
        envs: environment of each.
        cwd: where they run.
        timeout: seconds for all.
        stdin: what each reads.

    Raises:
        subprocess.TimeoutExpired: they took longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "in"
        given.write_text(stdin)
        outputs = [[str(Path(folder) / f"{i}.{name}") for name in ("out", "err")] for i in range(len(lines))]
        orders = [
            {"line": list(line), "env": dict(env), "cwd": str(cwd or Path.cwd()), "files": [str(given), *files]}
            for line, env, files in zip(lines, envs, outputs, strict=True)
        ]
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        with _one_at_a_time:
            timer = Timer(timeout, os.killpg, (server.pid, signal.SIGKILL))
            timer.start()
            server.stdin.write(json.dumps(orders) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            timer.cancel()
        if not answer:
            _server.cache_clear()
            said = "".join(Path(err).read_text() for _, err in outputs if Path(err).exists())
            raise subprocess.TimeoutExpired(list(lines[0]), timeout, stderr=said)
        return [
            subprocess.CompletedProcess(list(line), status, *(Path(file).read_text() for file in files))
            for line, status, files in zip(lines, json.loads(answer), outputs, strict=True)
        ]


def _early(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(READ_AT_IMPORT)}


@cache
def _server() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    server = subprocess.Popen(
        [sys.executable, __file__], env=_GIVEN, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    )
    atexit.register(server.kill)
    return server


def _serve() -> dict[str, Any]:
    """Fork as asked, line by line. Returns in the children alone: what each has to run."""
    for request in sys.stdin:
        children: list[int] = []
        for order in json.loads(request):
            if not (child := os.fork()):
                return order
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(statuses) + "\n")
        sys.stdout.flush()
    sys.exit()


def _become(order: dict[str, Any]) -> None:
    """Stand in for a new process, and run its program."""
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path[1:1] = filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))
    for number, file in enumerate(order["files"]):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    kind, *rest = order["line"]
    sys.path[0] = order["cwd"] if kind in ("-m", "-c") else str(Path(kind).parent)
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = [kind, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv = order["line"]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for _module in PRELOADED:
        import_module(_module)
    assert "huggingface_hub" not in sys.modules, "it reads HF_ENDPOINT when it is imported"
    gc.freeze()  # a child that looks for garbage in torch's modules copies all their memory when it ends
    _become(_serve())
