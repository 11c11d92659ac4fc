"""Factors of adapters: planted faults are found, and adapters as training leaves them pass."""

from __future__ import annotations

import numpy as np
import pytest
from adapter_files import ATTENTION, LORA, lora, random, write
from helpers import with_singular_values
from models import write_checkpoint
from safetensors.numpy import load_file, save_file

import specdiag
from specdiag.auditing.thresholds import default_checks

OUT, IN, RANK = 400, 300, 8
MODULES = [ATTENTION.format(layer, place) for layer in range(2) for place in "qv"]
SETTINGS = LORA | {"target_modules": ["q_proj", "v_proj"]}
SCREENED = {check for check in default_checks() if check.startswith("adapter_")} - {"adapter_beside", "adapter_inside"}


def initial(seed):
    """A as PEFT begins: uniform within 1/sqrt(inputs)."""
    return np.random.default_rng(seed).uniform(-1, 1, (RANK, IN)).astype("f4") / IN**0.5


def trained(size=0.002):
    """Factors as training leaves them: A has moved, and the energy of B A falls from direction to direction."""
    tensors = {}
    for seed, module in enumerate(MODULES):
        name = f"base_model.model.{module}"
        moved = initial(seed) + 0.02 * random(RANK, IN, seed=seed)
        strengths = np.diag(0.6 ** np.arange(RANK)).astype("f4")
        tensors[f"{name}.lora_A.weight"] = moved
        tensors[f"{name}.lora_B.weight"] = size * random(OUT, RANK, seed=seed) @ strengths
    return tensors


def base(folder):
    """Weights with room between their second and third singular value, and their leading vectors well determined."""
    sigma = np.r_[1, 0.9, np.geomspace(0.3, 0.2, 8), np.geomspace(0.18, 0.01, IN - 10)]
    state = {f"{module}.weight": with_singular_values(sigma, (OUT, IN), seed).astype("f4")
             for seed, module in enumerate(MODULES)}  # fmt: skip
    return write_checkpoint(folder, state)


def screened(folder, tensors, settings=SETTINGS, **options):
    audit = specdiag.audit(write(folder, tensors, settings), device="cpu", **options)
    return audit, {(f.check, f.module): f.value for f in audit.findings if f.check in SCREENED}


def key(module, side):
    return f"base_model.model.{module}.lora_{side}.weight"


@pytest.mark.parametrize("with_base", [False, True])
def test_a_trained_adapter_passes(tmp_path, with_base):
    options = {"base": base(tmp_path / "base")} if with_base else {}
    audit, found = screened(tmp_path / "a", trained(), **options)
    assert found == {}
    made = SCREENED & set(audit.coverage.checks)
    assert SCREENED - made == (set() if with_base else {"adapter_norm", "adapter_intruders"})


@pytest.mark.parametrize(
    ("side", "value"), [("B", "B is zero, the other factor is not"), ("A", "A is zero, the other factor is not")]
)
@pytest.mark.parametrize("with_base", [False, True])
def test_a_factor_of_zeros_among_others(tmp_path, side, value, with_base):
    tensors = trained()
    tensors[key(MODULES[1], side)] *= 0
    options = {"base": base(tmp_path / "base")} if with_base else {}
    audit, found = screened(tmp_path / "a", tensors, **options)
    assert found == {("adapter_one_sided", f"{MODULES[1]}.weight"): value}
    assert not [f for f in audit.findings if f.check == "zero"]


def test_an_empty_adapter_is_empty_beside_its_base(tmp_path):
    tensors = {name: values * (0 if "lora_B" in name else 1) for name, values in trained().items()}
    _, found = screened(tmp_path / "a", tensors, base=base(tmp_path / "base"))
    assert found == {("adapter_empty", None): "all 4 updates are zero"}


def test_a_factor_that_was_not_trained(tmp_path):
    tensors = trained()
    tensors[key(MODULES[0], "A")] = initial(50)
    assert set(screened(tmp_path / "still", tensors)[1]) == {("adapter_initial", f"{MODULES[0]}.weight")}
    tensors[key(MODULES[0], "A")] = initial(50) + np.float32(1e-3) * np.sign(random(RANK, IN))
    assert screened(tmp_path / "moved", tensors)[1] == {}


def test_initial_factors_are_known_for_what_they_are_in_any_seed(tmp_path):
    from specdiag.auditing.adapter_screen import _is_initial

    assert all(_is_initial(initial(seed), 2.0**-23) for seed in range(200))
    assert not any(_is_initial(initial(seed) * np.float32(0.9), 2.0**-23) for seed in range(20))
    assert not any(_is_initial(random(RANK, IN, seed=seed) / IN**0.5, 2.0**-23) for seed in range(20))


