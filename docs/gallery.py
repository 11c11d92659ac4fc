"""Draw the pictures of docs/gallery.md and docs/reading.md from MiniLM, and that of heads from SmolLM2.

python docs/gallery.py    # or make figures
"""

from __future__ import annotations

import os
from pathlib import Path

import reading_figures

import specdiag
from specdiag import plot

ROOT = Path(__file__).resolve().parents[1]
MODEL = "build/assets/minilm"
"""As captions name it."""
DECODER = "build/assets/smollm2-gguf"
DPI = 90


def main() -> None:
    """Draw every picture anew."""
    os.chdir(ROOT)
    report = specdiag.analyze(MODEL, device="cpu")
    function = specdiag.analyze(DECODER, roles=("q", "k", "qk", "ov"), function=True, device="cpu")
    function.provenance.versions.pop("specdiag", None)
    report.provenance.versions.pop("specdiag", None)  # a caption without it: the same picture at every commit
    norms = [
        specdiag.simulate(rule, lr=3e-4, weight_decay=0.1, steps=20_000, lr_shape="cosine")
        for rule in ("adamw", "adamc")
    ]
    plan = specdiag.recommend(report, weight_decay=0.1)
    pictures = {
        "heatmap": plot.heatmap(report),
        "square_alpha": plot.alpha(report),
        "heads": plot.heads(function),
        "alpha": plot.alpha(report, basis="alpha"),
        "balance": plot.balance(report),
        "esd": plot.esd(report, roles="q"),
        "scree": plot.scree(report, roles="q"),
        "decay": plot.decay(plan),
        "paper": plot.paper(report, plan),
        "norms_predicted": plot.norms_predicted(*norms),
    }
    for name, figure in pictures.items():
        print(plot.save(figure, f"docs/figures/{name}.png", dpi=DPI))
    shifted = specdiag.analyze(MODEL, device="cpu", function=True)
    for path in reading_figures.draw(shifted, Path("docs/figures/reading"), DPI):
        print(path)


if __name__ == "__main__":
    main()
