"""The wiring of an architecture that is not listed, in the user's role map."""

import pytest
import torch
from command import outcome
from models import write_checkpoint
from safetensors.torch import save_file
from wired_models import HEADS, random_model

import specdiag

LLAMA = """
norm = "rms"
attn_in = "input_layernorm"
mlp_in = "post_attention_layernorm"
rope = "half"
"""
NOVEL = {
    "self_attn.q_proj": "mix.a", "self_attn.k_proj": "mix.b", "self_attn.v_proj": "mix.c", "self_attn.o_proj": "mix.d",
    "mlp.gate_proj": "wide.e", "mlp.up_proj": "wide.f", "mlp.down_proj": "wide.g", "input_layernorm": "first",
    "post_attention_layernorm": "second",
}  # fmt: skip
RULES = "".join(
    f'[[rule]]\npattern = "model.layers.*.{name}.weight"\nrole = "{role}"\n'
    for name, role in (("mix.a", "q"), ("mix.b", "k"), ("mix.c", "v"), ("mix.d", "o"), ("wide.e", "gate"),
                       ("wide.f", "up"), ("wide.g", "down"))
)  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return random_model("llama")


def numbers(report):
    rows = [*report.function, *(r for r in report if r.gauge_shift is not None)]
    return [(r.layer, r.role, r.head, r.alpha, r.stable_rank, r.spectral_norm, r.gauge_shift) for r in rows]


def test_an_unknown_model_type_in_known_names(llama, tmp_path):
    state = {k: v.float() for k, v in llama.state_dict().items()}
    known = write_checkpoint(tmp_path / "known", state, llama.config.to_dict())
    novel = write_checkpoint(tmp_path / "novel", state, llama.config.to_dict() | {"model_type": "novel"})
    roles = tmp_path / "roles.toml"
    roles.write_text(f"[[wiring]]{LLAMA}")
    expected = specdiag.analyze(known, function=True, device="cpu")
    assert expected.function
    assert not specdiag.analyze(novel, function=True, device="cpu").function
    found = specdiag.analyze(novel, function=True, role_map=roles, device="cpu")
    assert numbers(found) == numbers(expected)
    assert not [note for note in found.provenance.notes if "iring" in note]


def test_unknown_names_without_a_config(llama, tmp_path):
    state = {}
    for name, value in llama.state_dict().items():
        for old, new in NOVEL.items():
            name = name.replace(old, new)
        state[name] = value.float()
    save_file(state, tmp_path / "model.safetensors")
    roles = tmp_path / "roles.toml"
    wiring = LLAMA.replace("input_layernorm", "first").replace("post_attention_layernorm", "second")
    roles.write_text(f"{RULES}[[wiring]]{wiring}heads = {HEADS}\n")
    expected = specdiag.analyze({k: v.float() for k, v in llama.state_dict().items()}, device="cpu")
    found = specdiag.analyze(tmp_path, function=True, role_map=roles, device="cpu")
    assert len(found.function) == 2 * (2 * HEADS + 2), found.provenance.notes
    assert [r.alpha for r in found] == [r.alpha for r in expected]
    whole = specdiag.analyze(llama.float(), function=True, device="cpu")
    llama.double()
    by_key = {(r.layer, r.role, r.head): r.stable_rank for r in found.function}
    assert by_key == {(r.layer, r.role, r.head): r.stable_rank for r in whole.function}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('rope = "half"', None),
        ('attn_in = "post_attention_layernorm.x"', "a norm input_layernorm, which its wiring does not name"),
        ("heads = 7", "its shapes are not those of 7 heads"),
        ("rotary = 0.2", "heads of 16 rows with rotary 0.2 cannot be cut into rotary planes"),
    ],
)
def test_what_contradicts_the_tensors_is_left_out(llama, tmp_path, change, said):
    state = {k: v.float() for k, v in llama.state_dict().items()}
    novel = write_checkpoint(tmp_path / "novel", state, llama.config.to_dict() | {"model_type": "novel"})
    roles = tmp_path / "roles.toml"
    key = change.partition(" ")[0]
    kept = "".join(line for line in LLAMA.splitlines(keepends=True) if not line.startswith(f"{key} ="))
    roles.write_text(f"[[wiring]]{kept}{change}\n")
    report = specdiag.analyze(novel, function=True, role_map=roles, device="cpu")
    assert said is None or any(said in note for note in report.provenance.notes), report.provenance.notes
    assert ("qk" in {r.role for r in report.function}) == (said is None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[wiring]]\n", "missing required field `norm`"),
        ("[[wiring]]\nnorm = 'batch'\n", "Invalid enum value 'batch'"),
        ("[[wiring]]\nnorm = 'rms'\nrope = 'spiral'\n", "Invalid enum value 'spiral'"),
        ("[[wiring]]\nnorm = 'rms'\nnorm_in = 'x'\n", "contains unknown field `norm_in`"),
        ("[[wiring]]\nnorm = 'rms'\nattn_in = '../../x'\n", "matching regex"),
        ("[[wiring]]\nnorm = 'rms'\nattn_in = '\\u001b[2J'\n", "matching regex"),
        ("[[wiring]]\nnorm = 'rms'\nattn_in = '" + "x" * 10_000 + "'\n", "matching regex"),
        ("[[wiring]]\nnorm = 'rms'\nheads = 0\n", ">= 1"),
        ("[[wiring]]\nnorm = 'rms'\nheads = 99999999999999999999\n", "wiring"),
        ("[[wiring]]\nnorm = 'rms'\nheads = true\n", "Expected `int"),
        ("[[wiring]]\nnorm = 'rms'\nrope = 'half'\nrotary = -1.0\n", "> 0"),
        ("[[wiring]]\nnorm = 'rms'\nrope = 'half'\nrotary = nan\n", "wiring"),
        ("[[wiring]]\nnorm = 'rms'\nrotary = 0.5\n", "rotary needs rope"),
        ("[[wiring]]\nnorm = 'rms'\nq_norm = 'q'\n", "q_norm and k_norm belong together"),
        ("[[wiring]]\nnorm = 'layer'\nstream = 'post'\nmlp_in = 'x'\n", "leave out mlp_in"),
        ("wiring = 3\n", "Expected `array"),
        ("x" + ".x" * 300 + " = 1\n", "more than 200 dots"),
        ("", "holds neither a [[rule]] nor a [[wiring]]"),
        ("[[wiring]\n", "not valid"),
    ],
)
@pytest.mark.parametrize("verb", ["analyze", "audit"])
def test_no_file_is_half_read(llama, tmp_path, text, said, verb):
    folder = tmp_path / "model"
    write_checkpoint(folder, {k: v.float() for k, v in llama.state_dict().items()}, llama.config.to_dict())
    roles = tmp_path / "roles.toml"
    roles.write_text(text)
    code, out, err = outcome(verb, folder, "--role-map", roles, width=400)
    assert code == 2, err
    assert not out
    assert "Traceback" not in err
    assert "\x1b[2J" not in err
    assert said in " ".join(err.split()), err
    assert len(err) < 4000
    with pytest.raises(specdiag.UsageError):
        specdiag.analyze({"a.weight": torch.ones(2, 2)}, role_map=roles, device="cpu")
