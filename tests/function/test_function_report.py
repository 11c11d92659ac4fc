"""The rows of analyze(function=True): against dense products, and under changes of form at random."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch
import transformers
from assets import fetch
from changes_of_form import Changes
from command import outcome
from models import LLAMA, write_checkpoint
from safetensors.torch import load_file
from wired_models import random_model

import specdiag
from specdiag.analysis.source import open_source
from specdiag.function.blocks import find_blocks
from specdiag.spectra.product_null import product_quantiles

WIDTH, HEADS, HEAD_DIM, HIDDEN = 128, 2, 64, 192
LARGER = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": 1, "head_dim": HEAD_DIM,
          "intermediate_size": HIDDEN}  # fmt: skip
LARGER_GPT = {"n_embd": WIDTH, "n_head": HEADS, "n_inner": HIDDEN}
SAME = 1e-6


def hill(sigma):
    """The exponent at tail fraction 1/2 by its formula."""
    eigenvalues = np.sort(sigma) ** 2
    tail = eigenvalues[len(eigenvalues) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


@pytest.fixture(scope="module")
def llama():
    return random_model("llama", **LARGER)


@pytest.fixture(scope="module")
def report(llama):
    return specdiag.analyze(llama, function=True, device="cpu")


def dense(model, layer=0):
    """Every matrix of a layer's function by products in float64."""
    block = model.model.layers[layer]
    with torch.no_grad():
        g, f = block.input_layernorm.weight, block.post_attention_layernorm.weight
        q, k, v = ((getattr(block.self_attn, f"{n}_proj").weight * g).numpy() for n in "qkv")
        o, down = block.self_attn.o_proj.weight.numpy(), block.mlp.down_proj.weight.numpy()
        gate, up = ((getattr(block.mlp, f"{n}_proj").weight * f).numpy() for n in ("gate", "up"))
    found = {"du": down @ up, "gate": gate}
    for head in range(HEADS):
        rows = slice(HEAD_DIM * head, HEAD_DIM * (head + 1))
        found[f"head={head}.qk"] = q[rows].T @ k
        found[f"head={head}.ov"] = o[:, rows] @ v
    return found


def test_rows_are_those_of_dense_products(llama, report):
    for part, matrix in dense(llama).items():
        row = next(r for r in report.function if r.layer == 0 and r.part == part)
        n = HEAD_DIM if "head" in part else WIDTH
        sigma = np.linalg.svd(matrix, compute_uv=False)[:n]
        assert np.sqrt(report.eigenvalues(row.key))[::-1] == pytest.approx(sigma, abs=1e-7 * sigma[0])
        assert row.alpha == pytest.approx(hill(sigma), rel=1e-6)
        assert row.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-9)
        share = sigma / sigma.sum()
        assert row.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
        assert row.spectral_norm == pytest.approx(sigma[0], rel=1e-9)
        assert (row.form, row.head) == ("function", int(part[5]) if "head" in part else None)


def test_products_are_held_against_products_of_noise(report):
    ratios = {"qk": (0.5, 0.5), "ov": (0.5, 0.5), "du": (WIDTH / HIDDEN, 1.0)}
    for row in report.function:
        if row.role in ratios:
            n = WIDTH if row.role == "du" else HEAD_DIM
            null = hill(product_quantiles(n, ratios[row.role]) ** 0.5)
            assert row.alpha_null == pytest.approx(null, rel=1e-9)
            assert row.rho == pytest.approx((row.alpha - 1) / (null - 1), rel=1e-9)
            assert (row.z, row.square_alpha, row.mp_edge) == (None, None, None)


def test_stored_rows_are_those_without_it(llama, report):
    plain = specdiag.analyze(llama, device="cpu")
    assert not plain.function
    assert all(row.form == "stored" and row.gauge_shift is None for row in plain)
    for with_function, row in zip(report, plain, strict=True):
        assert with_function.alpha == row.alpha
        assert (with_function.gauge_shift is None) == (row.role in ("embed", "head"))
    assert report.summary.contrasts == plain.summary.contrasts
    assert report.summary.n_matrices == plain.summary.n_matrices == len(report)


