"""Cost of the scores, QK and channels of a NormWatch, against a training step: a small LLaMA on one CPU core.

CPU seconds of this process, so that other programs count little; medians of interleaved rounds.

    python benchmarks/watched_heads.py            # two minutes
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from decay_cost import SETTING, Training
from methods import read_text

from specdiag.optim.norms.block_figures import BlockFigures
from specdiag.text.counts import percent
from specdiag.trajectories.metric_log import LogEntry

EVERY, ROUNDS = 50, 9


def main() -> None:
    """Measure, and print one line."""
    torch.set_num_threads(1)
    training = Training(read_text(), 0)
    parameters = {name: p.detach() for name, p in training.model.named_parameters()}
    figures = BlockFigures(training.model, parameters)

    def entries() -> list[LogEntry]:
        heads = [row for own in figures.of_heads(0, parameters) for row in own]
        return [*heads, *figures.of_channels(0, figures.rows(parameters))]

    n_entries = len(entries())
    steps: list[float] = []
    looks: list[float] = []
    for repeat in range(ROUNDS + 1):
        step, look = _seconds(lambda: training.run(3)) / 3, _seconds(entries)
        if repeat:
            steps.append(step)
            looks.append(look)
    share = median(looks) / median(steps)
    n_values = sum(p.numel() for p in training.model.parameters())
    batch, length = SETTING["batch"]  # pyright: ignore
    print(
        f"{n_values / 1e6:.1f} M weights, {batch * length} tokens a step: {n_entries} values in {median(looks):.3f} s "
        f"of CPU time, a step {median(steps):.3f} s: {percent(share, 1)} of a logged step, "
        f"{percent(share / EVERY, 2)} of all steps at the default interval of {EVERY}"
    )


def _seconds(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


if __name__ == "__main__":
    main()
