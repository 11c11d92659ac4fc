"""Faults of values and of files, planted into a saved model at seeded places."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]


@dataclass(slots=True)
class Saved:
    """A model that is about to be written.

    Attributes:
        state: its tensors by name.
        config: its config.json.
        matrices: names of matrices of its layers.
        gains: names of vectors of its layers.
        embedding: name of its token embedding.
        rng: chooses the places.
    """

    state: State
    config: dict[str, Any]
    matrices: list[str]
    gains: list[str]
    embedding: str
    rng: np.random.Generator

    def matrix(self) -> torch.Tensor:
        """Choose a matrix of a layer."""
        return self.state[str(self.rng.choice(self.matrices))]


def nonfinite(model: Saved) -> None:
    """Put a NaN or an infinity into a matrix."""
    _set_one(model, model.matrix(), float(model.rng.choice([np.nan, np.inf, -np.inf])))


def nonfinite_gain(model: Saved) -> None:
    """Put a NaN into a norm gain or bias."""
    _set_one(model, model.state[str(model.rng.choice(model.gains))], float("nan"))


def saturated(model: Saved) -> None:
    """Clamp a value to the largest of its type."""
    _set_one(model, model.matrix(), torch.finfo(torch.float32).max)


def denormal(model: Saved) -> None:
    """Scale 3 % of a matrix below the normal numbers."""
    matrix = model.matrix()
    matrix[torch.from_numpy(model.rng.random(tuple(matrix.shape)) < 0.03)] = 1e-40


def zero(model: Saved) -> None:
    """Set a matrix to zero."""
    model.matrix().zero_()


def constant(model: Saved) -> None:
    """Fill a matrix with a number."""
    model.matrix().fill_(0.02)


def empty(model: Saved) -> None:
    """Leave a placeholder as ZeRO-3 does."""
    model.state[str(model.rng.choice(model.matrices))] = torch.empty(0)


def duplicate(model: Saved) -> None:
    """Copy the matrix of a layer into the next one."""
    by_shape = [(a, b) for a in model.matrices for b in model.matrices if a < b and _alike(model, a, b)]
    a, b = by_shape[int(model.rng.integers(len(by_shape)))]
    model.state[b] = model.state[a].clone()


def rank(model: Saved) -> None:
    """Take a quarter of the singular values of a matrix away."""
    matrix = model.matrix()
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s[-len(s) // 4 :] = 0
    matrix.copy_(u * s @ v)


def dead_rows(model: Saved) -> None:
    """Set an output of a matrix to zero."""
    matrix = model.matrix()
    matrix[int(model.rng.integers(matrix.shape[0]))] = 0


def dead_cols(model: Saved) -> None:
    """Set an input of a matrix to zero."""
    matrix = model.matrix()
    matrix[:, int(model.rng.integers(matrix.shape[1]))] = 0


def dead_tokens(model: Saved) -> None:
    """Set a tenth of the token embedding to zero."""
    table = model.state[model.embedding]
    table[torch.from_numpy(model.rng.random(table.shape[0]) < 0.1)] = 0


def norm_outlier(model: Saved) -> None:
    """Scale a matrix tenfold."""
    model.matrix().mul_(10)


def missing_matrix(model: Saved) -> None:
    """Leave a matrix out."""
    del model.state[str(model.rng.choice(model.matrices))]


def layer_gap(model: Saved) -> None:
    """Leave out a layer between others."""
    layers = sorted({int(found[1]) for name in model.matrices if (found := re.search(r"\.(\d+)\.", name))})
    if len(layers) > 2:
        _without_layers(model, [int(model.rng.choice(layers[1:-1]))])


def last_layers(model: Saved) -> None:
    """Leave out the last two layers."""
    _without_layers(model, [10, 11])


def vocabulary(model: Saved) -> None:
    """Leave out the last rows of the embedding and of what has as many."""
    size = model.state[model.embedding].shape[0]
    model.state = {n: t[: size - 8].clone() if t.shape[:1] == (size,) else t for n, t in model.state.items()}


def _without_layers(model: Saved, layers: list[int]) -> None:
    stem = re.split(r"\.\d+\.", model.matrices[0])[0]
    left_out = tuple(f"{stem}.{layer}." for layer in layers)
    model.state = {name: tensor for name, tensor in model.state.items() if not name.startswith(left_out)}


def _set_one(model: Saved, tensor: torch.Tensor, value: float) -> None:
    tensor.view(-1)[int(model.rng.integers(tensor.numel()))] = value


def _alike(model: Saved, a: str, b: str) -> bool:
    plain = [re.sub(r"\.\d+\.", ".N.", name) for name in (a, b)]
    return plain[0] == plain[1] and model.state[a].shape == model.state[b].shape


def twin(folder: Path, rng: np.random.Generator) -> None:
    """Write the same model for torch with another value in one tensor."""
    state = load_file(folder / "model.safetensors")
    name = str(rng.choice([name for name, tensor in state.items() if tensor.ndim == 2]))
    state[name].view(-1)[int(rng.integers(state[name].numel()))] += 1
    torch.save(state, folder / "pytorch_model.bin")


def damaged_file(folder: Path, rng: np.random.Generator) -> None:
    """Cut a twin of the weights short."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: int(rng.integers(len(data) // 4, len(data) - 1000))])


