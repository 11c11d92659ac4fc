"""Cost of `analyze --function` beside plain `analyze`: ratios of processor time on one core, in one run.

Processor seconds of this process, so that other programs count little; medians of interleaved rounds.

    python tests/assets.py minilm smollm2-gguf && python benchmarks/function_cost.py       # some minutes
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import specdiag

ASSETS = Path(__file__).parents[1] / "build" / "assets"
SOURCES = {"MiniLM": "minilm", "SmolLM2-135M": "smollm2-gguf"}
ROUNDS = 3


def main() -> None:
    """Measure, and print a line for each model."""
    for name, folder in SOURCES.items():
        plain: list[float] = []
        both: list[float] = []
        for repeat in range(ROUNDS + 1):
            seconds = [_seconds(ASSETS / folder, function=function) for function in (False, True)]
            if repeat:
                plain.append(seconds[0])
                both.append(seconds[1])
        print(
            f"{name}: {median(plain):.1f} s plain, {median(both):.1f} s with function=True: "
            f"{median(both) / median(plain):.2f} times"
        )


def _seconds(source: Path, *, function: bool) -> float:
    begin = time.process_time()
    specdiag.analyze(source, device="cpu", jobs=1, function=function)
    return time.process_time() - begin


if __name__ == "__main__":
    main()
