"""The map of heads in figures and pages, and products of the function over the steps of a run."""

import re
from dataclasses import replace

import numpy as np
import pytest
from command import outcome
from models import write_checkpoint
from wired_models import random_model

import specdiag
from specdiag.records import ModuleRecord
from specdiag.trajectories.sinks import tagged
from specdiag.views.head_map import head_panels
from specdiag.views.html.page import html_report

LARGER = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
          "intermediate_size": 192}  # fmt: skip


@pytest.fixture(scope="module")
def report():
    return specdiag.analyze(random_model("llama", **LARGER), function=True, device="cpu")


def row(role, layer, head, rho=None):
    return ModuleRecord(
        name=f"layers.{layer}.attn", part=f"head={head}.{role}", form="function", role=role, family="attention",
        layer=layer, head=head, rows=1024, cols=1024, storage_dtype="F32", status="ok", tail="hill", rho=rho,
        alpha=None if rho is None else 1 + 2.5 * rho, alpha_null=None if rho is None else 3.5, stable_rank=9.0,
        method="gram", compute_dtype="float64",
    )  # fmt: skip


def many(report, layers, heads, *, rho=True):
    rng = np.random.default_rng(0)
    rows = [
        row(role, layer, head, float(rng.uniform(0.2, 1.3)) if rho else None)
        for layer in range(layers)
        for role in ("qk", "ov")
        for head in range(heads)
    ]
    return replace(report, function=tuple(rows))


@pytest.mark.parametrize(("layers", "heads"), [(2, 4), (30, 9), (80, 64)])
def test_maps_of_any_size(report, layers, heads):
    figure = specdiag.plot.heads(many(report, layers, heads))
    cells = [axes for axes in figure.axes if axes.get_title() in ("QK", "OV")]
    assert len(cells) == 2
    for axes in cells:
        assert axes.collections[0].get_array().shape == (heads, layers)
    norm = cells[0].collections[0].norm
    assert (norm.vmin + norm.vmax) / 2 == pytest.approx(1)  # random products in the middle
    (bar,) = (axes for axes in figure.axes if axes.get_ylabel().startswith("lower"))
    assert bar.get_ylabel() == "lower: heavier tail, fewer directions"
    assert max(figure.get_size_inches()) < 16


def test_groups_of_heads_are_parted(report):
    assert [panel.group for panel in head_panels(report)] == [2, 2]
    figure = specdiag.plot.heads(report)
    lines = [line for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2]
    assert [line.get_ydata()[0] for line in lines] == [1.5]


def test_heads_without_an_exponent_show_their_stable_rank(report):
    figure = specdiag.plot.heads(many(report, 3, 2, rho=False))
    assert figure.axes[-1].get_ylabel() == "lower: fewer directions"
    with pytest.raises(specdiag.UsageError, match="no head has a value of rho"):
        specdiag.plot.heads(many(report, 3, 2, rho=False), metric="rho")


def test_a_report_without_heads_is_refused(report, tmp_path):
    plain = specdiag.analyze(random_model("llama", **LARGER), device="cpu")
    with pytest.raises(specdiag.UsageError, match="function=True"):
        specdiag.plot.heads(plain)
    plain.save(tmp_path / "a.json")
    code, _, err = outcome("plot", "heads", tmp_path / "a.json")
    assert code == 2
    assert "--function" in err


def page_of(report, folder):
    return html_report(report, path=folder / "a.html")


def test_a_page_has_the_map_only_with_heads(report, tmp_path):
    page = page_of(report, tmp_path)
    assert len(re.findall(r'<span title="QK, layer \d, head \d: rho', page)) == 2 * 4
    assert "products of random matrices score 1.00" in page
    assert page.count('<tr class="group">') == 2  # between the two groups of QK and of OV
    plain = specdiag.analyze(random_model("llama", **LARGER), device="cpu")
    assert 'id="heads"' not in page_of(plain, tmp_path)


def test_the_command_analyses_a_checkpoint(tmp_path):
    model = random_model("llama", **LARGER)
    folder = write_checkpoint(
        tmp_path / "m", {k: v.float() for k, v in model.state_dict().items()}, model.config.to_dict()
    )
    code, _, err = outcome("plot", "heads", folder, "-o", tmp_path / "h.svg")
    assert code == 0, err
    assert (tmp_path / "h.svg").read_bytes().startswith(b"<?xml")


def test_products_over_the_steps_of_a_run(tmp_path):
    run = tmp_path / "run"
    model = random_model("llama", **LARGER)
    for step in (1, 2):
        state = {k: v.float() * (step if "q_proj" in k else 1) for k, v in model.state_dict().items()}
        write_checkpoint(run / f"checkpoint-{step}", state, model.config.to_dict())
    found = specdiag.trajectory(run, function=True, device="cpu")
    (_, first), (_, second) = found.series("spectral_norm", "qk")
    assert second == pytest.approx(2 * first, rel=1e-5)
    assert {role for _, role in found.roles()} == {"embed", "head", "q", "k", "v", "o", "gate", "up", "down"}
    assert [role for _, role in found.roles("function")] == ["qk", "ov", "du", "gate"]
    gates = {
        form: [m.key for m in found.modules if (m.role, m.form) == ("gate", form)] for form in ("stored", "function")
    }
    assert [len(keys) for keys in gates.values()] == [2, 2]
    stored, function = (dict(found.series("frobenius_norm", "gate", form=form)) for form in gates)
    assert dict(found.series("frobenius_norm", "gate")) == stored != function
    assert dict(found.series("frobenius_norm", family="mlp")) == dict(
        found.series("frobenius_norm", family="mlp", form="stored")
    )
    (key, _) = gates["function"]
    assert found.series("frobenius_norm", module=key)[0][1] != stored[1]
    tags = tagged(found, 2)
    assert (tags["frobenius_norm/gate"], tags["frobenius_norm/function.gate"]) == (stored[2], function[2])
    assert "frobenius_norm/qk" in tags
    again = specdiag.load_trajectory(run / "specdiag_trajectory")
    assert again.series("alpha", "ov") == found.series("alpha", "ov")
    assert specdiag.plot.trajectory(found).axes
    code, out, err = outcome("trajectory", run, "--function", width=120)
    assert code == 0, err
    assert "qk" in out
    assert "gate (function)" in out
