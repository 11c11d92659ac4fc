"""Cost of `analyze --function` beside plain `analyze`: ratios of processor time on one core, in one run.

Processor seconds of this process, so that other programs count little; medians of interleaved rounds.

    python tests/assets.py minilm smollm2-gguf && python benchmarks/function_cost.py       # some minutes
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import specdiag
from specdiag.analysis.options import AnalysisArguments

ASSETS = Path(__file__).parents[1] / "build" / "assets"
SOURCES = {"MiniLM": "minilm", "SmolLM2-135M": "smollm2-gguf"}
CORE: AnalysisArguments = {"device": "cpu", "jobs": 1}
ALONE = ("qk", "ov", "du")
ROUNDS = 3


def main() -> None:
    """Measure, and print a line for each model."""
    for name, folder in SOURCES.items():
        ways: tuple[AnalysisArguments, ...] = ({}, {"function": True}, {"function": True, "roles": ALONE})
        rounds = [[_seconds(ASSETS / folder, way) for way in ways] for _ in range(ROUNDS + 1)]
        plain, both, alone = (median(seconds) for seconds in zip(*rounds[1:], strict=True))
        print(
            f"{name}: {plain:.1f} s plain, {both:.1f} s with function=True ({both / plain:.2f} times), "
            f"{alone:.1f} s for {', '.join(ALONE)} alone"
        )


def _seconds(source: Path, options: AnalysisArguments) -> float:
    begin = time.process_time()
    specdiag.analyze(source, **(CORE | options))
    return time.process_time() - begin


if __name__ == "__main__":
    main()