def test_random_factors(tmp_path):
    tensors = trained() | lora(MODULES[2], OUT, IN)
    _, found = screened(tmp_path, tensors)
    assert set(found) == {("adapter_random", f"{MODULES[2]}.weight")}


def test_energy_in_one_direction(tmp_path):
    tensors = trained()
    up = tensors[key(MODULES[3], "B")]
    tensors[key(MODULES[3], "B")] = up * np.r_[1, np.full(RANK - 1, 0.01)].astype("f4")
    _, found = screened(tmp_path, tensors)
    assert set(found) == {("adapter_concentrated", f"{MODULES[3]}.weight")}
    assert found["adapter_concentrated", f"{MODULES[3]}.weight"] > 0.99


@pytest.mark.parametrize(
    ("settings", "outside"),
    [
        ({}, []),
        ({"target_modules": ["q_proj"]}, [m for m in MODULES if "v_proj" in m]),
        ({"target_modules": r".*\.self_attn\.[qv]_proj"}, []),
        ({"target_modules": r".*\.q_proj"}, [m for m in MODULES if "v_proj" in m]),
        ({"layers_to_transform": [0]}, [m for m in MODULES if ".1." in m]),
        ({"layers_to_transform": 1}, [m for m in MODULES if ".0." in m]),
    ],
)
def test_modules_outside_of_the_targets(tmp_path, settings, outside):
    _, found = screened(tmp_path, trained(), SETTINGS | settings)
    assert set(found) == {("adapter_targets", f"{module}.weight") for module in outside}


@pytest.mark.parametrize(
    ("targets", "reason"),
    [(None, "lists no target_modules"), ("all-linear", "lists no target_modules"), ({"a": 1}, "lists no"),
     ("(?!x).*", "cannot be followed")],
)  # fmt: skip
def test_targets_that_cannot_be_followed(tmp_path, targets, reason):
    audit, found = screened(tmp_path, trained(), SETTINGS | {"target_modules": targets})
    assert found == {}
    assert reason in audit.coverage.not_checked["adapter_targets"]


def with_two_directions(ratio):
    """A trained adapter whose first update has two strong directions; its spectral norm is `ratio`, that of the base 1."""
    tensors = trained()
    up, down = (tensors[key(MODULES[0], side)] for side in "BA")
    up = up * np.r_[1, 2, np.full(RANK - 2, 0.01)].astype("f4")
    tensors[key(MODULES[0], "B")] = up * np.float32(ratio / (2 * np.linalg.norm(up @ down, 2)))
    return tensors


def test_directions_that_the_base_has_not(tmp_path):
    audit, found = screened(tmp_path / "a", with_two_directions(0.5), base=base(tmp_path / "base"))
    assert found == {("adapter_intruders", f"{MODULES[0]}.weight"): 2}
    (finding,) = (f for f in audit.findings if f.check == "adapter_intruders")
    assert (finding.severity, finding.threshold) == ("info", 0)


def test_an_update_larger_than_its_weight(tmp_path):
    _, found = screened(tmp_path / "a", with_two_directions(1.5), base=base(tmp_path / "base"))
    assert found[("adapter_norm", f"{MODULES[0]}.weight")] == pytest.approx(1.5, rel=1e-3)


def test_a_report_of_an_adapter_says_what_it_lacks(tmp_path):
    report = specdiag.analyze(write(tmp_path, trained(), SETTINGS), device="cpu")
    reasons = specdiag.audit(report).coverage.not_checked
    assert {reasons[check] for check in SCREENED} == {"the source is no adapter, or a report of one"}


def test_what_the_adapter_leaves_as_it_is_is_the_bases(tmp_path):
    """A pooler that nothing trained looks random in the base too, and the adapter has no part in it."""
    pooler = "pooler.dense.weight"
    folder = base(tmp_path / "base")
    save_file(load_file(folder / "model.safetensors") | {pooler: random(300, 300)}, folder / "model.safetensors")
    audits = [specdiag.audit(folder, device="cpu"), screened(tmp_path / "a", trained(), base=folder)[0]]
    trained_too = trained() | {f"base_model.model.{pooler}": random(300, 300, seed=1)}
    audits.append(screened(tmp_path / "b", trained_too, SETTINGS | {"modules_to_save": ["pooler"]}, base=folder)[0])
    assert [any(f.check == "random" and f.module == pooler for f in a.findings) for a in audits] == [True, False, True]
