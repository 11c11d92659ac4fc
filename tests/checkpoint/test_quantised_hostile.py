"""Made-up and damaged bundles of quantised tensors: values, a reason or a SourceError, in little memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised_files import ALL, I8, I32, STEM, U8, opened, weight
from quantisers import FORMATS, Tensors

from specdiag.checkpoint.quantised.dequantise import dequantise
from specdiag.checkpoint.torch_tensors import list_tensors
from specdiag.errors import SourceError

LEAVES = (
    "weight", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_packed", "weight_shape", "weight_g_idx",
    "weight_zero_point", "weight_global_scale", "qweight", "qzeros", "scales", "scale", "g_idx", "biases", "SCB",
    "weight_format", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4", "experts.down_proj", "experts.down_proj_scale", "experts.down_proj_blocks",
    "experts.down_proj_scales", "W_q", "codes", "codebooks", "comfy_quant",
)  # fmt: skip
TYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8": torch.float8_e4m3fn,
    "E8": torch.float8_e8m0fnu, "F4": torch.float4_e2m1fn_x2, "I8": I8, "U8": U8, "I32": I32, "U32": torch.uint32,
    "I64": torch.int64, "I16": torch.int16,
}  # fmt: skip
sizes = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 64])
states = st.fixed_dictionaries(
    {},
    optional={
        "shape": st.one_of(st.lists(st.one_of(st.integers(-4, 130), st.integers(0, 2**70)), max_size=4), st.none()),
        "blocksize": st.one_of(st.integers(-1, 128), st.text(max_size=2)),
        "nested_blocksize": st.one_of(st.integers(-1, 300), st.none()),
        "nested_offset": st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.just(10**400), st.booleans()),
    },
)
settings_of = st.dictionaries(
    st.sampled_from(["bits", "group_size", "quant_method", "sym", "checkpoint_format", "weight_block_size", "mode",
                     "version", "config_groups", "packing_format"]),
    st.one_of(st.integers(-2, 200), st.just(10**400), st.lists(st.integers(-1, 130), max_size=2), st.none(), st.booleans(),
              st.sampled_from(["gptq", "gptq_v2", "awq", "gemm", "mxfp4", "affine", "hqq"]),
              st.fixed_dictionaries({"a": st.fixed_dictionaries({"weights": st.fixed_dictionaries({"num_bits": st.integers()})})})),
)  # fmt: skip


@st.composite
def bundles(draw: st.DrawFn) -> Tensors:
    tensors: Tensors = {}
    for leaf in draw(st.lists(st.sampled_from(LEAVES), min_size=1, max_size=6, unique=True)):
        if "quant_state" in leaf:
            said = json.dumps(draw(states)).encode()
            tensors[f"{STEM}.{leaf}"] = torch.frombuffer(bytearray(said), dtype=U8)
            continue
        kind = TYPES[draw(st.sampled_from(sorted(TYPES)))]
        shape = draw(st.lists(sizes, max_size=4))
        seed = draw(st.integers(0, 2**20))
        if 0 in shape:
            tensors[f"{STEM}.{leaf}"] = torch.empty(shape, dtype=kind)
            continue
        n_bytes = prod(shape) * torch.empty(0, dtype=kind).element_size()
        raw = np.random.default_rng(seed).integers(0, draw(st.sampled_from([2, 256])), n_bytes, np.uint8)
        tensors[f"{STEM}.{leaf}"] = torch.from_numpy(raw).view(kind).reshape(shape)
    return tensors


@st.composite
def mutants(draw: st.DrawFn) -> tuple[Tensors, Mapping[str, Any]]:
    """A good weight of which one part was cut, turned, retyped or dropped."""
    form = ALL[draw(st.sampled_from(sorted(ALL)))]
    tensors = dict(form.quantise(STEM, weight(32, 128)).tensors)
    name = draw(st.sampled_from(sorted(tensors)))
    victim = tensors.pop(name)
    match draw(st.sampled_from(["drop", "turn", "cut", "flat", "retype", "fill"])):
        case "turn":
            tensors[name] = victim.T.contiguous() if victim.ndim == 2 else victim[None]
        case "cut":
            tensors[name] = victim[: len(victim) // 2].clone() if victim.ndim else victim[None]
        case "flat":
            tensors[name] = victim.reshape(-1)
        case "retype":
            tensors[name] = victim.to(torch.float32) if victim.dtype != torch.uint32 else victim.view(I32)
        case "fill":
            tensors[name] = torch.from_numpy(np.full(victim.numel() * victim.element_size(), 0xEE, np.uint8))
            tensors[name] = tensors[name].view(victim.dtype).reshape(victim.shape)
        case _:
            pass
    return tensors, draw(st.sampled_from([form.config, {}]))


def survives(tensors: Tensors, config: Mapping[str, Any]) -> None:
    """Listing and reading gives values, a reason or a SourceError, and allocates little more than the values."""
    stored = list_tensors(tensors, "made up")
    held_bytes = sum(t.nbytes for t in stored)
    tracemalloc.start()
    try:
        held, notes = dequantise(stored, config)
        assert len(held) == len(stored)
        assert all("\n" not in note for note in notes)
        for tensor in held:
            if tensor.rounding is None:
                continue
            try:
                found = tensor.read(None)
            except SourceError:
                continue
            assert found.shape == tensor.shape
            assert found.dtype == np.float32
            if found.ndim:
                assert np.array_equal(tensor.read(len(found) - 1), found[-1], equal_nan=True)
            assert tensor.rounding.error(found) >= 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400_000 + 160 * held_bytes


@settings(max_examples=400)
@given(bundles(), settings_of)
def test_made_up_bundles(tensors: Tensors, said: dict[str, Any]) -> None:
    survives(tensors, {"quantization_config": said, "quantization": said} if said else {})


@settings(max_examples=300)
@given(mutants())
def test_damaged_weights(mutant: tuple[Tensors, Mapping[str, Any]]) -> None:
    survives(*mutant)


def test_memory_of_dequantising_is_a_few_times_the_result(tmp_path: Path) -> None:
    for name in ("gptq4", "gptq3", "awq4", "nf4", "mxfp4", "ct4", "mlx6", "fp8-block", "int8"):
        form = FORMATS[name]
        quantised = form.quantise(STEM, weight(1024, 1024))
        (matrix,) = opened(quantised.tensors, form.config).matrices
        tracemalloc.start()
        matrix.tensor.read(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3.2 * 4 * 1024 * 1024, name
