"""Quantisers that write each format from its definition: round to nearest, ranges as the format's own tools take them.

They share no code with the readers. Each gives the tensors of one weight under the names that the format uses, and the
values that these tensors stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Quantised:
    """The tensors of one weight, and the float32 values that they stand for."""

    tensors: Tensors
    values: np.ndarray


@dataclass(frozen=True)
class Format:
    """How one weight [out, in] becomes tensors, and what config.json says about it.

    Attributes:
        title: for tables.
        dtype: what specdiag calls it.
        quantise: from the name of the module, without `.weight`, and its weight.
        config: of config.json.
    """

    title: str
    dtype: str
    quantise: Callable[[str, np.ndarray], Quantised]
    config: Mapping[str, Any] = field(default_factory=dict)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / 12
FP4 = np.concatenate([_FP4, -_FP4])
"""bitsandbytes' own order of an E2M1 of its own."""


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis, lowest bit first, into int32 words; zero bits fill the last one."""
    ones = (codes.astype(np.int64)[..., None] >> np.arange(bits)) & 1
    ones = ones.reshape(*codes.shape[:-1], -1)
    ones = np.pad(ones, [(0, 0)] * (codes.ndim - 1) + [(0, -ones.shape[-1] % 32)])
    words = ones.reshape(*codes.shape[:-1], -1, 32) << np.arange(32)
    return words.sum(axis=-1).astype(np.uint32).view(np.int32)


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The codes of the entries of `table` that lie nearest."""
    order = np.argsort(table, kind="stable")
    rising = table[order]
    return order[np.searchsorted((rising[1:] + rising[:-1]) / 2, values)]


def nibbles(codes: np.ndarray, *, high_first: bool = False) -> np.ndarray:
    first, second = codes[..., 0::2], codes[..., 1::2]
    return (first << 4 | second if high_first else first | second << 4).astype(np.uint8)


def grouped(w: np.ndarray, group: int) -> np.ndarray:
    return w.reshape(*w.shape[:-1], -1, group).astype(np.float32)


def half(scales: np.ndarray) -> np.ndarray:
    """Rounded to float16, which these formats store."""
    return scales.astype(np.float16).astype(np.float32)


