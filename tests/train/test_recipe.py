"""Recipes: the files of papers load, and a wrong file is refused with a sentence."""

import inspect
import warnings

import pytest
import torch
import transformers

import specdiag
from specdiag.errors import SourceError, UsageError
from specdiag.optim import AlphaDecay, optimizers
from specdiag.optim.registry import METHODS
from specdiag.train.callbacks.registry import OPTIONS
from specdiag.train.models.building import new_config
from specdiag.train.models.simple_vit import register
from specdiag.train.recipe import Recipe, load_recipe, preset_names

PARAMETERS = {
    "llama-60m": 58_073_600, "llama-135m": 134_105_856, "llama-350m": 367_969_280, "llama-1b": 1_339_082_752,
    "nano-gpt": 110_516_736, "gpt2-small": 163_037_184, "modded-nanogpt-124m": 123_568_128,
    "vit-tiny": 5_717_416, "simple-vit-s16": 21_974_632, "tiny-llama-bytes": 869_504,
}  # fmt: skip
"""Published: 58, 134, 368, 1339 M (GaLore and AlphaDecay), 163,009,536 without biases of q, k and v, 124 M, 5.7 M, 22 M."""
STARTED = ["roberta-base-glue"]
KINDS = {"causal-lm": transformers.AutoModelForCausalLM, "images": transformers.AutoModelForImageClassification}
EXAMPLE = """
title = "A"
source = "B"
task = "causal-lm"
data = ["text"]
tokenizer = "bytes"
block_size = 64
steps_total = 10
{more}
[model]
model_type = "llama"
[settings]
{settings}
"""


def example(path, more="", settings="learning_rate = 1e-3", text=EXAMPLE):
    file = path / "mine.toml"
    file.write_text(text.format(more=more, settings=settings))
    return load_recipe(str(file))


def model(recipe):
    register()
    with torch.device("meta"):
        return KINDS[recipe.task].from_config(transformers.AutoConfig.for_model(**recipe.model))


def test_every_preset_is_counted_here():
    assert preset_names() == sorted([*PARAMETERS, *STARTED])


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_models_have_the_published_size(name):
    recipe = load_recipe(name)
    built = model(recipe)
    assert sum(p.numel() for p in built.parameters()) == PARAMETERS[name]
    unknown = [key for key in recipe.model if key not in (*built.config.to_dict(), "num_labels")]
    assert not unknown, "transformers would ignore it"
    shapes = {n: tuple(p.shape) for n, p in built.named_parameters()}
    roles = {each.role for held in specdiag.roles(shapes, config=built.config.to_dict()).values() for each in held}
    assert {"q", "k", "v", "o", "up", "down"} <= roles


@pytest.mark.parametrize("name", preset_names())
def test_the_trainer_takes_the_settings(name, tmp_path):
    recipe = load_recipe(name)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=recipe.steps_total, use_cpu=True, report_to="none", **recipe.settings
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=arguments.learning_rate)
    warm = arguments.get_warmup_steps(recipe.steps_total)
    schedule = transformers.get_scheduler(
        arguments.lr_scheduler_type, optimizer, warm, recipe.steps_total, arguments.lr_scheduler_kwargs
    )
    factor = schedule.lr_lambdas[0]
    ends = (factor(0), factor(warm), factor(recipe.steps_total))
    floor = (arguments.lr_scheduler_kwargs or {}).get("min_lr_rate", 0)
    assert ends == pytest.approx((0.0 if warm else 1.0, 1.0, floor), abs=1e-12)
    assert 0 <= warm <= 0.2 * recipe.steps_total


@pytest.mark.parametrize("name", preset_names())
def test_presets_say_where_they_are_from(name):
    recipe = load_recipe(name)
    assert recipe.notes
    assert all(note.endswith(".") for note in recipe.notes)
    assert recipe.optimizer == "adam" or recipe.optimizer in METHODS
    if recipe.optimizer in METHODS:
        assert set(recipe.optimizer_options) <= set(METHODS[recipe.optimizer].defaults)
    if recipe.start:
        assert not recipe.model
    assert (recipe.decay == "alphadecay") == bool(recipe.alphadecay)