def module_folder(folder: Path, rng: np.random.Generator) -> None:
    """Put a NaN into a module's folder beside the model."""
    (folder / "2_Dense").mkdir()
    weight = torch.from_numpy(rng.standard_normal((64, 64)).astype("f4"))
    weight[3, int(rng.integers(64))] = float("nan")
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")


def index_part(folder: Path, rng: np.random.Generator) -> None:
    """Let the index forget one of three shards."""
    index, shards = _sharded(folder)
    lost = str(rng.choice(shards))
    index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if shard != lost}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def ghost(folder: Path, rng: np.random.Generator) -> None:
    """Let a shard lack a tensor that the index lists."""
    index, shards = _sharded(folder)
    shard = folder / str(rng.choice(shards))
    state = load_file(shard)
    del state[str(rng.choice(list(state)))]
    save_file(state, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def extra_shard(folder: Path, rng: np.random.Generator) -> None:
    """Leave a shard of an older save beside the set."""
    index, shards = _sharded(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").write_bytes((folder / str(rng.choice(shards))).read_bytes())


def _sharded(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Split the weights into three shards. The index is not written yet."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = [f"model-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    weight_map = {name: shards[i * 3 // len(state)] for i, name in enumerate(state)}
    for shard in shards:
        save_file({name: tensor for name, tensor in state.items() if weight_map[name] == shard}, folder / shard)
    return {"metadata": {}, "weight_map": weight_map}, shards


INTO_TENSORS: dict[str, tuple[str, Callable[[Saved], None]]] = {
    "NaN or infinity in a matrix": ("nonfinite", nonfinite),
    "NaN in a norm gain or bias": ("nonfinite", nonfinite_gain),
    "a value clamped to the largest": ("saturated", saturated),
    "3 % below the normal numbers": ("denormal", denormal),
    "a matrix of zeros": ("zero", zero),
    "a matrix of one number": ("constant", constant),
    "a placeholder of no values": ("empty", empty),
    "a layer's matrix copied into another": ("duplicate", duplicate),
    "a quarter of the rank lost": ("rank", rank),
    "a dead output": ("dead_rows", dead_rows),
    "a dead input": ("dead_cols", dead_cols),
    "a tenth of the tokens zero": ("dead_tokens", dead_tokens),
    "a matrix ten times as large": ("norm_outlier norms_differ", norm_outlier),
    "a matrix left out": ("missing_matrix", missing_matrix),
    "a layer left out": ("layer_gap", layer_gap),
    "the last two layers left out": ("layers", last_layers),
    "the last 8 tokens left out": ("vocabulary", vocabulary),
}
"""The check that must fire, or those of which one must, and what plants the fault."""

INTO_FILES: dict[str, tuple[str, Callable[[Path, np.random.Generator], None]]] = {
    "another value in the file for torch": ("twin", twin),
    "a file for torch cut short": ("damaged_file", damaged_file),
    "NaN in a module's folder": ("nonfinite", module_folder),
    "a shard that the index forgot": ("index_part", index_part),
    "a tensor that its shard lacks": ("ghost", ghost),
    "a shard of an older save": ("extra_shard", extra_shard),
}
