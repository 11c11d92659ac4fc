"""Bytes and seconds of AlphaDecay and NormWatch on a sharded model: FSDP2 on 2 gloo ranks of this machine, float32.

Bytes are what dist.gather carries to other ranks. Seconds are the least of 5 rounds: of a measurement of all
projections (AlphaDecay), of its gathers alone, and of what a logged step takes longer (NormWatch, all matrices).

    OMP_NUM_THREADS=1 python benchmarks/sharded_cost.py --docs        # two minutes
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from pages import add_options, table, update

from specdiag.optim import AlphaDecay, NormWatch

PAGE = Path(__file__).parents[1] / "docs" / "optim.md"
SECTION = "sharded cost"
HEAD = (
    "width", "weights", "AlphaDecay: received by a rank", "arithmetic", "gathers", "whole measurement",
    "NormWatch: received by a rank", "arithmetic", "logged step longer by",
)  # fmt: skip
WIDTHS, RANKS, ROUNDS = (64, 256), 2, 5


def measure(width: int) -> dict[str, Any]:
    """Measure a model of 4 layers on this rank and the others."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_attention_heads=4, **sizes))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for p in model.parameters():
        p.grad = p.detach() * 1e-3
    decay = AlphaDecay(model, optimizer, measure_first=True)
    replicas, rounds = decay._replicas, decay._rounds  # pyright: ignore
    of_decay = bytes_of(lambda: list(replicas.cuts(rounds)))
    gathers = least(lambda: [None for _ in replicas.cuts(rounds)])
    whole = least(lambda: replicas.measure(rounds, "alpha"))
    decay.detach()
    plain = least(optimizer.step)
    watch = NormWatch(model, optimizer, every=1)

    def logged() -> None:
        watch.step()
        optimizer.step()

    of_watch = bytes_of(logged)
    return {
        "projections": sum(p.numel() for name, p in model.named_parameters() if "_proj" in name),
        "matrices": sum(p.numel() for p in model.parameters() if p.ndim == 2),
        "of_decay": of_decay, "gathers": gathers, "whole": whole, "of_watch": of_watch, "logged": least(logged) - plain,
    }  # fmt: skip


def bytes_of(call: Callable[[], object]) -> int:
    """Bytes that gathers bring to each rank, in the mean over ranks."""
    sent, gather = torch.zeros(1), dist.gather

    def counting(tensor: torch.Tensor, received: Any = None, **options: Any) -> Any:
        if received is None:
            sent.add_(tensor.numel() * tensor.element_size())
        return gather(tensor, received, **options)

    dist.gather = counting
    call()
    dist.gather = gather
    dist.all_reduce(sent)
    return round(float(sent) / dist.get_world_size())


def least(call: Callable[[], object]) -> float:
    """Seconds of the fastest round; ranks begin together."""
    seconds: list[float] = []
    for _ in range(ROUNDS + 1):
        dist.barrier()
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def row(width: int, found: dict[str, Any]) -> list[str]:
    """The row of a model; arithmetic: of 4 bytes a weight (n - 1)/n travel, and 1/n of that to each rank."""
    share = 4 * (RANKS - 1) / RANKS**2
    return [
        str(width), f"{found['matrices']:,}", f"{found['of_decay']:,}", f"{share * found['projections']:,.0f}",
        f"{found['gathers'] * 1e3:.0f} ms", f"{found['whole'] * 1e3:.0f} ms", f"{found['of_watch']:,}",
        f"{3 * share * found['matrices']:,.0f}", f"{found['logged'] * 1e3:.0f} ms",
    ]  # fmt: skip


def main() -> int:
    """Print the table, or put it into the page. With RANK set: measure, and print JSON."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        found = [measure(width) for width in WIDTHS]
        dist.destroy_process_group()
        print("\n" + msgspec.json.encode(found).decode())
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, PAGE)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(RANKS)}
    running = [
        subprocess.Popen([sys.executable, __file__], env=os.environ | shared | {"RANK": str(rank)}, stdout=-1)
        for rank in range(RANKS)
    ]
    said = [process.communicate()[0].decode() for process in running]
    rows = map(row, WIDTHS, msgspec.json.decode(said[0].strip().splitlines()[-1]))
    text = table(HEAD, list(rows))
    if not arguments.docs:
        print(text)
        return 0
    command = "python benchmarks/sharded_cost.py --docs"
    return update(arguments.docs_file, {SECTION: text}, Path("the ranks"), command, check=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
