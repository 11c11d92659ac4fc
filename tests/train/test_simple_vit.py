"""Simple ViT against transformers' I-JEPA, which is the same network with positions that are learned."""

import math

import pytest
import torch
import transformers

import specdiag
from specdiag.live.parameter_kinds import trained_parameters
from specdiag.live.parameters import live_parameters
from specdiag.train.models.simple_vit import (
    SimpleViTConfig,
    SimpleViTForImageClassification,
    positions,
    register,
)

SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_labels": 5,
}  # fmt: skip


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = SimpleViTForImageClassification(SimpleViTConfig(**SMALL))
    torch.nn.init.normal_(model.classifier.weight)
    return model.eval()


def test_the_published_size():
    with torch.device("meta"):
        model = SimpleViTForImageClassification(SimpleViTConfig(num_labels=1000))
    patches, block = 3 * 16 * 16 * 384 + 384, 4 * (384**2 + 384) + 2 * 384 * 1536 + 1536 + 384 + 4 * 384
    assert sum(p.numel() for p in model.parameters()) == patches + 12 * block + 2 * 384 + 1000 * 385 == 21_974_632


def test_outputs_are_those_of_ijepa_with_these_positions(small):
    config = transformers.IJepaConfig(
        **SMALL, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    other = transformers.IJepaForImageClassification(config).eval()
    own = small.state_dict()
    names = {name.split(".", 1)[1] if name.startswith("ijepa.") else name: name for name in other.state_dict()}
    renamed = {
        "up_proj": "fc1", "down_proj": "fc2", "patch_embeddings": "embeddings.patch_embeddings.projection",
    }  # fmt: skip
    state = {"ijepa.embeddings.position_embeddings": positions(4, 4, 64)[None]}
    for name, tensor in own.items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[names[name]] = tensor
    other.load_state_dict(state)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(small(images).logits, other(images).logits, rtol=1e-5, atol=1e-5)


def test_positions_follow_the_formula():
    found, width = positions(2, 3, 8), 8
    for row in range(2):
        for column in range(3):
            omega = [10_000 ** -(i / (width // 4 - 1)) for i in range(width // 4)]
            x, y = [column * o for o in omega], [row * o for o in omega]
            wanted = [*map(math.sin, x), *map(math.cos, x), *map(math.sin, y), *map(math.cos, y)]
            torch.testing.assert_close(found[row * 3 + column], torch.tensor(wanted))


def test_initial_weights():
    torch.manual_seed(0)
    model = SimpleViTForImageClassification(SimpleViTConfig(num_labels=10, num_hidden_layers=1))
    bound = math.sqrt(6 / (384 + 384))  # xavier
    q = model.layers[0].attention.q_proj
    assert 0.99 * bound < q.weight.abs().max() <= bound
    assert model.patch_embeddings.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 16 * 16), rel=0.01)
    assert not model.classifier.weight.any()
    assert not q.bias.any()
    labels = torch.tensor([3, 4])
    loss = model(torch.randn(2, 3, 224, 224), labels=labels).loss
    assert loss.item() == pytest.approx(math.log(10))


def test_labels_may_be_probabilities(small):
    images = torch.randn(2, 3, 32, 32)
    first, second = (small(images, labels=torch.tensor(labels)).loss for labels in ([0, 1], [2, 3]))
    mixed = torch.zeros(2, 5)
    mixed[[0, 1], [0, 1]], mixed[[0, 1], [2, 3]] = 0.7, 0.3
    torch.testing.assert_close(small(images, labels=mixed).loss, 0.7 * first + 0.3 * second)


def test_saved_and_opened_again(small, tmp_path):
    register()
    register()
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 32, 32)
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in again.state_dict().items())
    torch.testing.assert_close(again.eval()(images).logits, small(images).logits)
    assert transformers.AutoConfig.for_model("simple_vit", num_labels=7).num_labels == 7


def test_roles_are_recognised(small):
    roles = specdiag.roles(
        {n: tuple(p.shape) for n, p in live_parameters(small).items()}, config=small.config.to_dict()
    )
    found = [held[0].role for name, held in roles.items() if name.startswith("layers.1.") and held]
    assert found == ["q", "k", "v", "o", "up", "down"]
    assert roles["patch_embeddings.weight"][0].role == "embed"
    kinds = {each.name: each.kind for each in trained_parameters(small)}
    assert kinds["patch_embeddings.weight"] == "input"
    assert kinds["classifier.weight"] == "output"