def test_gauge_shift_is_that_of_a_model_in_balance(llama, report):
    balanced = random_model("llama", **LARGER)
    with torch.no_grad():
        for block in balanced.model.layers:
            norm, mlp = block.post_attention_layernorm, block.mlp
            for reader in (mlp.gate_proj, mlp.up_proj):
                reader.weight.mul_(norm.weight)
            norm.weight.fill_(1)
            up, down = mlp.up_proj.weight, mlp.down_proj.weight
            scale = (down.norm(dim=0) / up.norm(dim=1)) ** 0.5
            up.mul_(scale[:, None])
            down.div_(scale)
    after = specdiag.analyze(balanced, roles=("gate", "up", "down"), device="cpu")
    for row in after:
        assert report[row.key].gauge_shift == pytest.approx(row.square_alpha - report[row.key].square_alpha, abs=1e-9)
        assert report[row.key].balanced_rho == pytest.approx(row.square_rho, rel=1e-9)
    again = specdiag.analyze(balanced, roles=("up", "down"), function=True, device="cpu")
    assert [row.gauge_shift for row in again] == pytest.approx([0] * 4, abs=1e-9)


def numbers(report):
    """Every number of the function, and square_alpha of the balanced form, by place and in the order of size."""
    found = {}
    for row in (*report.function, *(r for r in report if r.gauge_shift is not None)):
        key = row.form, row.layer, row.role, row.head
        if row.form == "function":
            values = [v for n in row.__struct_fields__ if isinstance(v := getattr(row, n), float)]
            assert len(values) >= 6
        else:
            values = [row.square_alpha + row.gauge_shift]
        found.setdefault(key, []).append(values)
    return {key: np.array(sorted(values)) for key, values in found.items()}


def minilm():
    """The real model in float64."""
    folder = fetch("minilm")
    model = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(folder)).double().eval()
    model.bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model


MODELS = {
    "llama": lambda: random_model("llama", **LARGER),
    "mixtral": lambda: random_model("mixtral", **LARGER),
    "gpt2": lambda: random_model("gpt2", **LARGER_GPT),
    "bert": minilm,
}


@pytest.mark.parametrize("kind", MODELS)
def test_no_number_depends_on_the_form(kind):
    model = MODELS[kind]()
    before = specdiag.analyze(model, function=True, device="cpu")
    blocks = find_blocks(open_source(model))[0]
    Changes(kind, model, [block.wiring for block in blocks], blocks[0].attention.n_rotated).all()
    after = specdiag.analyze(model, function=True, device="cpu")
    moved = [abs(a.alpha - b.alpha) for a, b in zip(before, after, strict=True) if a.alpha is not None]
    assert max(moved) > 0.05  # the stored numbers are others
    first, second = numbers(before), numbers(after)
    assert first.keys() == second.keys()
    for key, values in first.items():
        assert second[key] == pytest.approx(values, rel=SAME, abs=SAME), key


def test_a_report_keeps_its_function(report, tmp_path):
    report.save(tmp_path / "a.json")
    loaded = specdiag.load_report(tmp_path / "a.json")
    assert loaded.function == report.function
    assert all(
        getattr(loaded, f.name) == getattr(report, f.name) for f in fields(report) if f.name in ("records", "summary")
    )
    key = report.function[0].key
    assert loaded.eigenvalues(key) == pytest.approx(report.eigenvalues(key))
    assert loaded[key].role == "qk"
    forms = [row["form"] for row in loaded.to_records()]
    assert (forms.count("stored"), forms.count("function")) == (len(report), len(report.function))


def test_an_interrupted_analysis_goes_on(llama, tmp_path):
    folder = write_checkpoint(
        tmp_path / "model", {k: v.float() for k, v in llama.state_dict().items()}, llama.config.to_dict()
    )
    seen = []

    def stop(progress):
        seen.append(progress.name)
        if len(seen) == 12:
            raise KeyboardInterrupt

    with pytest.raises(specdiag.Interrupted) as stopped:
        specdiag.analyze(folder, function=True, device="cpu", jobs=1, progress=stop)
    partial = stopped.value.report
    assert not partial.complete
    whole = specdiag.analyze(folder, function=True, device="cpu", partial_reports=[partial])
    alone = specdiag.analyze(folder, function=True, device="cpu")
    assert whole.complete
    assert whole.function == alone.function
    assert whole.records == alone.records


def test_roles_of_the_function_alone(llama):
    report = specdiag.analyze(llama, function=True, roles="qk", device="cpu")
    assert not report.records
    assert {row.role for row in report.function} == {"qk"}
    assert len(report.function) == 2 * HEADS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"roles": "du"}, "roles='du' is a product of two matrices"),
        ({"function": True, "randomize": True}, "randomize=True looks at the entries"),
        ({"function": True, "tail": "farms"}, "tail=farms looks at the entries"),
        ({"function": 1}, "function"),
    ],
)
def test_options_that_do_not_go_together(llama, options, said):
    with pytest.raises(specdiag.UsageError, match=said):
        specdiag.analyze(llama, **options)


