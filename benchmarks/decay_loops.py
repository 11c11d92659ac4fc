"""The decay that AlphaDecay gives in real training loops, against float64: the table of docs/optim.md.

    git clone https://github.com/karpathy/nanoGPT; git clone https://github.com/karpathy/nanochat
    TORCHDYNAMO_DISABLE=1 python benchmarks/decay_loops.py --nanogpt nanoGPT --nanochat nanochat --docs

Each loop takes 5 steps of a tiny model in float32, with a warmup, at lr 0.01 and weight_decay 20 (nanochat: matrix lr
0.4, which its script scales down): at usual rates float32 itself rounds the factor 1 - x by more than a millionth of x.
A loop whose package or checkout is missing is "not run".
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
from pages import add_options, table, update

PAGE = Path(__file__).parents[1] / "docs" / "optim.md"
SECTION = "loops"
HEAD = ("loop", "optimizer", "steps", "ratios", "decays compared", "largest relative difference")
LOOPS = {
    "nanogpt": ("nanoGPT's `train.py`", "AdamW"),
    "nanochat": ("nanochat's `base_train.py`", "MuonAdamW"),
    "trainer": ("transformers Trainer", "AdamW, fused"),
    "trl": ("TRL's SFTTrainer", "AdamW, fused"),
    "lightning": ("Lightning", "AdamW"),
    "fsdp": ("FSDP2, plain loop, 2 gloo ranks", "AdamW"),
}


def run(name: str, checkout: Path | None) -> list[str]:
    """The row of a loop, which has processes of its own."""
    command = [sys.executable, str(Path(__file__).with_name("decay_loops_run.py")), name, str(checkout or "")]
    n = 2 if name == "fsdp" else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n), "OMP_NUM_THREADS": "1"}
    environment = os.environ | (shared if n > 1 else {"OMP_NUM_THREADS": "1"})
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment | ({"RANK": str(rank)} if n > 1 else {}))
        for rank in range(n)
    ]
    said = [process.communicate()[0].decode() for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"the loop {name} failed")
    found = msgspec.json.decode(said[0].strip().splitlines()[-1])
    label, optimizer = LOOPS[name]
    if isinstance(found, str):
        return [label, optimizer, found, "", "", ""]
    least, most = found["ratios"]
    ratios = f"{least:.2f} to {most:.2f}"
    return [label, optimizer, str(found["steps"]), ratios, str(found["pairs"]), f"{found['largest']:.1e}"]


def main() -> int:
    """Print the table, or put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, PAGE)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--nanochat", type=Path, help="a checkout of github.com/karpathy/nanochat")
    parser.add_argument("--only", choices=LOOPS, action="append", help="this loop alone")
    arguments = parser.parse_args()
    checkouts = {"nanogpt": arguments.nanogpt, "nanochat": arguments.nanochat}
    rows = [run(name, checkouts.get(name)) for name in arguments.only or LOOPS]
    text = table(HEAD, rows)
    if not arguments.docs:
        print(text)
        return 0
    command = "python benchmarks/decay_loops.py --docs"
    return update(arguments.docs_file, {SECTION: text}, Path("the loops"), command, check=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
