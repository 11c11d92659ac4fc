"""Settings of adapters that are not what they should be: refused by name, never passed over."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

FACTORS = {
    "base_model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.randn(4, 32),
    "base_model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.randn(32, 4),
}
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def write(folder: Path, **settings: object) -> Path:
    save_file(FACTORS, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fan_in_fan_out": "x"}, "fan_in_fan_out 'x', which is neither true nor false"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out 1, which is neither true nor false"),
        ({"use_rslora": "no"}, "use_rslora 'no', which is neither true nor false"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern \['q_proj'\], which is no object of module names"),
        ({"alpha_pattern": "q_proj"}, "alpha_pattern 'q_proj', which is no object of module names"),
        ({"lora_alpha": None}, "lora_alpha None, which is no number that a scale can be made of"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan, which is no number that a scale can be made of"),
        ({"target_parameters": "experts.w"}, "target_parameters 'experts.w', which is no list of names"),
    ],
)
def test_settings_of_the_wrong_type(tmp_path: Path, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(SourceError, match=f"adapter_config.json says {sentence}"):
        open_checkpoint(write(tmp_path, **settings))


@pytest.mark.parametrize("nothing", [None, False])
def test_settings_that_say_nothing(tmp_path: Path, nothing: object) -> None:
    empty = {} if nothing is None else {"rank_pattern": {}, "alpha_pattern": {}, "target_parameters": []}
    folder = write(tmp_path, fan_in_fan_out=nothing, use_rslora=nothing, **empty)
    assert len(open_checkpoint(folder).matrices) == 1
