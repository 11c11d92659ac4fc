"""Scores of token rows: the reference's figures on real tables, planted rows, and tables in which nothing is to find."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.untrained_rows import score_rows
from specdiag.system.blas_threads import OneBlasThread

F32 = FLOAT_TYPES["F32"]
RESERVED = tuple(range(3, 17))
"""Special tokens that SmolLM2's tokenizer has from another model's: <repo_name>, <jupyter_start>, ..."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with OneBlasThread():
        yield


@pytest.fixture(scope="module")
def smollm2(asset):
    checkpoint = open_checkpoint(asset("smollm2-gguf"))
    return next(m for m in checkpoint.matrices if m.module.role == "embed").load().numpy()


@pytest.fixture(scope="module")
def minilm_table(minilm):
    return load_file(minilm / "model.safetensors")["embeddings.word_embeddings.weight"]


def highest(scores, n):
    return set(np.argsort(-scores)[:n].tolist())


def naive(table, reserved):
    """The method in ten lines of float64, by a full SVD."""
    rest = table.astype(np.float64) - table.mean(axis=0, dtype=np.float64)
    axis = np.linalg.eigh(rest.T @ rest)[1][:, -1]
    rest -= np.outer(rest @ axis, axis)
    units = rest / np.linalg.norm(rest, axis=1, keepdims=True)
    mean = units[list(reserved)].mean(axis=0)
    return units @ mean / np.linalg.norm(mean)


def test_reserved_rows_of_smollm2(smollm2):
    """The reference counts, beside the 14 rows themselves, 16 above .9 and 90 above .5; here they are 19 and 91."""
    scored = score_rows(smollm2, F32, RESERVED)
    assert scored.reference == RESERVED
    rest = np.delete(scored.scores, RESERVED)
    assert abs((rest > 0.9).sum() - 16) <= 4
    assert abs((rest > 0.5).sum() - 90) <= 5
    np.testing.assert_allclose(scored.scores, naive(smollm2, RESERVED), atol=2e-3)


def test_the_densest_rows_stand_in_for_reserved_ones(smollm2):
    """98 of the 100 highest agree in the reference, by all pairs; here pairs are found in a random projection."""
    known, found = score_rows(smollm2, F32, RESERVED), score_rows(smollm2, F32)
    assert not found.is_known
    assert found.coherence > 0.95
    assert len(highest(known.scores, 100) & highest(found.scores, 100)) >= 95


def test_unused_rows_of_minilm(minilm, minilm_table):
    """The reference: AUC .992, and half of the 497 highest rows are rare Chinese pieces."""
    vocabulary = json.loads((minilm / "tokenizer.json").read_text())["model"]["vocab"]
    unused = sorted(id for text, id in vocabulary.items() if text.startswith("[unused"))
    scores = score_rows(minilm_table, F32, unused[::2]).scores
    rest = np.setdiff1d(np.arange(len(scores)), unused[::2])
    is_unused = np.isin(rest, unused[1::2])
    places = np.argsort(np.argsort(scores[rest]))
    n = is_unused.sum()
    auc = (places[is_unused].sum() - n * (n - 1) / 2) / (n * (len(rest) - n))
    assert auc == pytest.approx(0.992, abs=0.003)
    assert is_unused[np.argsort(-scores[rest])[:n]].mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("size", [0.02, 0.04])
def test_rows_left_at_a_random_start_in_a_trained_table(smollm2, size):
    rng = np.random.default_rng(0)
    planted = rng.choice(np.arange(1000, len(smollm2)), 30, replace=False)
    table = smollm2.copy()
    table[planted] = size * rng.standard_normal((30, table.shape[1]))
    scores = score_rows(table, F32, planted[:15].tolist()).scores
    assert set(planted[15:].tolist()) <= highest(scores, 40)


@pytest.mark.parametrize("shape", [(5000, 64), (2000, 256)])
def test_noise_has_no_rows_close_together(shape):
    scored = score_rows(np.random.default_rng(0).standard_normal(shape).astype("f4"), F32)
    assert (scored.scores, scored.reference) == (None, ())
    assert scored.coherence < 0.5


def test_reserved_rows_without_a_direction_score_nothing():
    table = np.random.default_rng(0).standard_normal((2000, 256)).astype("f4")
    scored = score_rows(table, F32, range(40))
    assert scored.scores is None
    assert abs(scored.coherence) < 0.1


def test_a_table_that_is_not_finite_scores_nothing():
    table = np.ones((100, 8), "f4")
    table[3, 3] = np.nan
    assert score_rows(table, F32).scores is None


@pytest.mark.parametrize("table", [np.zeros((100, 8), "f4"), np.ones((100, 8), "f4"), np.ones((3, 1), "f4")])
def test_a_table_without_directions(table):
    scored = score_rows(table, F32)
    assert scored.scores is None or not np.isnan(scored.scores).any()
