"""The command line, in this process or in one of its own, and programs that call the library there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers import PATIENCE
from preloaded import can_fork, run_forked
from specdiag_cli.main import app
from typer.testing import CliRunner, Result

Environment = Mapping[str, str | None]
"""Variables to add to the environment of a process; None takes one out of it."""
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def invoke(*arguments: object, width: int | None = None, **options: Any) -> Result:
    """Run the command in this process: typer's result, with exit code, stdout and stderr."""
    env = {"COLUMNS": None if width is None else str(width)}  # xdist sets it in its workers
    return CliRunner().invoke(app, list(map(str, arguments)), env=env, **options)


def outcome(*arguments: object, width: int | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that ran in this process."""
    done = invoke(*arguments, width=width)
    return done.exit_code, done.stdout, done.stderr


def words(*arguments: object) -> list[str]:
    """The words that start the command in a process of its own."""
    return [sys.executable, "-m", "specdiag", *map(str, arguments)]


def torchrun(*arguments: object, processes: int = 2) -> list[str]:
    """The words that start a command line, or a file, in several processes on the CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, *map(str, arguments)]


def environment(changes: Environment | None = None) -> dict[str, str]:
    """The environment of a process that has no terminal, so that its output is as wide as it likes."""
    given = {**os.environ, "COLUMNS": None, "LINES": None, **(changes or {})}
    return {name: value for name, value in given.items() if value is not None}


def call(
    line: list[str], *, cwd: Path | None = None, env: Environment | None = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a line of words to its end; `env` adds to the environment."""
    given = {"capture_output": True, "text": True, "timeout": PATIENCE} | options
    return subprocess.run(line, cwd=cwd, env=environment(env), check=False, **given)


def execute(
    *arguments: object, cwd: Path | None = None, env: Environment | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which is forked where it may be."""
    given = environment(env)
    if options or not can_fork(given):
        return call(words(*arguments), cwd=cwd, env=env, **options)
    return run_forked([words(*arguments)[1:]], [given], cwd, PATIENCE)[0]


def shell(
    script: str, *, cwd: Path | None = None, env: Environment | None = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a script of bash, in which `specdiag` is the command."""
    return call(
        ["bash", "-c", f'specdiag() {{ {sys.executable} -m specdiag "$@"; }}\n{script}'], cwd=cwd, env=env, **options
    )


def python(
    code: str, *arguments: object, cwd: Path | None = None, env: Environment | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program in a new process, which has to end well; `arguments` are its `sys.argv[1:]`."""
    done = call([sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=env, **options)
    assert done.returncode == 0, done.stderr
    return done


def forked_python(
    code: str, *arguments: object, cwd: Path | None = None, env: Environment | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program as `python` does, where what is imported already makes no difference."""
    done = run_forked([["-c", code, *map(str, arguments)]], [environment(env)], cwd, PATIENCE)[0]
    assert done.returncode == 0, done.stderr
    return done


def benchmark(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a file of benchmarks/."""
    return call([sys.executable, str(BENCHMARKS / name), *map(str, arguments)])


def start(
    line: list[str], *, cwd: Path | None = None, env: Environment | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start a line of words; its stderr is read while it runs."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(line, text=True, cwd=cwd, env=environment(env), **pipes)


def start_and_wait(
    *arguments: object, matrices: int, cwd: Path | None = None, env: Environment | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start a command with `-v` and wait until it has said of so many matrices that they are measured."""
    process = start(words("-v", *arguments), cwd=cwd, env=env, **options)
    assert process.stderr is not None
    said = (line for line in process.stderr if "DEBUG" in line)
    for _ in range(matrices):
        next(said)
    return process
