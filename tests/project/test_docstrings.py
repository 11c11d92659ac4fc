"""The examples of the docstrings run, beside a model, its optimizer and a checkpoint called org/name."""

import doctest
import importlib
import pkgutil

import pytest
import torch
from live_models import Decoder
from models import LLAMA, write_checkpoint
from related_models import config, llama, tuned

import specdiag

MODULES = ["specdiag", *(m.name for m in pkgutil.walk_packages(specdiag.__path__, "specdiag."))]
EXAMPLES = {
    test.name: test
    for name in MODULES
    if not name.endswith("__main__")
    for test in doctest.DocTestFinder().find(importlib.import_module(name))
    if test.examples
}


def checkpoint(folder, change=0.0, config=None):
    moved = {name: w + change * w.norm() / w.numel() ** 0.5 for name, w in Decoder().state_dict().items()}
    write_checkpoint(folder, {f"model.{name}": w for name, w in moved.items()}, config=config or {"layers": 1})


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, change in (("name", 0.0), ("base", 0.0), ("fine-tune", 0.1)):
        checkpoint(tmp_path / "org" / name, change)
    for name, change in (("llama", 0.0), ("llama-chat", 0.1)):
        checkpoint(tmp_path / "org" / name, change, LLAMA)
    small = llama()
    for name, state in (("small", small), ("small-chat", tuned(small, 0.03))):
        write_checkpoint(tmp_path / "org" / name, {n: w.float() for n, w in state.items()}, config=config())
    for step in (1000, 2000):
        checkpoint(tmp_path / "runs" / "mine" / f"checkpoint-{step}", step / 1e5)
    model = Decoder()
    return {
        "specdiag": specdiag,
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1),
        "loader": [{"input_ids": torch.zeros(2, 8, dtype=torch.int64)} for _ in range(2)],
        "report": specdiag.analyze("org/name"),
    }


def test_the_public_names_have_examples():
    assert {"specdiag.analysis.analyze.analyze", "specdiag.decay.recommend.recommend", "specdiag.plot"} <= set(EXAMPLES)
    assert len(EXAMPLES) > 30


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.*:UserWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_prints_what_it_shows(name, surroundings, capsys):
    example = EXAMPLES[name]
    assert not any(doctest.SKIP in each.options for each in example.examples)
    example.globs = dict(vars(importlib.import_module(example.globs["__name__"]))) | surroundings
    failures, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert failures == 0, capsys.readouterr().out