def symmetric(w: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes from -2^(bits-1) and scales [out, groups]: 2 absmax / (2^bits - 1), as GPTQ and compressed-tensors take it."""
    g = grouped(w, group)
    scales = half(2 * np.abs(g).max(axis=-1) / (2**bits - 1))
    codes = np.clip(np.rint(g / scales[..., None]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return codes.reshape(w.shape).astype(np.int64), scales


def affine(w: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes from 0, scales and zeros [out, groups] over a range that holds 0, as AWQ and GPTQ without `sym` take it."""
    g = grouped(w, group)
    low, high = np.minimum(g.min(axis=-1), 0), np.maximum(g.max(axis=-1), 0)
    scales = half((high - low) / (2**bits - 1))
    zeros = np.clip(np.rint(-low / scales), 0, 2**bits - 1)
    codes = np.clip(np.rint(g / scales[..., None]) + zeros[..., None], 0, 2**bits - 1)
    return codes.reshape(w.shape).astype(np.int64), scales, zeros.astype(np.int64)


def spread(by_group: np.ndarray, group: int) -> np.ndarray:
    return np.repeat(by_group, group, axis=-1).astype(np.float32)


def tensor(values: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
    held = torch.from_numpy(np.ascontiguousarray(values))
    return held if dtype is None else held.to(dtype)


# fp8


def fp8(kind: torch.dtype, scale: str, block: Callable[[np.ndarray], tuple[int, int]]) -> Callable[..., Quantised]:
    def quantise(stem: str, w: np.ndarray) -> Quantised:
        rows, cols = block(w)
        top = torch.finfo(kind).max
        scales = np.empty((-(-w.shape[0] // rows), -(-w.shape[1] // cols)), np.float32)
        whole = np.empty_like(w)
        for i, j in np.ndindex(*scales.shape):
            part = np.s_[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
            scales[i, j] = np.abs(w[part]).max() / top
            whole[part] = scales[i, j]
        codes = tensor(w / whole).to(kind)
        held = scales.reshape(()) if scales.size == 1 else scales
        return Quantised({f"{stem}.weight": codes, f"{stem}.{scale}": tensor(held)}, codes.float().numpy() * whole)

    return quantise


def plain_fp8(stem: str, w: np.ndarray) -> Quantised:
    codes = tensor(w).to(torch.float8_e4m3fn)
    return Quantised({f"{stem}.weight": codes}, codes.float().numpy())


def mxfp8(stem: str, w: np.ndarray) -> Quantised:
    g = grouped(w, 32)
    exponents = np.floor(np.log2(np.abs(g).max(axis=-1))) - 8
    whole = spread(2.0**exponents, 32)
    codes = tensor(np.clip(w / whole, -448, 448)).to(torch.float8_e4m3fn)
    tensors = {f"{stem}.weight": codes, f"{stem}.weight_scale": tensor((exponents + 127).astype(np.uint8))}
    return Quantised(tensors, codes.float().numpy() * whole)


# int8


def int8(stem: str, w: np.ndarray) -> Quantised:
    scales = (np.abs(w).max(axis=1, keepdims=True) / 127).astype(np.float32)
    codes = np.rint(w / scales).astype(np.int8)
    return Quantised({f"{stem}.weight": tensor(codes), f"{stem}.weight_scale": tensor(scales)}, codes * scales)


def int8_zero_point(stem: str, w: np.ndarray) -> Quantised:
    codes, scales, zeros = affine(w, 8, w.shape[1])
    tensors = {
        f"{stem}.weight": tensor((codes - 128).astype(np.int8)),
        f"{stem}.weight_scale": tensor(scales),
        f"{stem}.weight_zero_point": tensor((zeros - 128).astype(np.int8)),
    }
    return Quantised(tensors, (codes - zeros).astype(np.float32) * scales)


def int8_qweight(stem: str, w: np.ndarray) -> Quantised:
    found = int8("x", w).tensors
    codes, scales = found["x.weight"], found["x.weight_scale"]
    tensors = {f"{stem}.weight.qweight": codes, f"{stem}.weight.scale": scales}
    return Quantised(tensors, codes.float().numpy() * scales.numpy())


def int8_bitsandbytes(stem: str, w: np.ndarray) -> Quantised:
    top = np.abs(w).max(axis=1).astype(np.float32)
    codes = np.rint(w * (127 / top[:, None])).astype(np.int8)
    tensors = {
        f"{stem}.weight": tensor(codes),
        f"{stem}.SCB": tensor(top),
        f"{stem}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return Quantised(tensors, codes * top[:, None] / 127)


# GPTQ and AWQ


def gptq(bits: int, group: int, *, sym: bool, v2: bool = False, act_order: bool = False) -> Callable[..., Quantised]:
    def quantise(stem: str, w: np.ndarray) -> Quantised:
        inputs = np.random.default_rng(0).permutation(w.shape[1]) if act_order else np.arange(w.shape[1])
        turned = w[:, inputs]
        if sym:
            codes, scales = symmetric(turned, bits, group)
            codes, zeros = codes + 2 ** (bits - 1), np.full(scales.shape, 2 ** (bits - 1))
        else:
            codes, scales, zeros = affine(turned, bits, group)
        values, back = (codes - spread(zeros, group)) * spread(scales, group), np.argsort(inputs)
        stored = zeros if v2 else (zeros - 1) % 2**bits
        tensors = {
            f"{stem}.qweight": tensor(pack(codes[:, back], bits).T),
            f"{stem}.qzeros": tensor(pack(stored.T, bits)),
            f"{stem}.scales": tensor(scales.T, torch.float16),
            f"{stem}.g_idx": tensor((back // group).astype(np.int32)),
        }
        return Quantised(tensors, values[:, back].astype(np.float32))

    return quantise


def awq(stem: str, w: np.ndarray) -> Quantised:
    codes, scales, zeros = affine(w, 4, 128)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # output 2 of each eight comes second

    def words(by_input: np.ndarray) -> torch.Tensor:
        return tensor(pack(by_input.reshape(len(by_input), -1, 8)[:, :, order].reshape(len(by_input), -1), 4))

    tensors = {
        f"{stem}.qweight": words(codes.T),
        f"{stem}.qzeros": words(zeros.T),
        f"{stem}.scales": tensor(scales.T, torch.float16),
    }
    return Quantised(tensors, (codes - spread(zeros, 128)) * spread(scales, 128))


# bitsandbytes, 4-bit


def bnb(kind: str, *, nested: bool = False, storage: torch.dtype = torch.uint8) -> Callable[..., Quantised]:
    table = {"nf4": NF4, "fp4": FP4}[kind]

    def quantise(stem: str, w: np.ndarray) -> Quantised:
        g = grouped(w.reshape(-1), 64)
        absmax = np.abs(g).max(axis=-1)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": list(w.shape)}
        prefix = f"{stem}.weight"
        parts: Tensors = {f"{prefix}.absmax": tensor(absmax)}
        if nested:
            offset = float(absmax.mean())
            levels = np.linspace(-1, 1, 256, dtype=np.float32)
            tops = np.array([np.abs(b - offset).max() for b in np.array_split(absmax, range(256, len(absmax), 256))])
            tops = tops.astype(np.float32)
            own = np.repeat(tops, 256)[: len(absmax)]
            places = nearest((absmax - offset) / own, levels).astype(np.uint8)
            absmax = levels[places] * own + np.float32(offset)
            parts = {
                f"{prefix}.absmax": tensor(places),
                f"{prefix}.nested_absmax": tensor(tops),
                f"{prefix}.nested_quant_map": tensor(levels),
            }
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        codes = nearest(g / absmax[:, None], table)
        said = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
        tensors = {
            prefix: tensor(nibbles(codes.reshape(-1), high_first=True)).view(storage).reshape(-1, 1),
            **parts,
            f"{prefix}.quant_map": tensor(table.copy()),
            f"{prefix}.quant_state.bitsandbytes__{kind}": tensor(said),
        }
        return Quantised(tensors, (table[codes] * absmax[:, None]).reshape(w.shape))

    return quantise


# fp4


def mxfp4(codes_name: str, scale_name: str) -> Callable[..., Quantised]:
    def quantise(stem: str, w: np.ndarray) -> Quantised:
        g = grouped(w, 32)
        exponents = np.floor(np.log2(np.abs(g).max(axis=-1))) - 2
        codes = nearest(g / (2.0**exponents)[..., None], E2M1).reshape(w.shape)
        tensors = {
            f"{stem}.{codes_name}": tensor(nibbles(codes)),
            f"{stem}.{scale_name}": tensor((exponents + 127).astype(np.uint8)),
        }
        return Quantised(tensors, E2M1[codes] * spread(2.0**exponents, 32))

    return quantise


def gpt_oss(stem: str, w: np.ndarray) -> Quantised:
    """A stack [experts, out, in], whose parameter is [experts, in, out]."""
    found = mxfp4("codes", "scale")("x", w)
    blocks = found.tensors["x.codes"].reshape(*w.shape[:2], -1, 16)
    tensors = {f"{stem}_blocks": blocks, f"{stem}_scales": found.tensors["x.scale"]}
    return Quantised(tensors, found.values.transpose(0, 2, 1))


def nvfp4(*, compressed: bool) -> Callable[..., Quantised]:
    def quantise(stem: str, w: np.ndarray) -> Quantised:
        g = grouped(w, 16)
        one = np.float32(np.abs(w).max() / (6 * 448))
        scales = tensor(np.abs(g).max(axis=-1) / 6 / one).to(torch.float8_e4m3fn)
        if compressed:
            one = np.float32(1) / (np.float32(1) / one)
            factors = scales.float().numpy() / (np.float32(1) / one)
        else:
            factors = scales.float().numpy() * one
        codes = nearest(g / np.maximum(factors, 1e-30)[..., None], E2M1).reshape(w.shape)
        names = ("weight_packed", "weight_global_scale") if compressed else ("weight", "weight_scale_2")
        tensors = {
            f"{stem}.{names[0]}": tensor(nibbles(codes)),
            f"{stem}.weight_scale": scales,
            f"{stem}.{names[1]}": torch.tensor([1 / one] if compressed else one, dtype=torch.float32),
        }
        return Quantised(tensors, E2M1[codes] * spread(factors, 16))

    return quantise


# compressed-tensors and MLX


def compressed(bits: int, group: int, *, zero_point: bool = False) -> Callable[..., Quantised]:
    def quantise(stem: str, w: np.ndarray) -> Quantised:
        size = group or w.shape[1]
        if zero_point:
            codes, scales, zeros = affine(w, bits, size)
            more = {f"{stem}.weight_zero_point": tensor(pack(zeros.T, bits).T)}
        else:
            codes, scales = symmetric(w, bits, size)
            codes, more, zeros = codes + 2 ** (bits - 1), {}, np.full(scales.shape, 2 ** (bits - 1))
        tensors = {
            f"{stem}.weight_packed": tensor(pack(codes, bits)),
            f"{stem}.weight_scale": tensor(scales, torch.float16),
            f"{stem}.weight_shape": torch.tensor(w.shape),
            **more,
        }
        return Quantised(tensors, (codes - spread(zeros, size)) * spread(scales, size))

    return quantise


def mlx(bits: int, group: int) -> Callable[..., Quantised]:
    """MLX's own choice of scale and bias: the end of the range that is further from 0 is met exactly."""

    def quantise(stem: str, w: np.ndarray) -> Quantised:
        g = grouped(w, group)
        low, high = g.min(axis=-1), g.max(axis=-1)
        below = np.abs(low) > np.abs(high)
        scales = np.maximum((high - low) / (2**bits - 1), 1e-7) * np.where(below, 1, -1)
        edge = np.where(below, low, high)
        steps = np.rint(edge / scales)
        scales = half(np.where(steps == 0, scales, edge / np.where(steps == 0, 1, steps)))
        biases = half(np.where(steps == 0, 0, edge))
        codes = np.clip(np.rint((g - biases[..., None]) / scales[..., None]), 0, 2**bits - 1).reshape(w.shape)
        tensors = {
            f"{stem}.weight": tensor(pack(codes, bits).view(np.uint32)),
            f"{stem}.scales": tensor(scales, torch.float16),
            f"{stem}.biases": tensor(biases, torch.float16),
        }
        return Quantised(tensors, codes.astype(np.float32) * spread(scales, group) + spread(biases, group))

    return quantise


def _gptq_config(bits: int, group: int, sym: bool, form: str = "gptq") -> dict[str, Any]:
    said = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "checkpoint_format": form}
    return {"quantization_config": said}


_FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
_AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}}
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2

FORMATS: dict[str, Format] = {
    "fp8-tensor": Format("fp8 E4M3, one scale", "F8_E4M3", fp8(_E4M3, "weight_scale", lambda w: w.shape)),
    "fp8-channel": Format("fp8 E4M3, by row", "F8_E4M3", fp8(_E4M3, "weight_scale", lambda w: (1, w.shape[1]))),
    "fp8-block": Format(
        "fp8 E4M3, blocks 128x128", "F8_E4M3", fp8(_E4M3, "weight_scale_inv", lambda w: (128, 128)), _FP8
    ),
    "fp8-e5m2": Format("fp8 E5M2, one scale", "F8_E5M2", fp8(_E5M2, "scale_weight", lambda w: w.shape)),
    "mxfp8": Format("mxfp8", "F8_E4M3", mxfp8),
    "int8": Format("int8, by row", "int8", int8),
    "int8-bnb": Format("bitsandbytes int8", "int8", int8_bitsandbytes),
    "gptq8": Format("GPTQ 8 bits, 128", "gptq-int8", gptq(8, 128, sym=True), _gptq_config(8, 128, True)),
    "gptq4": Format("GPTQ 4 bits, 128", "gptq-int4", gptq(4, 128, sym=True), _gptq_config(4, 128, True)),
    "gptq3": Format("GPTQ 3 bits, 128", "gptq-int3", gptq(3, 128, sym=True), _gptq_config(3, 128, True)),
    "gptq2": Format("GPTQ 2 bits, 64", "gptq-int2", gptq(2, 64, sym=False), _gptq_config(2, 64, False)),
    "awq4": Format("AWQ 4 bits, 128", "awq-int4", awq, _AWQ),
    "ct4": Format("compressed-tensors 4 bits, by row", "int4", compressed(4, 0)),
    "mlx6": Format("MLX 6 bits, 64", "mlx-int6", mlx(6, 64), {"quantization": {"group_size": 64, "bits": 6}}),
    "mlx4": Format("MLX 4 bits, 64", "mlx-int4", mlx(4, 64), {"quantization": {"group_size": 64, "bits": 4}}),
    "nf4": Format("bitsandbytes nf4, 64", "nf4", bnb("nf4")),
    "fp4": Format("bitsandbytes fp4, 64", "fp4", bnb("fp4")),
    "nvfp4": Format("nvfp4", "nvfp4", nvfp4(compressed=False)),
    "mxfp4": Format("mxfp4", "mxfp4", mxfp4("weight_packed", "weight_scale")),
}
"""The formats of the table in docs/quantisation.md."""

VARIANTS: dict[str, Format] = {
    "fp8-plain": Format("fp8 without scales", "F8_E4M3", plain_fp8),
    "fp8-unsaid-blocks": Format("fp8", "F8_E4M3", fp8(_E4M3, "weight_scale_inv", lambda w: (128, 128))),
    "fp8-deepseek-names": Format("fp8", "F8_E4M3", fp8(_E4M3, "scale", lambda w: (128, 128))),
    "fp8-mistral-names": Format("fp8", "F8_E4M3", fp8(_E4M3, "qscale_weight", lambda w: w.shape)),
    "int8-qweight": Format("int8", "int8", int8_qweight),
    "int8-zero-point": Format("int8", "int8", int8_zero_point),
    "gptq4-v2": Format("GPTQ", "gptq-int4", gptq(4, 128, sym=False, v2=True), _gptq_config(4, 128, False, "gptq_v2")),
    "gptq4-act-order": Format("GPTQ", "gptq-int4", gptq(4, 64, sym=True, act_order=True), _gptq_config(4, 64, True)),
    "gptq3-v2": Format("GPTQ", "gptq-int3", gptq(3, 64, sym=False, v2=True), _gptq_config(3, 64, False, "gptq_v2")),
    "gptq4-unsaid": Format("GPTQ", "gptq-int4", gptq(4, 64, sym=True)),
    "awq4-unsaid": Format("AWQ", "awq-int4", awq),
    "nf4-nested": Format("nf4", "nf4", bnb("nf4", nested=True)),
    "nf4-bf16-storage": Format("nf4", "nf4", bnb("nf4", storage=torch.bfloat16)),
    "nvfp4-compressed": Format("nvfp4", "nvfp4", nvfp4(compressed=True)),
    "mxfp4-quark": Format("mxfp4", "mxfp4", mxfp4("weight", "weight_scale")),
    "ct8": Format("compressed-tensors", "int8", compressed(8, 128)),
    "ct4-zero-point": Format("compressed-tensors", "int4", compressed(4, 128, zero_point=True)),
    "ct3": Format("compressed-tensors", "int3", compressed(3, 128)),
    "mlx3": Format("MLX", "mlx-int3", mlx(3, 32), {"quantization": {"group_size": 32, "bits": 3}}),
    "mlx-layer": Format(
        "MLX",
        "mlx-int8",
        mlx(8, 32),
        {"quantization": {"group_size": 64, "bits": 4, "layers.0.self_attn.q_proj": {"group_size": 32, "bits": 8}}},
    ),
}
"""Other ways of writing them, read but not in the table."""
