"""Adapters of a head or a token embedding that are one tensor: what PEFT 0.21.2 writes and merges, made by hand.

There the logits of the merged model and of the base with its adapter differ by .4, as PEFT warns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_files import LORA, lora, write
from merged_models import CONFIG, base_state
from models import Arrays, write_checkpoint

import specdiag
from specdiag.errors import SourceError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q = "model.layers.0.self_attn.q_proj"
TIED = CONFIG | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}


def tied_base() -> Arrays:
    state = {name: value for name, value in base_state().items() if name != HEAD}
    return {name: value.astype("f4") for name, value in state.items()}


def of_head(table: np.ndarray) -> Arrays:
    """PEFT writes the table of an adapted head, or embedding, beside its factors."""
    return {"base_model.model.lm_head.base_layer.weight": table} | lora("lm_head", *table.shape)


def of_embedding(table: np.ndarray) -> Arrays:
    name = "base_model.model.model.embed_tokens"
    factors = lora("lm_head", *table.shape)
    down, up = (factors[f"base_model.model.lm_head.lora_{x}.weight"] for x in "AB")
    return {f"{name}.base_layer.weight": table, f"{name}.lora_embedding_A": up.T, f"{name}.lora_embedding_B": down.T}


def update(adapter: Arrays, module: str) -> np.ndarray:
    return 2.0 * (
        adapter[f"base_model.model.{module}.lora_B.weight"] @ adapter[f"base_model.model.{module}.lora_A.weight"]
    )


@pytest.fixture
def parts(tmp_path: Path):
    state = tied_base()
    pair = lora(Q, *state[f"{Q}.weight"].shape, seed=3)
    merged = dict(state)
    merged[f"{Q}.weight"] = state[f"{Q}.weight"] + update(pair, Q)
    base = write_checkpoint(tmp_path / "base", state, TIED)

    def verify(adapter: Arrays, **changed: np.ndarray) -> specdiag.Verification:
        model = merged | {{"embed": EMBED, "head": HEAD}[name]: value for name, value in changed.items()}
        config = TIED | {"tie_word_embeddings": HEAD not in model}
        place = write_checkpoint(tmp_path / "merged", {n: v.astype("f4") for n, v in model.items()}, config)
        return specdiag.verify(base, write(tmp_path / "adapter", pair | adapter, LORA), place)

    return state[EMBED], verify


def test_a_head_merged_into_its_own_tensor_is_right_and_into_the_shared_one_is_named(parts) -> None:
    table, verify = parts
    adapter = of_head(table)
    delta = update(adapter, "lm_head")
    found = verify(adapter, head=table + delta)
    assert found.verdict == "verified", found.reason
    found = verify(adapter, embed=table + delta)
    assert [(f.name, f.cause) for f in found.faults] == [(EMBED, "tied table")]
    assert found.faults[0].detail.startswith(f"the update of {HEAD} was added to it, so that the tokens")
    found = verify(adapter)
    assert [(f.name, f.cause) for f in found.faults] == [(HEAD, "missing")], "the update of the head is nowhere"


def test_an_embedding_merged_into_the_shared_tensor_is_named(parts) -> None:
    table, verify = parts
    adapter = of_embedding(table)
    delta = update(of_head(table), "lm_head")
    found = verify(adapter, embed=table + delta, head=table)
    assert found.verdict == "verified", found.reason
    found = verify(adapter, embed=table + delta)
    assert [(f.name, f.cause) for f in found.faults] == [(EMBED, "tied table")]
    assert found.faults[0].detail.startswith("its head is this tensor too")


def test_two_updates_of_one_table_are_named_where_both_were_added(parts) -> None:
    table, verify = parts
    adapter = of_head(table) | of_embedding(table)
    delta = update(adapter, "lm_head")
    assert verify(adapter, embed=table + delta).verdict == "verified", "tied factors: one update for both"
    found = verify(adapter, embed=table + 2 * delta)
    assert [(f.name, f.cause, f.detail) for f in found.faults] == [
        (EMBED, "tied table", f"the updates of {EMBED} and {HEAD} were both added to it")
    ]
    found = verify(adapter, embed=table + 3 * delta)
    assert [f.cause for f in found.faults if f.name == EMBED] == ["wrong scale"]


def test_a_head_without_the_table_that_it_adapts_is_refused_by_name(tmp_path: Path, parts) -> None:
    table, verify = parts
    found = verify(lora("lm_head", *table.shape))
    assert "PEFT: save_embedding_layers=True" in next(f.reason for f in found.faults if f.cause == "module missing")
    with pytest.raises(SourceError, match="where the head is tied to the token embedding, save the adapter with that"):
        specdiag.audit(tmp_path / "adapter", base=tmp_path / "base", device="cpu")


def test_an_audit_of_such_an_adapter_says_nothing_of_ties(tmp_path: Path) -> None:
    state = tied_base()
    base = write_checkpoint(tmp_path / "base", state, TIED)
    adapter = write(tmp_path / "adapter", of_head(state[EMBED]), LORA | {"target_modules": ["lm_head"]})
    audit = specdiag.audit(adapter, base=base, device="cpu")
    assert "tied" not in {f.check for f in audit.findings}
    assert audit.coverage.not_checked["tied"] == "an adapter may change one of the two alone"
