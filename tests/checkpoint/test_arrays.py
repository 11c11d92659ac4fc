"""A mapping of NumPy arrays is analysed as the tensors that it would be saved as."""

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16

import specdiag

NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight")


def arrays(dtype="float32"):
    rng = np.random.default_rng(0)
    return {
        NAMES[0]: rng.standard_normal((80, 80)).astype(dtype),
        NAMES[1]: rng.standard_normal((80, 160)).astype(dtype),
    }


def analyze(state):
    return specdiag.analyze(state, device="cpu")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_give_the_numbers_of_their_tensors(dtype):
    state = arrays(dtype)
    found = analyze(state)
    assert found.records == analyze({name: torch.from_numpy(array) for name, array in state.items()}).records
    assert [record.storage_dtype for record in found] == [
        {"float16": "F16", "float32": "F32", "float64": "F64"}[dtype]
    ] * 2


def test_layout_and_byte_order_change_nothing():
    state = arrays()
    expected = analyze(state).records
    frozen = {name: array.copy() for name, array in state.items()}
    for array in frozen.values():
        array.flags.writeable = False
    odd = (
        frozen,
        {name: np.asfortranarray(array) for name, array in state.items()},
        {name: array[::-1][::-1] for name, array in state.items()},
        {name: array.astype(">f4") for name, array in state.items()},
    )
    for other in odd:
        assert analyze(other).records == expected
    assert not any(array.flags.writeable for array in frozen.values())


def test_bfloat16_of_ml_dtypes():
    state = {name: array.astype(bfloat16) for name, array in arrays().items()}
    tensors = {name: torch.from_numpy(array).bfloat16() for name, array in arrays().items()}
    assert analyze(state).records == analyze(tensors).records


@pytest.mark.parametrize(
    ("odd", "sentence"),
    [
        (lambda w: np.ma.masked_array(w, w > 1), r"q_proj.weight' is a masked array, which no checkpoint holds"),
        (
            lambda w: w.astype("longdouble"),
            r"q_proj.weight' is an array of (float128|longdouble), for which torch has no type",
        ),
        (lambda w: w.astype([("a", "f4")]), "for which torch has no type"),
    ],
)
def test_arrays_that_no_checkpoint_could_hold_are_refused_by_name(odd, sentence):
    state = arrays()
    with pytest.raises(specdiag.UsageError, match=sentence):
        analyze(state | {NAMES[0]: odd(state[NAMES[0]])})


def test_arrays_and_tensors_together_and_what_is_neither():
    state = arrays()
    mixed = {NAMES[0]: torch.from_numpy(state[NAMES[0]]), NAMES[1]: state[NAMES[1]], "note": np.array(["a", "b"])}
    found = analyze(mixed)
    assert found.records == analyze(state).records
    assert any("note" in note for note in found.provenance.notes)
    with pytest.raises(specdiag.UsageError, match="holds none"):
        analyze({"note": np.array(["a"])})
