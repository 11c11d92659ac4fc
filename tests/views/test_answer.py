"""The first lines of `analyze`: a verdict that the numbers bear out, what stands out, and what was not looked at."""

import numpy as np
import pytest
import torch
from command import execute

import specdiag
from specdiag.views.answer import answer

ROLES = {"q_proj": (256, 256), "o_proj": (256, 256), "up_proj": (512, 256), "down_proj": (256, 512)}


def heavy(rng, shape, power):
    """Random singular vectors and singular values i^-power."""
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return torch.from_numpy(u * np.arange(1, len(v) + 1) ** -power @ v).float()


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(3)
    return {
        f"model.layers.{layer}.{'mlp' if 'p_' in role or 'down' in role else 'self_attn'}.{role}.weight": heavy(
            rng, shape, 0.5 + 0.01 * layer
        )
        for layer in range(12)
        for role, shape in ROLES.items()
    }


def answered(state, **options):
    return answer(specdiag.analyze(state, **options))


def test_a_trained_model_looks_trained(trained):
    found = answered(trained)
    assert found.verdict == "Looks like a trained model. Nothing stands out."
    assert found.points == ()
    assert dict(found.facts)["Not checked"].startswith("config.json")


@pytest.mark.parametrize(("power", "how"), [(0.9, "heavier"), (0.1, "lighter")])
def test_one_layer_unlike_all_others_stands_out(trained, power, how):
    name = "model.layers.7.self_attn.o_proj.weight"
    found = answered({**trained, name: heavy(np.random.default_rng(4), (256, 256), power)})
    assert found.verdict == "Looks like a trained model. 1 thing stands out."
    (point,) = found.points
    assert (point.module, point.severity) == (name, "info")
    assert point.finding.startswith(f"{how}-tailed than every other o: square_alpha ")


def test_layers_that_look_random_are_named_by_number(trained):
    rng = np.random.default_rng(6)
    state = {
        name: torch.from_numpy(rng.standard_normal(tuple(w.shape))).float() if f".{layer}." in name else w
        for name, w in trained.items()
        for layer in [2 if ".2." in name else 4]
    }
    found = answered(state)
    assert found.verdict == "Looks trained but for 8 of 48 attention and MLP matrices. 2 things stand out."
    assert found.points[0].more == " and 7 more (together all of layers 2 and 4)"


def test_noise_looks_untrained(trained):
    rng = np.random.default_rng(5)
    found = answered(
        {name: torch.from_numpy(rng.standard_normal(tuple(w.shape))).float() for name, w in trained.items()}
    )
    assert found.verdict.startswith("Looks untrained: 100 % of its attention and MLP spectra")


def test_faults_come_first(trained):
    name = "model.layers.3.mlp.up_proj.weight"
    found = answered({**trained, name: torch.zeros(512, 256)})
    assert found.verdict == "Damaged: 1 fault that no working model has."
    assert (found.points[0].module, found.points[0].severity) == (name, "fail")


def test_every_fault_is_counted_and_a_second_place_named(trained):
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (2, 3, 4)]
    zeros = torch.zeros(512, 256)
    found = answered({**trained, names[0]: zeros, names[1]: zeros.clone()})
    assert found.verdict == "Damaged: 2 faults that no working model has."
    assert (found.points[0].module, found.points[0].more) == (names[0], f" and {names[1]}")
    found = answered({**trained, **{name: zeros.clone() for name in names}})
    assert found.verdict == "Damaged: 3 faults that no working model has."
    assert found.points[0].more == " and 2 more"


def test_a_selection_is_not_called_a_model(trained):
    found = specdiag.analyze(trained, include="*layers.[0-3].*")
    assert answer(found).verdict.startswith(f"The {len(found)} selected matrices look trained.")


def test_small_matrices_leave_the_verdict_open():
    found = answered(
        {f"model.layers.{i}.self_attn.q_proj.weight": torch.eye(60) + torch.rand(60, 60) for i in range(4)}
    )
    assert found.verdict.startswith("Its spectra do not show whether it was trained: no matrix has 256 ")


def test_the_command_begins_with_it(minilm, tmp_path):
    done = execute("analyze", minilm, "-o", tmp_path / "r.json", env={"COLUMNS": "60"})
    title, _, rest = done.stdout.partition("\n\n")
    assert " ".join(title.split()).endswith(": BertModel, 22.7 M parameters, 40 matrices")
    verdict, *rest = rest.splitlines()
    assert verdict == "Looks like a trained model. 2 things stand out."
    assert rest[0] == "!  pooler.dense.weight"
    block = rest[: rest.index("Roles (medians; null: random matrices of the same shapes)")]
    assert max(map(len, block)) <= 60
    assert f"next: specdiag recommend {tmp_path / 'r.json'}" in done.stderr
    assert "MLP - attention per layer" not in done.stdout
    assert "MLP - attention per layer" in execute("analyze", tmp_path / "r.json", "--all").stdout


def test_a_table_without_a_number_is_not_shown(trained, tmp_path):
    broken = {name: torch.full_like(w, torch.nan) for name, w in trained.items()}
    said = []
    for name, state in (("whole", trained), ("broken", broken)):
        path = specdiag.analyze(state).save(tmp_path / f"{name}.json")
        said.append("by role and layer" in execute("analyze", path).stdout)
    assert said == [True, False]
