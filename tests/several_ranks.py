"""Processes of torch.distributed on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from command import Environment, environment
from helpers import PATIENCE
from preloaded import run_forked


def side_by_side(
    *line: object, n: int = 2, cwd: Path | None = None, env: Environment | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run a program of Python, `-m module` or a script, in n ranks. Nothing stops the others if one ends, as torchrun would.

    It can import what lies beside this file.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    shared |= {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), **(env or {})}
    envs = [environment({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(n)]
    return run_forked([[*map(str, line)]] * n, envs, cwd, PATIENCE)


def run_ranks(code: str, folder: Path, n: int = 2, ends: Sequence[int] = ()) -> None:
    """Run a script in n ranks with the folder as its argument.

    Each rank must end with its exit code of `ends`; without them all end well.
    """
    script = folder / "worker.py"
    script.write_text(code)
    done = side_by_side(script, folder, n=n)
    assert [process.returncode for process in done] == list(ends or [0] * n), [process.stderr for process in done]


@contextmanager
def gathered_bytes() -> Generator[list[int]]:
    """Collect the bytes that this rank hands to each call of `dist.gather`."""
    import torch.distributed as dist

    sizes: list[int] = []
    gather = dist.gather

    def counting(tensor: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return gather(tensor, *arguments, **options)

    dist.gather = counting
    try:
        yield sizes
    finally:
        dist.gather = gather
