"""Tables of tokens: planted rows are found and named, trained tables pass, and other tables are left alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from audited_models import CONFIG, llama, save
from command import invoke
from models import EMBED, HEAD

import specdiag

ROWS, WIDTH = 400, 64
PLANTED = tuple(range(300, 330))
TOKENS = ("untrained_tokens", "equal_tokens", "padding_tokens", "missing_tokens")


def table(seed=0):
    """A table as training leaves it: a common mean, a strong first component, and rows of their own."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(WIDTH) + np.outer(rng.standard_normal(ROWS), rng.standard_normal(WIDTH))
    return (values + rng.standard_normal((ROWS, WIDTH))).astype("f4")


def with_untouched(seed=0):
    values = table(seed)
    values[list(PLANTED)] = 0.02 * np.random.default_rng(seed + 1).standard_normal((len(PLANTED), WIDTH))
    return values


def tokenizer(n=ROWS, reserved=(), more=()):
    texts = {(f"<unused{id}>" if id in reserved else f"t{id}"): id for id in range(n)}
    added = [{"id": id, "content": text, "special": True} for id, text in more]
    return {"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": texts, "merges": []}}


def model(folder, values, head=None, tokens=None):
    state = llama(layers=2) | {EMBED: values, HEAD: table(7) if head is None else head}
    save(folder, state, CONFIG | {"num_hidden_layers": 2, "vocab_size": len(values)})
    if tokens is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokens))
    return folder


def of_tokens(audit):
    return {(f.check, f.module): f.value for f in audit.findings if f.check in TOKENS}


@pytest.mark.parametrize("reserved", [PLANTED[:10], ()], ids=["reserved rows known", "densest rows"])
def test_untouched_rows_lead_the_list(tmp_path, reserved):
    folder = model(tmp_path, with_untouched(), tokens=tokenizer(reserved=reserved))
    audit = specdiag.audit(folder, tokens=40, device="cpu")
    embedding, head = audit.tokens
    expected = set(PLANTED) - set(reserved)
    assert (embedding.name, embedding.n_like, embedding.n_reserved) == (EMBED, len(expected), len(reserved))
    assert {row.row for row in embedding.tokens[: len(expected)]} == expected
    assert all(row.text == f"t{row.row}" and row.norm < 0.1 for row in embedding.tokens[: len(expected)])
    assert embedding.reference == ("reserved" if reserved else "densest")
    assert of_tokens(audit)["untrained_tokens", EMBED] == pytest.approx(len(expected) / ROWS)
    assert ("untrained_tokens", HEAD) not in of_tokens(audit)
    assert len(head.tokens) in (0, 40)


def test_a_trained_table_passes(tmp_path):
    audit = specdiag.audit(model(tmp_path, table(), tokens=tokenizer()), tokens=5, device="cpu")
    assert of_tokens(audit) == {}
    assert audit.tokens[0].reference is None
    assert "none looks untrained" in audit.coverage.not_checked["untrained_tokens"]


def test_copies_padding_and_missing_rows(tmp_path):
    values = with_untouched()
    values[20] = values[21] = values[5]
    values[390:] = 0.25
    values[380:390] = 0
    folder = model(tmp_path, values, tokens=tokenizer(390, PLANTED[:10], more=[(1000, "[PAD]"), (2000, "x")]))
    audit = specdiag.audit(folder, tokens=30, device="cpu")
    found = of_tokens(audit)
    assert found[("equal_tokens", EMBED)] == 3
    assert found[("padding_tokens", EMBED)] == 10
    assert found[("missing_tokens", EMBED)] == 2
    assert audit.tokens[0].n_zero == 10
    assert not {row.row for row in audit.tokens[0].tokens} & {*range(380, 400), *PLANTED[:10]}
    assert found["missing_tokens", HEAD] == 2


def test_without_a_tokenizer_equal_rows_at_the_end_are_padding(tmp_path):
    values = table()
    values[350:] = values[350]
    audit = specdiag.audit(model(tmp_path, values), tokens=3, device="cpu")
    assert audit.tokens[0].n_padding == 50
    assert {check for check, module in of_tokens(audit) if module == EMBED} <= {"padding_tokens", "untrained_tokens"}
    assert audit.tokens[0].no_tokenizer == f"no tokenizer.json lies beside the weights of {tmp_path}"
    assert audit.coverage.not_checked["missing_tokens"] == audit.tokens[0].no_tokenizer
    assert all(row.text is None for row in audit.tokens[0].tokens)