def altered(model, changes, config=None):
    state = {k: v.float() for k, v in model.state_dict().items()}
    return {k: v for k, v in (state | changes).items() if v is not None}, model.config.to_dict() | (config or {})


@pytest.mark.parametrize(
    ("changes", "config", "said"),
    [
        ({}, {"model_type": "novel"}, "Wiring of model_type novel is unknown: QK, OV, DU and gauge_shift are left out."),
        ({}, {"model_type": None, "architectures": None}, "The wiring is unknown without a config.json that names"),
        ({}, {"num_attention_heads": 3}, "its shapes are not those of 3 heads"),
        ({}, {"head_dim": 32}, "its shapes are not those of 2 heads"),
        ({}, {"num_key_value_heads": 2}, "its shapes are not those of 2 heads"),
        ({}, {"hidden_size": 64}, "is not of the width of the config"),
        ({}, {"hidden_act": "relu"}, "rows of a gate with relu can be rescaled"),
        ({"input_layernorm.weight": None}, {}, "its norm input_layernorm is not in the checkpoint"),
        ({"input_layernorm.bias": torch.zeros(WIDTH)}, {}, "input_layernorm has a bias, which an RMS norm has not"),
        ({"self_attn.q_norm.weight": torch.ones(64)}, {}, "it has self_attn.q_norm.weight, which its wiring does not name"),
        ({"post_feedforward_layernorm.weight": torch.ones(WIDTH)}, {}, "a norm post_feedforward_layernorm, which"),
        ({"self_attn.o_proj.weight": None}, {}, "it has no matrix of role o"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_out_with_a_note(llama, tmp_path, changes, config, said):
    changes = {f"model.layers.0.{name}": value for name, value in changes.items()}
    state, settings = altered(llama, changes, config)
    folder = write_checkpoint(tmp_path, state, settings)
    report = specdiag.analyze(folder, function=True, roles=("q", "k", "v", "gate", "qk", "ov", "du"), device="cpu")
    assert any(said in note for note in report.provenance.notes), report.provenance.notes
    if "MLP" not in " ".join(report.provenance.notes) and "iring" in said and not changes:
        assert not report.function
    assert len(report.function) < 2 * (2 * HEADS + 2)


def test_values_that_are_not_finite_have_no_spectrum(llama, tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    spoiled = llama.state_dict()[name].float().clone()
    spoiled[0, 0] = float("nan")
    folder = write_checkpoint(tmp_path, *altered(llama, {name: spoiled}))
    report = specdiag.analyze(folder, function=True, device="cpu")
    bad = {(row.layer, row.role) for row in report.function if row.status == "nonfinite"}
    assert bad == {(0, "qk")}
    assert report[name].gauge_shift is None


def test_a_narrow_table_keeps_the_only_number_of_small_heads(tmp_path):
    small = random_model("llama", **LARGER | {"num_attention_heads": 8, "head_dim": 16})
    folder = write_checkpoint(tmp_path / "model", *altered(small, {}))
    _, out, _ = outcome("analyze", folder, "--function", width=80)
    table = out[out.index("Function (medians") :].splitlines()
    assert table[1].split()[-2:] == ["stable", "rank"]
    qk = next(line.split() for line in table if " qk " in line)
    assert float(qk[-1]) > 1


def test_the_command_shows_tables_and_rows(llama, tmp_path):
    folder = write_checkpoint(tmp_path / "model", *altered(llama, {}))
    code, out, err = outcome("analyze", folder, "--function", "-o", tmp_path / "a.json", width=112)
    assert code == 0, err
    assert "Function by layer (means over heads)" in out
    assert "shift by form" in out
    content = json.loads((tmp_path / "a.json").read_text())
    assert {row["role"] for row in content["function"]} == {"qk", "ov", "du", "gate"}
    _, rows, _ = outcome("analyze", tmp_path / "a.json", "-f", "csv")
    assert len(rows.splitlines()) == 1 + len(content["records"]) + len(content["function"])
    code, out, err = outcome("recommend", tmp_path / "a.json", "--all", width=112)
    assert code == 0, err
    assert "head=" not in out
    unknown = write_checkpoint(tmp_path / "other", altered(llama, {})[0], LLAMA | {"model_type": "novel"})
    code, _, err = outcome("analyze", unknown, "--function", "--role", "qk")
    assert code == 3
    assert "Wiring of model_type novel is unknown" in " ".join(err.split())
