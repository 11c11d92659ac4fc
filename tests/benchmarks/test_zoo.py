"""The zoo: who judges a parameter, how a type is scored, and that docs/zoo.md shows what was last measured."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from command import benchmark

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "zoo.json").read_text())
sys.path.append(str(ROOT / "benchmarks"))
zoo, zoo_docs = (importlib.import_module(name) for name in ("zoo", "zoo_docs"))
BLOCK = ("ModuleList", "Model")


@pytest.mark.parametrize(
    ("name", "owners", "family"),
    [
        ("layers.0.self_attn.q_proj.weight", ("Linear", "LlamaAttention", "LlamaDecoderLayer", *BLOCK), "attention"),
        ("layers.0.mlp.up_proj.weight", ("Linear", "LlamaMLP", "LlamaDecoderLayer", *BLOCK), "mlp"),
        ("layers.0.mlp.experts.down_proj", ("MixtralExperts", "MixtralSparseMoeBlock", "Layer", *BLOCK), "mlp"),
        ("layers.0.mlp.gate.weight", ("MixtralTopKRouter", "MixtralSparseMoeBlock", "Layer", *BLOCK), "other"),
        ("layer.0.mlp.gate.router_mlp.fc1.weight", ("Linear", "ZayaRouterMLP", "ZayaRouter", "Layer", *BLOCK), "other"),
        ("layers.0.mixer.in_proj.weight", ("Linear", "MambaMixer", "MambaBlock", *BLOCK), "other"),
        ("layers.0.linear_attn.q_proj.weight", ("Linear", "OlmoHybridGatedDeltaNet", "Layer", *BLOCK), "other"),
        ("layer.0.attention.output.dense.weight", ("Linear", "BertSelfOutput", "BertAttention", *BLOCK), "attention"),
        ("layer.0.output.dense.weight", ("Linear", "BertOutput", "BertLayer", *BLOCK), "mlp"),
        ("layers.0.fc1.weight", ("Linear", "BartEncoderLayer", *BLOCK), "mlp"),
        ("layers.0.dense.weight", ("Linear", "BartEncoderLayer", *BLOCK), None),
        ("layers.0.attn.rel_pos_h", ("SamVisionAttention", "SamVisionLayer", *BLOCK), "embedding"),
        ("layers.0.attn.bias_u", ("ConformerAttention", "ConformerLayer", *BLOCK), None),
        ("wte.weight", ("Embedding", "GPT2Model"), "embedding"),
        ("h.0.attn.experts.w", ("JetMoeParallelExperts", "JetMoeMoA", "JetMoeAttention", "Layer", *BLOCK), "attention"),
        ("resblocks.0.mlp.c_fc.weight", ("Linear", "ModuleDict", "BridgeTowerResidualAttention", *BLOCK), None),
        ("embed.layers.0.fc.weight", ("Linear", "EncoderLayer", "ModuleList", "AudioEmbedding", "Model"), None),
        ("aligner.fc1.weight", ("Linear", "JanusVisionAlignerMLP", "JanusModel"), None),
        ("bbox_embed.0.layers.0.weight", ("Linear", "ModuleList", "DFineMLP", "ModuleList", "DFineModel"), None),
        ("classifier.dense.weight", ("Linear", "ClassificationHead", "BertAttention", *BLOCK), None),
    ],
)
def test_the_nearest_class_that_says_something_decides(name, owners, family):
    assert zoo.judge(zoo.Parameter(name, owners))[0] == family


@pytest.mark.parametrize(
    ("kernel", "owners", "family"),
    [
        ("patches", ("Conv2d", "ViTPatchEmbeddings", "ViTEmbeddings", "ViTModel"), "embedding"),
        ("kernel", ("Conv2d", "ResNetEmbeddings", "ResNetModel"), None),
        ("1x1", ("Conv2d", "SegformerMLP", "SegformerLayer", *BLOCK), "mlp"),
        ("1x1", ("Conv2d", "ResNetEmbeddings", "ResNetModel"), None),
        ("kernel", ("Conv1d", "VitsFeedForward", "VitsLayer", *BLOCK), None),
    ],
)
def test_convolutions(kernel, owners, family):
    assert zoo.judge(zoo.Parameter("x.weight", owners, kernel=kernel))[0] == family


def test_output_embeddings_are_known_by_the_model():
    owners = ("Linear", "LlamaForCausalLM")
    assert zoo.judge(zoo.Parameter("lm_head.weight", owners))[0] is None
    assert zoo.judge(zoo.Parameter("lm_head.weight", owners, is_head=True)) == ("embedding", "output embeddings")


def scored(*lines):
    """The score of parameters given as (name, shape, owner)."""
    shapes = {name: shape for name, shape, _ in lines}
    return zoo.score([zoo.Parameter(name, (owner, "Layer", *BLOCK)) for name, _, owner in lines], shapes, {})


def test_a_score_counts_what_is_right_wrong_and_unknown():
    result = scored(
        ("layers.0.self_attn.q_proj.weight", (64, 64), "LlamaAttention"),
        ("layers.0.self_attn.k_proj.weight", (64, 64), "LlamaMLP"),
        ("layers.1.self_attn.k_proj.weight", (64, 64), "LlamaMLP"),
        ("layers.0.wizard.weight", (64, 64), "LlamaMLP"),
        ("layers.0.wizardry.weight", (64, 64), "LlamaWizard"),
        ("layers.0.norm.weight", (64, 64), "LlamaAttention"),
        ("layers.0.norms.weight", (64, 64), "LlamaNorms"),
        ("layers.0.mlp.gate.weight", (1, 64), "LlamaMLP"),
    )
    assert result == {
        "right": 1,
        "scored": 5,
        "matrices": 6,
        "unrecognised": 2,
        "wrong": {
            "layers.#.self_attn.k_proj.weight: mlp by LlamaMLP, found attention (k)": 2,
            "layers.#.wizard.weight: mlp by LlamaMLP, found other (other)": 1,
            "layers.#.norm.weight: attention by LlamaAttention, found norm": 1,
        },
        "not_scored": {"LlamaWizard, a class outside the table": 1},
    }
    assert zoo_docs.share(result) == 1 / 5
    assert zoo_docs.share(scored()) is None


def test_a_fused_tensor_is_right_only_in_all_its_parts():
    name = "h.0.attn.c_attn.weight"
    assert scored((name, (64, 192), "GPT2Attention"))["right"] == 1
    assert scored((name, (64, 192), "GPT2MLP"))["right"] == 0


def test_parameters_that_change_family_with_their_names():
    built = zoo.by_family({"layers.0.mlp.up_proj.weight": (8, 4), "embed.weight": (16, 4)}, {})
    in_file = zoo.by_family({"layers.0.mlp.up_proj.weight": (8, 4), "wizard.weight": (16, 4)}, {})
    assert built == {"mlp": 32, "embedding": 64}
    assert zoo.moved(built, in_file) == {"embedding": -64, "other": 64}
    assert zoo.moved(built, built) == {}


def test_the_mean_is_over_types_and_the_worst_come_first():
    types = {
        "half": {"right": 1, "scored": 2, "matrices": 3, "unrecognised": 1, "wrong": {"a": 1}, "not_scored": {"x": 1}},
        "large": {"right": 9, "scored": 9, "matrices": 9, "unrecognised": 0, "wrong": {}, "not_scored": {}},
        "third": {"right": 1, "scored": 3, "matrices": 3, "unrecognised": 0, "wrong": {"b": 2}, "not_scored": {}},
        "none": {"right": 0, "scored": 0, "matrices": 1, "unrecognised": 0, "wrong": {}, "not_scored": {"x": 1}},
        "broken": "needs timm",
        "part": "needs timm",
    }
    found = zoo.summarise(types)
    assert found["mean"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert (found["registered"], found["built"], found["types_scored"], found["perfect"]) == (6, 4, 3, 1)
    assert found["tensors"] == {"right": 11, "scored": 14, "matrices": 16, "unrecognised": 1}
    assert found["not_scored"] == {"x": 2}
    assert found["failures"] == {"needs timm": ["broken", "part"]}
    assert [kind for kind, _ in zoo_docs.worst(found, 20)] == ["third", "half"]
    assert zoo.summarise({"part": "needs timm"})["mean"] == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("\nTimmBackbone requires the timm library but it was not found."), "needs timm"),
        (TypeError("unsupported\n operand"), "TypeError: unsupported operand"),
        (KeyError("full_attention"), "KeyError: 'full_attention'"),
        (zoo.NoModelError("no model class"), "no model class"),
    ],
)
def test_reasons_can_be_counted(error, said):
    assert zoo.reason(error) == said


@pytest.mark.parametrize(
    ("module", "kernel"),
    [
        ("Conv2d(3, 8, 4, stride=4)", "patches"),
        ("Conv2d(3, 8, 4, stride=2)", "kernel"),
        ("Conv2d(8, 8, 2, stride=2)", "kernel"),
        ("Conv1d(8, 8, 1)", "1x1"),
        ("Linear(8, 8)", "linear"),
    ],
)
def test_parameters_of_a_module_with_their_owners(module, kernel):
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([eval(f"nn.{module}")])
            self.norm = nn.LayerNorm(8)

    parameters, shapes = zoo.read(Model())
    assert set(shapes) == {"layers.0.weight", "layers.0.bias", "norm.weight", "norm.bias"}
    owner = module.partition("(")[0]
    assert parameters == [zoo.Parameter("layers.0.weight", (owner, "ModuleList", "Model"), kernel)]


def test_the_page_shows_the_committed_results():
    done = benchmark("zoo.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr


def test_a_page_that_shows_other_results_is_refused(tmp_path, capsys):
    page = tmp_path / "zoo.md"
    page.write_text("# Zoo\n<!-- zoo -->\n<!-- /zoo -->\nafter\n")
    assert zoo_docs.update_docs(page, RESULTS, check=True) == 1
    assert "does not show" in capsys.readouterr().err
    assert zoo_docs.update_docs(page, RESULTS, check=False) == 0
    assert zoo_docs.update_docs(page, RESULTS, check=True) == 0
    assert page.read_text().endswith("<!-- /zoo -->\nafter\n")
    page.write_text("# Zoo\n")
    assert zoo_docs.update_docs(page, RESULTS, check=False) == 1


def test_the_goals_are_met():
    shares = {kind: found for kind, result in RESULTS["types"].items() if (found := zoo_docs.share(result)) is not None}
    assert RESULTS["mean"] == pytest.approx(sum(shares.values()) / len(shares))
    assert RESULTS["mean"] >= 0.98
    assert {kind: shares[kind] for kind in zoo_docs.NAMED.values() if shares[kind] < 1} == {}
    assert RESULTS["built"] == len(RESULTS["types"]) > 550
    assert RESULTS["registered"] == RESULTS["built"] + sum(map(len, RESULTS["failures"].values()))
