"""The metrics of classification and GLUE, against scikit-learn and the paper's averages."""

import numpy as np
import pytest
import torch
import transformers
from sklearn import metrics as oracle
from task_data import labelled, small, trainer

from specdiag import UsageError
from specdiag.train.tasks import metrics
from specdiag.train.tasks.glue import GLUE, glue_average, glue_score, load_classification

pytestmark = pytest.mark.usefixtures("one_thread")


def test_metrics_by_hand():
    """TP 3, FN 1, FP 2, TN 4."""
    true, predicted = np.array([1] * 4 + [0] * 6), np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    assert metrics.accuracy(predicted, true) == 0.7
    assert metrics.f1(predicted, true) == 6 / 9
    assert metrics.matthews(predicted, true) == pytest.approx((3 * 4 - 2 * 1) / np.sqrt(5 * 4 * 6 * 5))
    assert metrics.pearson(np.array([1.0, 2, 4]), np.array([1.0, 3, 2])) == pytest.approx(0.327326835)
    assert metrics.spearman(np.array([1.0, 2, 4]), np.array([1.0, 3, 2])) == pytest.approx(0.5)
    assert metrics.spearman(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(np.sqrt(3) / 2)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    true = rng.integers(classes, size=300)
    predicted = np.where(rng.random(300) < 0.4, true, rng.integers(classes, size=300))
    assert metrics.accuracy(predicted, true) == oracle.accuracy_score(true, predicted)
    assert metrics.matthews(predicted, true) == pytest.approx(oracle.matthews_corrcoef(true, predicted))
    if classes == 2:
        assert metrics.f1(predicted, true) == pytest.approx(oracle.f1_score(true, predicted))


def test_the_same_prediction_for_all_is_worth_nothing():
    true, same = np.array([0, 1, 1]), np.array([0, 0, 0])
    assert metrics.matthews(same, true) == oracle.matthews_corrcoef(true, same) == 0
    assert metrics.f1(same, true) == 0
    assert metrics.pearson(same.astype(float), true.astype(float)) == metrics.spearman(same, true) == 0
    assert np.isnan(metrics.pearson(np.array([np.nan, 1, 2]), np.array([1.0, 2, 3])))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("cola", {"matthews": 4 / np.sqrt(5 * 4 * 2 * 1)}),
        ("sst2", {"accuracy": 2 / 3}),
        ("mrpc", {"accuracy": 2 / 3, "f1": 0.8}),
        ("qqp", {"accuracy": 2 / 3, "f1": 0.8}),
        ("mnli", {"accuracy": 2 / 3}),
        ("qnli", {"accuracy": 2 / 3}),
        ("rte", {"accuracy": 2 / 3}),
    ],
)
def test_what_a_trainer_logs_for_each_task(tmp_path, words, task, expected):
    data = load_classification(task, [labelled(tmp_path, task)], tokenizer=words, max_length=8, seed=0)
    logits = np.zeros((6, len(data.labels)))
    logits[np.arange(6), [1, 1, 1, 1, 1, 0]] = 1
    labels = np.array([1, 1, 1, 1, 0, 1] if task != "cola" else [1, 1, 1, 0, 1, 0])  # TP 4, FP 1, FN 1 or 0
    for predictions in (logits, (logits, np.ones(3))):
        found = data.metrics(transformers.EvalPrediction(predictions=predictions, label_ids=labels))
        assert found == pytest.approx(expected)
    assert glue_score(task, {f"eval_{name}": value for name, value in found.items()} | {"eval_loss": 9}) == (
        pytest.approx(np.mean(list(expected.values())))
    )


def test_numbers_are_predicted_for_stsb(tmp_path, words):
    path = tmp_path / "stsb.csv"
    path.write_text("sentence1,sentence2,label\n" + "".join(f"a {'b ' * i},c,{i / 4}\n" for i in range(21)))
    data = load_classification("stsb", [path], tokenizer=words, max_length=16, seed=0)
    assert data.labels is None
    assert data.collate([data.train[0], data.train[1]])["labels"].dtype == torch.float32
    predictions, truth = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0])
    found = data.metrics(transformers.EvalPrediction(predictions=predictions, label_ids=truth))
    assert found == pytest.approx({"pearson": 0.327326835, "spearman": 0.5})
    made = trainer(tmp_path / "run", small("SequenceClassification", num_labels=1), data, steps=2, save_steps=9)
    made.train()
    assert {"eval_loss", "eval_pearson", "eval_spearman"} <= set(made.evaluate())


PAPER = {
    "uniform": ([59.73, 86.78, 87.01, 92.59, 89.97, 70.11, 93.69, 90.78], 83.83),
    "adadecay": ([60.45, 87.23, 88.19, 92.62, 89.95, 73.36, 93.73, 90.90], 84.55),
    "awd": ([60.72, 87.44, 89.53, 92.58, 90.08, 72.27, 93.72, 90.90], 84.66),
    "alphadecay": ([62.82, 87.11, 89.61, 92.73, 90.12, 73.86, 93.77, 90.91], 85.12),
}
"""Table 4 of arXiv 2506.14562: cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, and its average."""


@pytest.mark.parametrize("method", PAPER)
def test_the_average_is_that_of_the_paper(method):
    scores, average = PAPER[method]
    tasks = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
    results = {t: dict.fromkeys(GLUE[t].metrics, s / 100) for t, s in zip(tasks, scores, strict=True)}
    assert 100 * glue_average(results) == pytest.approx(average, abs=0.0051)


def test_scores_that_cannot_be():
    with pytest.raises(UsageError, match=r"mrpc is judged by accuracy and f1, and there is eval_loss, f1"):
        glue_score("mrpc", {"eval_loss": 1.0, "f1": 0.5})
    with pytest.raises(UsageError, match="'wnli' is no task of GLUE"):
        glue_score("wnli", {})
    with pytest.raises(UsageError, match=r"over eight tasks, and there is no result of cola, sst2, mrpc, stsb, qqp"):
        glue_average({"mnli": {}, "qnli": {}, "rte": {}})
