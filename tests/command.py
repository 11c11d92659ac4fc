"""The command line, in this process or in one of its own."""

import os
import subprocess
import sys

from specdiag_cli.main import app
from typer.testing import CliRunner


def invoke(*arguments, width=None, **options):
    """Run the command in this process: typer's result, with exit code, stdout and stderr."""
    env = {} if width is None else {"COLUMNS": str(width)}
    return CliRunner().invoke(app, list(map(str, arguments)), env=env, **options)


def outcome(*arguments, width=None):
    """Exit code, stdout and stderr of a command that ran in this process."""
    done = invoke(*arguments, width=width)
    return done.exit_code, done.stdout, done.stderr


def words(*arguments):
    """The words that start the command in a process of its own."""
    return [sys.executable, "-m", "specdiag", *map(str, arguments)]


def execute(*arguments, cwd=None, env=None):
    """Run the command in a process of its own, as wide as it is without a terminal."""
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        words(*arguments), capture_output=True, text=True, cwd=cwd, env=inherited | (env or {}), timeout=120
    )
