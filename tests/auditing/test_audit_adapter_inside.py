"""LoRA factors in the weights of a whole model: no loader applies them."""

from __future__ import annotations

from adapter_files import LORA, lora, write
from audited_models import CONFIG, WIDTH, found, llama, name, save

import specdiag

PLACE = name(3, "self_attn.q_proj").removesuffix(".weight")


def factors() -> dict:
    return {key.removeprefix("base_model.model."): value for key, value in lora(PLACE, WIDTH, WIDTH).items()}


def test_factors_beside_the_weights_of_a_model_fail(tmp_path):
    audit = specdiag.audit(save(tmp_path / "both", llama() | factors()), device="cpu")
    assert ("adapter_inside", f"{PLACE}.weight") in found(audit)
    assert audit.verdict == "fail"
    assert next(f.value for f in audit.findings if f.check == "adapter_inside").startswith("1 update beside")
    inner = {key.replace(f"{PLACE}.weight", f"{PLACE}.base_layer.weight"): v for key, v in llama().items()}
    audit = specdiag.audit(save(tmp_path / "live", inner | factors()), device="cpu")
    assert ("adapter_inside", f"{PLACE}.weight") in found(audit), "as a model with its adapter in memory is named"


def test_an_adapter_that_brings_a_table_along_is_none(tmp_path):
    table = llama()["model.embed_tokens.weight"]
    of_table = {"base_model.model.lm_head.base_layer.weight": table} | lora("lm_head", *table.shape)
    write(tmp_path, of_table, LORA | {"target_modules": ["lm_head"]})
    assert "adapter_inside" not in {check for check, _ in found(specdiag.audit(tmp_path, device="cpu"))}
    assert "adapter_inside" not in {
        check for check, _ in found(specdiag.audit(save(tmp_path / "plain", llama(), CONFIG), device="cpu"))
    }
