"""Layers of a scan, which lie in one tensor each: cut as Flax applies them, listed by layer, and nothing else taken so."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from specdiag.architecture.scanned import find_scanned
from specdiag.checkpoint.reader import open_checkpoint

LAYERS, D, F, HEADS, HEAD_DIM = 3, 24, 60, 4, 6

VIT = {
    "MultiHeadDotProductAttention_0.query.kernel": (D, HEADS, HEAD_DIM),
    "MultiHeadDotProductAttention_0.key.kernel": (D, HEADS, HEAD_DIM),
    "MultiHeadDotProductAttention_0.value.kernel": (D, HEADS, HEAD_DIM),
    "MultiHeadDotProductAttention_0.out.kernel": (HEADS, HEAD_DIM, D),
    "MultiHeadDotProductAttention_0.out.bias": (D,),
    "LayerNorm_0.scale": (D,),
    "MlpBlock_0.Dense_0.kernel": (D, F),
    "MlpBlock_0.Dense_0.bias": (F,),
    "MlpBlock_0.Dense_1.kernel": (F, D),
}
GEMMA = {
    "pre_attention_norm.scale": (D,),
    "attn.q_einsum.w": (HEADS, D, HEAD_DIM),
    "attn.kv_einsum.w": (2, 2, D, HEAD_DIM),
    "attn.attn_vec_einsum.w": (HEADS, HEAD_DIM, D),
    "mlp.gating_einsum": (2, D, F),
    "mlp.linear": (F, D),
}


def scanned(path, block, axis):
    """Tensors of all layers of a block, and beside them a norm that has one layer alone."""
    rng = np.random.default_rng(0)
    shapes = {f"{path}.{name}": (*shape[:axis], LAYERS, *shape[axis:]) for name, shape in block.items()}
    shapes |= {f"{path.rpartition('.')[0]}.final_norm.scale": (D,), "embedder.input_embedding": (100, D)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def opened(folder, tensors):
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder / "model.safetensors")


@pytest.mark.parametrize("axis", [0, 1])
def test_every_layer_has_its_roles_and_values(tmp_path, axis):
    tensors = scanned("img.Transformer.encoderblock", VIT, axis)
    checkpoint = opened(tmp_path, tensors)
    found = {m.key: m for m in checkpoint.matrices}
    for layer in range(LAYERS):
        path = f"img.Transformer.encoderblock.{layer}."
        roles = {name: found[path + name].module.role for name in VIT if name.endswith("kernel")}
        assert list(roles.values()) == ["q", "k", "v", "o", "up", "down"]
        for name in roles:
            matrix = found[path + name]
            stored = np.take(tensors[f"img.Transformer.encoderblock.{name}"], layer, axis)
            right = stored.reshape(D, -1) if stored.shape[0] == D else stored.reshape(-1, D)
            np.testing.assert_array_equal(matrix.load().numpy(), right)
            assert (matrix.module.layer, matrix.tensor.shape) == (layer, VIT[name])
            np.testing.assert_array_equal(matrix.tensor.read(1), stored[1])
    assert "The 3 layers of img.Transformer.encoderblock lie in one tensor each" in checkpoint.notes[0]
    assert {s.reason for s in checkpoint.skipped} == {"1-D: bias, norm or vector"}


def test_einsums_of_gemma_compute_what_their_parts_say(tmp_path):
    tensors = scanned("llm.layers", GEMMA, 0)
    found = {m.key: m.load().numpy() for m in opened(tmp_path, tensors).matrices if "layers.1." in m.name}
    x, layer = np.random.default_rng(1).standard_normal((5, D)).astype(np.float32), "llm.layers.1."
    weights = {name: tensors[f"llm.layers.{name}"][1] for name in GEMMA}
    queries = np.einsum("td,ndh->tnh", x, weights["attn.q_einsum.w"]).reshape(5, -1)
    keys, values = np.einsum("td,ckdh->ctkh", x, weights["attn.kv_einsum.w"]).reshape(2, 5, -1)
    gate, up = np.einsum("td,cdf->ctf", x, weights["mlp.gating_einsum"])
    for part, expected in (
        ("attn.q_einsum.w", queries), ("attn.kv_einsum.w[k]", keys), ("attn.kv_einsum.w[v]", values),
    ):  # fmt: skip
        np.testing.assert_allclose(x @ found[layer + part].T, expected, rtol=1e-4, atol=1e-5)
    for part, expected in (("mlp.gating_einsum[gate]", gate), ("mlp.gating_einsum[up]", up)):
        np.testing.assert_allclose(x @ found[layer + part], expected, rtol=1e-4, atol=1e-5)


def test_only_what_holds_layers_throughout_is_taken_apart():
    block = {f"layers.{name}": (LAYERS, *shape) for name, shape in VIT.items()}
    assert {scan.path for scan in find_scanned(block).values()} == {"layers"}
    assert find_scanned(block | {"layers.shared.bias": (D,)}) == {}
    assert find_scanned({name: shape for name, shape in block.items() if "Norm" not in name}) == {}
    assert find_scanned({f"blocks.0.{name[7:]}": shape for name, shape in block.items()}) == {}
    assert find_scanned(block | {"layers.MlpBlock_0.Dense_2.kernel": (LAYERS + 1, D, F)}) == {}
    assert find_scanned({name: (1, *shape[1:]) for name, shape in block.items()}) == {}
    assert find_scanned({name: (10**6, *shape[1:]) for name, shape in block.items()}) == {}
    assert find_scanned({"norm.weight": (4, 8), "proj.weight": (4, 8)}) == {}