def test_a_tied_head_is_looked_at_once(tmp_path):
    values = table()
    audit = specdiag.audit(model(tmp_path, values, head=values, tokens=tokenizer()), tokens=1, device="cpu")
    assert len(audit.tokens) == 1


def test_only_tables_of_tokens_are_looked_at(minilm, rxnfp):
    audit = specdiag.audit(minilm, tokens=1, include="*embeddings*", device="cpu", reference_model=False)
    assert [t.name for t in audit.tokens] == ["embeddings.word_embeddings.weight"]
    assert audit.tokens[0].n_reserved == 994
    state = {"vision.patch_embed.weight": table(), "embeddings.position_embeddings.weight": table()}
    audit = specdiag.audit(state, tokens=1)
    assert audit.tokens == ()
    assert audit.coverage.not_checked["equal_tokens"].startswith("no embedding of tokens")


def test_gguf_names_its_tokens(asset):
    audit = specdiag.audit(asset("smollm2-gguf"), tokens=40, include="token_embd*", device="cpu")
    (found,) = audit.tokens
    texts = [row.text for row in found.tokens]
    assert {"<jupyter_script>", "ĠInstancePreprocess", "<issue_closed>", "MetaInfoClass"} <= set(texts)
    assert found.dequantized
    assert audit.coverage.not_checked["equal_tokens"] == "quantised rows that differ little become equal"
    assert of_tokens(audit) == {}


@pytest.mark.parametrize("size", [1e37, 1e-39, 1e-42])
def test_very_large_and_small_tables_are_scored_as_others(tmp_path, size):
    """Their squares leave float32; no row is zero or infinite for that."""
    values = (with_untouched() * size).astype("f4")
    audit = specdiag.audit(model(tmp_path, values, tokens=tokenizer(reserved=PLANTED[:10])), tokens=3, device="cpu")
    assert (audit.tokens[0].n_zero, audit.tokens[0].no_scores) == (0, None)
    assert of_tokens(audit)["untrained_tokens", EMBED] == pytest.approx(20 / ROWS)
    lost = {f.module for f in audit.findings if f.check == "denormal"}
    assert lost == ({EMBED} if size < 1 else set())


def test_not_asked_for_and_not_there(tmp_path):
    folder = model(tmp_path, table())
    audit = specdiag.audit(folder, device="cpu")
    assert {audit.coverage.not_checked[check] for check in TOKENS} == {"needs tokens="}
    report = specdiag.analyze(folder, device="cpu")
    assert "audit the checkpoint" in specdiag.audit(report).coverage.not_checked["untrained_tokens"]
    with pytest.raises(specdiag.UsageError, match="tokens needs the checkpoint itself"):
        specdiag.audit(report, tokens=3)
    with pytest.raises(specdiag.UsageError, match="tokens=-1"):
        specdiag.audit(folder, tokens=-1)


def test_what_the_command_prints(tmp_path):
    hostile = tokenizer(reserved=PLANTED[:10])
    hostile["model"]["vocab"]["red\x1b[31m|`<b>"] = 320
    del hostile["model"]["vocab"]["t320"]
    folder = model(tmp_path / "model", with_untouched(), tokens=hostile)
    done = invoke("audit", folder, "--tokens", 40, "--role", "embed", width=112)
    assert done.exit_code == 0
    assert "20 rows (5 %) score above 0.5" in done.stdout
    assert r"red\x1b[31m|`<b>" in done.stdout
    assert "\x1b" not in done.stdout
    in_markdown = invoke("audit", folder, "--tokens", 40, "--role", "embed", "-f", "md").stdout
    assert "### tokens" in in_markdown
    assert "<b>" not in in_markdown
    saved = json.loads(invoke("audit", folder, "--tokens", 2, "--role", "embed", "-f", "json").stdout)
    assert [row["row"] in PLANTED for row in saved["tokens"][0]["tokens"]] == [True, True]
    specdiag.analyze(folder, device="cpu").save(tmp_path / "a.specdiag.json")
    done = invoke("audit", tmp_path / "a.specdiag.json", "--tokens", 3)
    assert done.exit_code == 2
    assert "--tokens needs the checkpoint itself" in done.stderr


@pytest.mark.parametrize("format", ["sarif", "junit"])
def test_other_formats_hold_the_findings(tmp_path, format):
    folder = model(tmp_path, with_untouched(), tokens=tokenizer(reserved=PLANTED[:10]))
    options = ["--sarif-location", "models.txt"] if format == "sarif" else []
    done = invoke("audit", folder, "--tokens", 1, "--role", "embed", "-f", format, *options)
    assert "untrained_tokens" in done.stdout
    assert "5 % of the rows resemble untouched ones" in done.stdout
