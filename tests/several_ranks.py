"""Processes of torch.distributed on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import PATIENCE


def run_ranks(code: str, folder: Path, n: int = 2, ends: Sequence[int] = ()) -> None:
    """Run a script once for each rank, with the folder as its argument; it can import what lies beside this file.

    Each rank must end with its exit code of `ends`; without them all end well.
    """
    script = folder / "worker.py"
    script.write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n), "PYTHONPATH": path}
    running = [
        subprocess.Popen([sys.executable, script, folder], env=os.environ | shared | {"RANK": str(rank)})
        for rank in range(n)
    ]
    assert [process.wait(timeout=PATIENCE) for process in running] == list(ends or [0] * n)


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