@pytest.mark.parametrize(
    ("name", "tokens", "paper"),
    [("llama-60m", 1e9, 10_000), ("llama-135m", 2e9, 20_000), ("llama-350m", 6e9, 60_000), ("llama-1b", 8.9e9, 90_000)],
)
def test_the_batches_of_the_papers(name, tokens, paper):
    recipe = load_recipe(name)
    settings = recipe.settings
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    assert (batch, recipe.block_size, recipe.steps_total) == (512, 256, paper)
    assert settings["warmup_steps"] == paper // 10
    seen = batch * recipe.block_size * recipe.steps_total
    assert tokens < seen < 1.4 * tokens  # theirs are counted without padding
    held_out = 512 * recipe.block_size
    assert recipe.max_tokens == seen + held_out


def test_the_other_batches():
    def batch(name):
        settings = load_recipe(name).settings
        return settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]

    small = load_recipe("gpt2-small")
    assert batch("gpt2-small") * 1024 * small.steps_total == 3_260_252_160  # the post's
    assert batch("simple-vit-s16") == 1024
    assert load_recipe("simple-vit-s16").steps_total == round(1_281_167 / 1024 * 90)
    assert batch("vit-tiny") == 384
    assert load_recipe("vit-tiny").steps_total == 1_281_167 // 384 * 120
    modded = load_recipe("modded-nanogpt-124m")
    assert batch("modded-nanogpt-124m") * 1024 * modded.steps_total == pytest.approx(100e9, rel=1e-6)


def test_scion_gets_the_published_balls():
    recipe = load_recipe("modded-nanogpt-124m")
    config = transformers.AutoConfig.for_model(**{**recipe.model, "num_hidden_layers": 1, "vocab_size": 60_000})
    built = transformers.AutoModelForCausalLM.from_config(config)
    settings = {"lr": recipe.settings["learning_rate"], "weight_decay": recipe.settings["weight_decay"]}
    (scion,) = optimizers(recipe.optimizer, built, **settings, **recipe.optimizer_options)
    groups = {group["place"]: group for group in scion.param_groups}
    assert set(groups) == {"hidden", "output"}
    assert (groups["output"]["radius"], groups["output"]["target_norm"]) == (3000.0, None)
    assert (groups["hidden"]["radius"], groups["hidden"]["lr"]) == (50.0, 2**-12)
    assert groups["hidden"]["target_norm"] == pytest.approx(5.79833984375)


