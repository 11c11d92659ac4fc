"""Quantised files written exactly, by hand from the sources that the docstrings name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quantised_files import I8, QUERY, STEM, nf4_of, opened, weight, written
from quantisers import E2M1, FORMATS, pack
from read_back import values

from specdiag.checkpoint.quantised.codes import FLOAT8
from specdiag.checkpoint.reader import open_checkpoint


def test_the_order_of_awq() -> None:
    """Eight codes of a word, from the lowest: outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    word = torch.tensor([[0x75316420]], dtype=torch.int32).expand(8, 1).contiguous()
    tensors = {f"{STEM}.qweight": word, f"{STEM}.qzeros": torch.zeros(1, 1, dtype=torch.int32)}
    checkpoint = opened(tensors | {f"{STEM}.scales": torch.full((1, 8), 2.0)})
    assert np.array_equal(values(checkpoint, QUERY), np.tile(2.0 * np.arange(8)[:, None], 8))


def test_the_zeros_of_both_gptq_versions() -> None:
    """0x77777777 stands for 8 in the first version and for 7 in the second; the codes are 0 to 7 down a column."""
    stored = {
        f"{STEM}.qweight": torch.tensor([[0x76543210, 0x76543210]], dtype=torch.int32).repeat(1, 4),
        f"{STEM}.qzeros": torch.tensor([[0x77777777]], dtype=torch.int32),
        f"{STEM}.scales": torch.ones(1, 8, dtype=torch.float16),
    }
    said = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    for form, zero in (("gptq", 8), ("gptq_v2", 7), (None, 8)):
        config = {"quantization_config": said | ({"checkpoint_format": form} if form else {})}
        assert np.array_equal(values(opened(stored, config), QUERY), np.tile(np.arange(8.0) - zero, (8, 1)))


def test_three_bits_cross_words() -> None:
    """Code 10 of GPTQ's 32 has two bits in the first word and one in the second: 0b101 is 0b01 << 30 and 0b1."""
    words = pack(np.array([[0] * 10 + [5] + [0] * 21]), 3)
    assert [int(w) & 0xFFFFFFFF for w in words[0]] == [1 << 30, 1, 0]


def test_e2m1_and_nf4_halves() -> None:
    """The low half comes first in mxfp4, the high half in bitsandbytes."""
    byte = torch.full((2, 16), 0x72, dtype=torch.uint8)
    checkpoint = opened({QUERY: byte, f"{QUERY}_scale": torch.full((2, 1), 128, dtype=torch.uint8)})
    assert values(checkpoint, QUERY)[0, :2].tolist() == [2 * 1.0, 2 * 6.0]
    assert (E2M1[2], E2M1[7]) == (1, 6)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 2]}
    tensors = nf4_of(state) | {QUERY: torch.tensor([[0x0F], [0x70]], dtype=torch.uint8)}
    assert values(opened(tensors), QUERY).tolist() == [[-2, 2], [0, -2]]


@pytest.mark.parametrize(("name", "kind"), [
    ("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2), ("F8_E4M3FNUZ", torch.float8_e4m3fnuz),
    ("F8_E5M2FNUZ", torch.float8_e5m2fnuz), ("F8_E8M0", torch.float8_e8m0fnu),
])  # fmt: skip
def test_every_code_of_fp8(name: str, kind: torch.dtype) -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(kind).float().numpy()
    assert np.array_equal(FLOAT8[name], expected, equal_nan=True)


def test_int8_by_groups_that_a_configuration_knows() -> None:
    codes, scales = torch.arange(-64, 64, dtype=I8).reshape(2, 64), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    said = {"config_groups": {"a": {"weights": {"num_bits": 8}}}}
    checkpoint = opened({QUERY: codes, f"{QUERY}_scale": scales}, {"quantization_config": said})
    assert np.array_equal(values(checkpoint, QUERY), codes * scales.repeat_interleave(32, 1))


def test_layers_of_other_bits_than_the_configuration_says() -> None:
    """GPTQModel writes exceptions as patterns; the shapes know."""
    form = FORMATS["gptq8"]
    tensors = form.quantise(STEM, weight()).tensors
    (matrix,) = opened(tensors, FORMATS["gptq4"].config).matrices
    assert matrix.storage_dtype == "gptq-int8"
    assert np.array_equal(matrix.tensor.read(None), form.quantise(STEM, weight()).values)


def test_fp8_blocks_of_a_size_that_does_not_divide(tmp_path: Path) -> None:
    w, scales = torch.ones(5, 7).to(torch.float8_e4m3fn), torch.arange(1.0, 7).reshape(2, 3)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 3]}}
    folder = written(tmp_path, {QUERY: w, f"{QUERY}_scale_inv": scales}, config)
    expected = scales.repeat_interleave(4, 0)[:5].repeat_interleave(3, 1)[:, :7]
    assert np.array_equal(values(open_checkpoint(folder), QUERY), expected)


def test_two_codes_in_int8() -> None:
    """DeepSeek-V4 keeps fp4 experts as int8 of half the width, with powers of two for each 32."""
    codes = torch.full((4, 32), 0x22, dtype=torch.int8)
    tensors = {
        QUERY: codes,
        f"{QUERY}_scale_inv": torch.full((4, 2), 126, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    }
    checkpoint = opened(tensors)
    assert checkpoint.matrices[0].storage_dtype == "mxfp4"
    assert np.array_equal(values(checkpoint, QUERY), np.full((4, 64), 0.5))
