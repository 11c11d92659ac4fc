"""Small files that would cost much, and files that never end: an answer or a sentence, soon and in little memory."""

from __future__ import annotations

import json
import os
import re
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_state, write_checkpoint

import specdiag
from specdiag.analysis.batches import batches, units
from specdiag.analysis.options import AnalysisOptions
from specdiag.analysis.settings import resolved
from specdiag.architecture import names
from specdiag.checkpoint import long_names
from specdiag.checkpoint.memory import from_state_dict
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError, UsageError

QUERY = "model.layers.0.self_attn.q_proj.weight"
LONG = {
    "dots": "a." * 60_000 + "q_proj.weight",
    "layers": "layers.0." * 12_000 + "q_proj.weight",
    "underscores": "_" * 60_000 + "q.weight",
    "projections": "q_proj" * 20_000,
    "digits": "layers." + "9" * 6000 + ".self_attn.q_proj.weight",
}


def one(folder: Path, *named: str) -> Path:
    """A file of 8x8 matrices under these names."""
    return write_checkpoint(folder, random_state(dict.fromkeys(named, (8, 8))), config=None)


def header(path: Path, entries: dict[str, tuple[str, list[int], int]]) -> Path:
    """A safetensors file of these types, shapes and bytes, one tensor after the other."""
    at, found = 0, {}
    for name, (dtype, shape, size) in entries.items():
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(found, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


def replaced(folder: Path, name: str, by: str) -> None:
    """Put something without an end, or almost, in the place of a file."""
    path = folder / name
    path.unlink(missing_ok=True)
    if by == "pipe":
        os.mkfifo(path)
    elif by == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(30 << 30)


NEVER = ("pipe", "device", "sparse")


@pytest.mark.parametrize("by", NEVER)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model_index.json"])
def test_files_without_an_end(tmp_path: Path, name: str, by: str) -> None:
    folder = one(tmp_path, QUERY) if name != "model_index.json" else tmp_path / "unet"
    if name == "model_index.json":
        one(folder, QUERY)
    if "index" in name.split("."):  # beside a whole file it would not be read
        (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    replaced(tmp_path, name, by)
    with pytest.raises(SourceError, match=rf"{name}' cannot be read: it (is not a regular file|has 30720 MiB, and at)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("by", NEVER)
def test_an_adapter_configuration_without_an_end(tmp_path: Path, by: str) -> None:
    factors = {"base_model.model.q_proj.lora_A.weight": (4, 8), "base_model.model.q_proj.lora_B.weight": (8, 4)}
    write_checkpoint(tmp_path, random_state(factors), config=None, name="adapter_model.safetensors")
    replaced(tmp_path, "adapter_config.json", by)
    with pytest.raises(SourceError, match=r"adapter_config.json' cannot be read: it (is not a regular|has 30720 MiB)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("by", ["pipe", "device"])
def test_weights_and_role_maps_without_an_end(tmp_path: Path, by: str) -> None:
    one(tmp_path / "m", QUERY)
    replaced(tmp_path, "roles.toml", by)
    with pytest.raises(UsageError, match=r"roles.toml cannot be read: it is not a regular file"):
        open_checkpoint(tmp_path / "m", role_map=tmp_path / "roles.toml")
    replaced(tmp_path / "m", "model.safetensors", by)
    for place in (tmp_path / "m", tmp_path / "m" / "model.safetensors"):
        with pytest.raises(SourceError, match="is not a regular file"):
            open_checkpoint(place)


@pytest.mark.parametrize("case", LONG)
def test_names_that_are_too_long_are_left_out(tmp_path: Path, case: str) -> None:
    long = LONG[case]
    for checkpoint in (
        open_checkpoint(one(tmp_path, QUERY, long)),
        from_state_dict({QUERY: torch.eye(8), long: torch.ones(8, 8)}),
    ):
        assert [matrix.name for matrix in checkpoint.matrices] == [QUERY]
        (skipped,) = checkpoint.skipped
        assert skipped.name.startswith(f"{long[:100]}... (tensor ")
        assert skipped.reason == f"its name has {len(long)} characters, and at most 512 are read"


def test_long_names_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(one(tmp_path, QUERY, "a" * 2000, "a" * 2001, "a" * 512))
    assert len({skipped.name for skipped in checkpoint.skipped}) == 2
    assert {matrix.name for matrix in checkpoint.matrices} == {QUERY, "a" * 512}


def test_the_longest_names_that_are_read_take_no_time(tmp_path: Path) -> None:
    """A thousand of each kind; what grew with the square of the length took minutes."""
    begin = time.process_time()
    words = ("a.", "layers.0.", "_", "q_proj", "x_tokens_", "lora_A.", "norm_", "x.lora_A", "rope", "rope.", "mask_",
             "pos_", "optim1", "_state_dict", "rotary_emb.")  # fmt: skip
    for text in words:
        shapes = {f"{number}{text * 200}"[:511] + end: ("F32", [2, 2], 16) for number in range(100) for end in "ax!"}
        open_checkpoint(header(tmp_path / "model.safetensors", shapes))
    assert time.process_time() - begin < 120


@pytest.mark.parametrize(
    ("index", "layer"),
    [("7", 7), ("²³", None), ("٣", None), ("9" * 5, 99_999), ("9" * 6, None), ("9" * 450, None)],
)
def test_layers_are_what_ascii_digits_say(tmp_path: Path, index: str, layer: int | None) -> None:
    (matrix,) = open_checkpoint(one(tmp_path, f"model.layers.{index}.self_attn.q_proj.weight")).matrices
    assert (matrix.module.role, matrix.module.layer) == ("q", layer)


def test_experts_of_odd_numbers_are_sampled(tmp_path: Path) -> None:
    held = [f"model.layers.0.mlp.experts.{n}.up_proj.weight" for n in ("0", "1", "²", "9" * 400, "999999999")]
    checkpoint = open_checkpoint(one(tmp_path, *held), experts=1)
    assert len(checkpoint.matrices) + len(checkpoint.skipped) == len(held)


@pytest.mark.parametrize(
    "file",
    ["y" * 5000 + ".safetensors", "../model.safetensors", "/etc/passwd", "a\0b", "a/../../b", "", 7, None, ["a"]],
)
def test_files_that_no_index_can_name(tmp_path: Path, file: object) -> None:
    one(tmp_path, QUERY)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    content = {"weight_map": {QUERY: "weights.safetensors", "x": file}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(
        SourceError, match=r"damaged: it names .*, no file inside its own folder; fetch it again"
    ) as caught:
        open_checkpoint(tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("place", ["~no-such-user-here/x", "x" * 5000, "a\0b", "~" * 300])
def test_places_that_cannot_be(tmp_path: Path, place: str) -> None:
    with pytest.raises(SourceError):
        open_checkpoint(place)
    with pytest.raises(UsageError, match="has no file"):
        open_checkpoint(one(tmp_path, QUERY), file=place)


def test_many_small_tensors_cost_little(tmp_path: Path) -> None:
    """100,000 vectors and 20,000 matrices, each a file of 10 MB or less."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    vectors = {f"a{number}": ("U8", [1], 1) for number in range(100_000)}
    checkpoint = open_checkpoint(header(tmp_path / "model.safetensors", vectors))
    assert len(checkpoint.skipped) == 100_000
    matrices = {f"layers.{number}.self_attn.q_proj.weight": ("F32", [2, 2], 16) for number in range(20_000)}
    assert len(open_checkpoint(header(tmp_path / "model.safetensors", matrices)).matrices) == 20_000
    assert time.process_time() - begin < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10


def test_small_matrices_go_to_workers_together() -> None:
    shapes = [(200, 300), (49, 60), (50, 60), *((2, 2),) * 150, (3, 40_000)]
    checkpoint = from_state_dict(
        {f"l{i}.weight": torch.from_numpy(np.random.default_rng(i).standard_normal(s)) for i, s in enumerate(shapes)}
    )
    work = units(checkpoint.matrices)
    taken = list(batches(work, resolved(AnalysisOptions(), checkpoint.opening)))
    assert sorted(len(batch.units) for batch in taken) == [1, 1, 1, 23, 64, 64]
    assert sorted(u.tensor.name for batch in taken for u in batch.units) == sorted(u.tensor.name for u in work)
    alone = {u.matrices[0].shape for batch in taken if batch.kind == "single" for u in batch.units}
    assert alone == {(200, 300), (50, 60), (3, 40_000)}


def test_small_matrices_are_measured_as_they_are_alone(tmp_path: Path) -> None:
    shapes = [(2, 2), (2, 3), (30, 40), (49, 49), (1, 1), (60, 80)] * 30
    held = random_state({f"l{i}.weight": shape for i, shape in enumerate(shapes)})
    held["l6.weight"][0, 0] = np.nan
    write_checkpoint(tmp_path, held, config=None)
    together = specdiag.analyze(tmp_path, jobs=2, cache=None)
    for name, values in list(held.items())[:6]:
        if min(values.shape) > 1:
            write_checkpoint(tmp_path / name, {name: values}, config=None)
            (alone,) = specdiag.analyze(tmp_path / name, cache=None).records
            assert alone == together[name]


def test_neighbours() -> None:
    beside = names.Neighbours(["a.b.weight", "a.b.bias", "a.b-c.weight", "a.bc", "d", "a.b/c.x", "ab.c"])
    assert beside.below("a") == {"b", "b-c", "bc", "b/c"}
    assert beside.below("") == {"a", "d", "ab"}
    assert beside.below("a.b") == {"weight", "bias"}
    assert (beside.has("a.b"), beside.has("a.bc"), beside.has("d")) == (True, False, False)


def test_numbered() -> None:
    for name in ("a.0.b.12", "0", "a0.1b.c", "a.²", "a.1234567890.b", "a\n.1.b", "..1..", "a.٣"):
        expected = ".".join("#" if re.fullmatch("[0-9]{1,9}", part) else part for part in name.split("."))
        assert names.numbered(name) == expected


def test_brief() -> None:
    assert long_names.brief("abc", 3) == "abc"
    assert long_names.brief("abcd", 3) == "abc... (4 characters)"
