"""Folders of images, what is changed in them, and that an interruption changes nothing."""

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from specdiag.errors import SourceError, UsageError
from specdiag.train.models.simple_vit import SimpleViTConfig, SimpleViTForImageClassification
from specdiag.train.tasks import augment
from specdiag.train.tasks.images import EpochCallback, load_images

SIZE = 16


def noise(seed, size=(24, 20)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder(root, classes=("cat", "dog"), n=9, suffix="png"):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            noise(100 * c + i).save(root / name / f"{i}.{suffix}")
    return root


def load(path, mode="crop", seed=3):
    return load_images([path], size=SIZE, augment=mode, seed=seed)


def test_a_folder_of_classes(tmp_path):
    data = load(folder(tmp_path / "pets", n=80), "none")
    assert data.labels == ("cat", "dog")
    assert data.n_tokens == 0
    assert (len(data.train), len(data.held_out)) == (158, 2)
    assert not set(data.train.numbers) & set(data.held_out.numbers)
    example = data.train[0]
    assert example["pixel_values"].shape == (3, SIZE, SIZE)
    assert example["pixel_values"].dtype == torch.float32
    assert -1 <= example["pixel_values"].min() < example["pixel_values"].max() <= 1
    labels = [data.train[i]["labels"] for i in range(len(data.train))]
    assert labels == [0 if number < 80 else 1 for number in data.train.numbers]


@pytest.mark.parametrize("apart", ["val", "validation", "test"])
def test_what_is_set_aside_is_held_out(tmp_path, apart):
    folder(tmp_path / "train", ("a", "b", "c"), 4)
    folder(tmp_path / apart, ("b", "c"), 2, "JPG")
    data = load(tmp_path)
    assert data.labels == ("a", "b", "c")
    assert (len(data.train), len(data.held_out)) == (12, 4)
    assert [data.held_out[i]["labels"] for i in range(4)] == [1, 1, 2, 2]
    assert torch.equal(data.held_out[0]["pixel_values"], data.held_out[0]["pixel_values"])


def test_pixels_are_those_of_the_middle(tmp_path):
    root = folder(tmp_path, n=2)
    plain = Image.new("RGB", (64, 32), (255, 0, 51))
    for path in root.rglob("*.png"):
        plain.save(path)
    pixels = load(root, "none").train[0]["pixel_values"]
    torch.testing.assert_close(pixels[:, 3, 5], torch.tensor([1.0, -1.0, -0.6]))
    image = noise(0, (256, 256))
    wanted = np.asarray(image)[16:240, 16:240]
    assert np.array_equal(np.asarray(augment.central_crop(image, 224)), wanted)


def test_crops_are_parts_of_the_image():
    ramp = np.zeros((60, 90, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(90)[None, :], np.arange(60)[:, None]
    areas, aspects = [], []
    for seed in range(400):
        crop = np.asarray(augment.inception_crop(Image.fromarray(ramp), 32, np.random.default_rng(seed))).astype(float)
        width, height = (np.ptp(crop[..., c]) * 32 / 31 for c in (0, 1))
        areas.append(width * height / (60 * 90))
        aspects.append(width / height)
    assert min(areas) < 0.12
    assert max(areas) > 0.8
    assert 0.6 < min(aspects) < 0.85
    assert 1.2 < max(aspects) < 1.6


def test_every_operation_of_randaugment():
    image, generator = noise(5, (32, 32)), np.random.default_rng(0)
    results = [np.asarray(operation(image, generator)) for operation in augment.OPERATIONS]
    original = np.asarray(image)
    assert len(results) == 16
    for number, result in enumerate(results):
        assert result.shape == original.shape, number
        assert result.dtype == np.uint8
    unchanged = [number for number, result in enumerate(results) if np.array_equal(result, original)]
    assert unchanged == [0]  # noise spans all values already: no contrast is left to stretch
    assert np.array_equal(results[2], 255 - original)
    assert np.array_equal(results[4], original & 0xF0)
    assert np.array_equal(results[15], np.where(original < 128, original + 110, original))
    moved = results[12]
    shift = round(100 / 224 * 32)
    assert (moved == 128).all(axis=(0, 2)).sum() == shift
    kept = moved[:, : 32 - shift], moved[:, shift:]
    assert np.array_equal(kept[0], original[:, shift:]) or np.array_equal(kept[1], original[:, : 32 - shift])
    n_grey = (results[14] == 128).all(axis=2).sum()
    assert 36 <= n_grey <= 150  # of at most 12 x 12


def test_changes_follow_from_seed_epoch_and_image(tmp_path):
    root = folder(tmp_path, n=40)
    for mode in ("crop", "randaugment", "mixup"):
        first, again, other = load(root, mode).train, load(root, mode).train, load(root, mode, seed=4).train
        torch.rand(7)  # the global state is not asked
        assert torch.equal(first[5]["pixel_values"], again[5]["pixel_values"])
        assert not torch.equal(first[5]["pixel_values"], other[5]["pixel_values"])
        before = first[5]["pixel_values"]
        first.set_epoch(1)
        assert not torch.equal(first[5]["pixel_values"], before)


def test_mixtures(tmp_path):
    data = load(folder(tmp_path, ("a", "b", "c"), 30), "mixup")
    examples = [data.train[i] for i in (0, 40, 80)]
    batch = data.collate(examples)
    share = examples[0]["labels"][1]
    assert 0.5 <= share <= 1
    classes = [example["labels"][0] for example in examples]
    assert classes == [0, 1, 2]
    wanted = torch.tensor([[share, 0, 1 - share], [1 - share, share, 0], [0, 1 - share, share]])
    torch.testing.assert_close(batch["labels"], wanted)
    one, two = examples[1]["pixel_values"], examples[0]["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"][1], share * one + (1 - share) * two)
    held_out = data.collate([data.held_out[0]])
    assert held_out["labels"].dtype == torch.long


def test_accuracy_is_top_1(tmp_path):
    data = load(folder(tmp_path))
    logits = np.array([[2.0, 1.0], [0.0, 5.0], [1.0, 0.0]])
    found = data.metrics(transformers.EvalPrediction(predictions=logits, label_ids=np.array([0, 1, 1])))
    assert found == {"accuracy": pytest.approx(2 / 3)}


def test_the_fingerprint_sees_another_image(tmp_path):
    root = folder(tmp_path)
    before = load(root).fingerprint
    assert not before.differences(load(root).fingerprint)
    assert before.differences(load(root, "mixup").fingerprint) == ["tokens images, crop became images, mixup"]
    noise(77).save(root / "dog" / "new.png")
    assert "other content" in before.differences(load(root).fingerprint)[0]


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})

    def rows(n):
        return datasets.Dataset.from_dict(
            {"img": [noise(i) for i in range(n)], "label": [i % 2 for i in range(n)]}, features
        )

    asked = []

    def load_dataset(name, config, revision):
        asked.append((name, config, revision))
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = {"train": rows(6), "test": rows(4)}
    commit = "0" * 40  # of others the hub is asked
    data = load_images([f"someone/digits@{commit}:small"], size=SIZE, augment="none", seed=0)
    assert asked == [("someone/digits", "small", commit)]
    assert (len(data.train), len(data.held_out), data.labels) == (6, 4, ("x", "y"))
    assert data.train[3]["labels"] == 1
    untold = rows(4).remove_columns("label").add_column("label", [-1] * 4).cast(features)
    splits = {"train": rows(6), "test": untold}
    alone = load(f"someone/digits@{commit}")
    assert (len(alone.train), len(alone.held_out)) == (5, 1)
    assert data.fingerprint.differences(alone.fingerprint)
    splits = {"train": rows(3).remove_columns("label")}
    with pytest.raises(SourceError, match="no column of images and one of classes, but img"):
        load(f"someone/digits@{commit}")


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="unknown augmentation 'cutmix'; choose from none, crop"):
        load(tmp_path, "cutmix")
    with pytest.raises(UsageError, match="one folder of classes"):
        load_images([tmp_path, tmp_path], size=SIZE, seed=0)
    with pytest.raises(SourceError, match="holds 0 images of 0 classes"):
        load(tmp_path)
    folder(tmp_path / "one", ("only",))
    with pytest.raises(SourceError, match="9 images of 1 classes"):
        load(tmp_path / "one")
    (tmp_path / "one" / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty holds no \.png"):
        load(tmp_path / "one")
    folder(tmp_path / "two" / "train", n=2)
    folder(tmp_path / "two" / "val", ("dog", "bird"), n=1)
    with pytest.raises(SourceError, match="bird is a class that"):
        load(tmp_path / "two")
    root = folder(tmp_path / "three")
    (root / "cat" / "0.png").write_bytes(b"no image")
    data = load(root)
    with pytest.raises(SourceError, match=r"cat/0\.png is no image that can be read"):
        [data.train[i] for i in range(len(data.train))]


class _Interrupted(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def _train(root, out, *, stop=None, resume=None, callback=True, workers=0):
    """Two epochs of 6 batches, saved after each."""
    torch.manual_seed(0)
    data = load(root, "mixup")
    config = SimpleViTConfig(
        image_size=SIZE, patch_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_labels=2,
    )  # fmt: skip
    arguments = transformers.TrainingArguments(
        str(out), max_steps=12, save_steps=1, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=4, learning_rate=1e-2, seed=5, dataloader_num_workers=workers,
    )  # fmt: skip
    trainer = transformers.Trainer(
        SimpleViTForImageClassification(config), arguments, train_dataset=data.train, eval_dataset=data.held_out,
        data_collator=data.collate, compute_metrics=data.metrics,
    )  # fmt: skip
    if callback:
        trainer.add_callback(EpochCallback(data.train))
    if stop is not None:
        trainer.add_callback(_Interrupted(stop))
    trainer.train(resume_from_checkpoint=resume and str(resume))
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    return trainer.model.state_dict()


def _same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
def test_interrupted_is_uninterrupted(tmp_path):
    root = folder(tmp_path / "pets", n=12)
    whole = _train(root, tmp_path / "whole")
    for step in (3, 6, 9):
        out = tmp_path / f"stopped-{step}"
        _train(root, out, stop=step)
        again = _train(root, out, resume=out / f"checkpoint-{step}")
        assert _same(whole, again), step
    assert _same(whole, _train(root, tmp_path / "workers", workers=1))
    forgotten = _train(root, tmp_path / "forgotten", resume=tmp_path / "whole" / "checkpoint-9", callback=False)
    assert not _same(whole, forgotten)