def test_alphadecay_takes_the_options():
    options = [load_recipe(name).alphadecay for name in preset_names()]
    config = transformers.AutoConfig.for_model("llama", hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                                               num_attention_heads=4, vocab_size=256)  # fmt: skip
    built = transformers.AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.Adam(built.parameters(), weight_decay=1e-5)
    for each in filter(None, options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            AlphaDecay(built, optimizer, **each).detach()
    wide = [each["s2"] for each in options if each]
    assert set(wide) == {3.0, 5.0}


def test_a_file(tmp_path):
    recipe = example(tmp_path)
    assert isinstance(recipe, Recipe)
    assert (recipe.decay, recipe.optimizer, recipe.settings) == ("uniform", "adamw", {"learning_rate": 1e-3})
    assert example(tmp_path, "decay = 'plan:a.json'").decay == "plan:a.json"
    assert example(tmp_path, "optimizer = 'scionc'\noptimizer_options = { target_norm = 1.0 }").optimizer == "scionc"
    assert example(tmp_path, "start = 'runs/mine'").start == "runs/mine"
    assert example(tmp_path, text=EXAMPLE.replace('data = ["text"]', "")).data == ()


@pytest.mark.parametrize(
    ("more", "settings", "said"),
    [
        ("step_total = 3", "", "mine.toml: unknown field 'step_total': did you mean 'steps_total'?"),
        ("decay = 3", "", "mine.toml: 'decay': expected str, got int"),
        ("notes = [3]", "", "mine.toml: 'notes[0]': expected str, got int"),
        ("decay = 'alphadecai'", "", "unknown decay 'alphadecai': did you mean 'alphadecay'?"),
        ("decay = 'plan:'", "", "unknown decay 'plan:': did you mean 'plan:FILE'?"),
        ("optimizer = 'adamx'", "", "unknown optimizer 'adamx': did you mean 'adam'?"),
        ("optimizer_options = { nesterov = true }", "", "unknown option of adamw 'nesterov'; choose from lr, weight"),
        ("optimizer_options = { amsgrad = true }", "", "unknown option of adamw 'amsgrad'; choose from lr, weight"),
        ("decay = 'alphadecay'\nalphadecay = { gap = 1 }", "", "unknown option of alphadecay 'gap'; choose from s1"),
        ("alphadecay = { s1 = 1 }", "", "there is no option of uniform, and 's1' is given"),
        ("augment = 'crops'", "", "unknown augmentation 'crops': did you mean 'crop'?"),
        ("", "learning_rat = 1", "unknown argument of the Trainer 'learning_rat': did you mean 'learning_rate'?"),
        ("", "zzz = 1", "unknown argument of the Trainer 'zzz'"),
        ("", "learning_rate = 'fast'", "'learning_rate' is 'fast', and it must be of type float"),
        ("", "seed = 1.5", "'seed' is 1.5, and it must be of type int"),
        ("", "weight_decay = true", "'weight_decay' is True, and it must be of type float"),
        ("", "max_steps = 3", "'max_steps' is no setting here: steps_total says it"),
        ("steps_total = 3", "", "is no TOML"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, more, settings, said):
    with pytest.raises(UsageError) as refused:
        example(tmp_path, more, settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps_total = 10", "", "'steps_total' is missing"),
        ("steps_total = 10", "steps_total = 0", "at least one step"),
        ("block_size = 64", "", "causal-lm needs a 'block_size'"),
        ('tokenizer = "bytes"', "", "and a 'tokenizer'"),
        ('model_type = "llama"', "", "say which weights with 'start'"),
        ('task = "causal-lm"', 'task = "casual-lm"', "unknown task 'casual-lm': did you mean 'causal-lm'?"),
        ('task = "causal-lm"', 'task = "glue/"', "unknown task 'glue/'"),
        ('"B"', "4", "'source': expected str, got int"),
    ],
)
def test_what_a_recipe_cannot_do_without(tmp_path, old, new, said):
    with pytest.raises(UsageError) as refused:
        example(tmp_path, text=EXAMPLE.replace(old, new))
    assert said in str(refused.value)


def test_unknown_presets_and_files(tmp_path):
    with pytest.raises(
        UsageError, match=r"unknown preset 'llama-60': did you mean 'llama-60m'\? \(or name a .toml file\)$"
    ):
        load_recipe("llama-60")
    with pytest.raises(UsageError, match="unknown preset 'zebra'; choose from gpt2-small, llama-135m"):
        load_recipe("zebra")
    with pytest.raises(SourceError, match=r"cannot read .*none\.toml: No such file"):
        load_recipe(str(tmp_path / "none.toml"))


def test_options_of_alphadecay_are_those_of_the_class():
    known = set(inspect.signature(AlphaDecay).parameters)
    assert set(OPTIONS["alphadecay"]) < known
    assert {"s1", "s2", "every", "mode", "basis", "rule"} <= set(OPTIONS["alphadecay"])


def test_presets_of_text_on_the_hub_say_how_much_of_it():
    for recipe in map(load_recipe, preset_names()):
        if recipe.task == "causal-lm" and recipe.data:
            assert recipe.max_tokens > 0, recipe.title


@pytest.mark.parametrize("name", preset_names())
def test_the_model_of_a_preset_has_no_name_that_transformers_does_not_read(name):
    model = load_recipe(name).model
    assert "model_type" not in model or new_config(model).model_type == model["model_type"]
