"""Analyses that keep their results in a folder, and the entries of that folder."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

import specdiag

SIDE = 256


def weights(n=3, seed=0, rows=SIDE, cols=SIDE):
    rng = np.random.default_rng(seed)
    return {
        f"model.layers.{i}.self_attn.q_proj.weight": rng.standard_normal((rows, cols)).astype(np.float32)
        for i in range(n)
    }


def analyze(state, folder, **options):
    state = {name: torch.from_numpy(w) for name, w in state.items()}
    return specdiag.analyze(state, device="cpu", cache=folder, **options)


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(one, other):
    assert one.records == other.records
    for record in one:
        both = (one.eigenvalues(record.key), other.eigenvalues(record.key))
        assert both[0].tobytes() == both[1].tobytes()
        if record.rand_spectral_norm is not None:
            both = (one.eigenvalues(record.key, randomized=True), other.eigenvalues(record.key, randomized=True))
            assert both[0].tobytes() == both[1].tobytes()


def write(folder, n=3, side=SIDE):
    folder.mkdir(parents=True)
    save_file(weights(n, rows=side, cols=side), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def command(*arguments):
    return [sys.executable, "-m", "specdiag", *map(str, arguments)]


def run(*arguments, cwd, cache):
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=os.environ | {"SPECDIAG_CACHE": str(cache)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def reseal(path, content):
    """Write an entry under its right checksum."""
    name = path.name.removesuffix(".result")
    path.write_bytes(hashlib.sha256(name.encode() + content).digest() + content)
