"""benchmarks/decay_loops.py: the decay of a step is seen as it is, in AdamW and beside a copy without decay."""

import sys
from pathlib import Path

import pytest
import torch
from live_models import Decoder, train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from decay_loops import run
from decay_loops_run import run_script
from decay_observed import Observer

pytestmark = pytest.mark.usefixtures("one_thread")


def observed(kind, said, **options):
    """Take two steps at decay 2, and call `said` with what they log."""
    model = Decoder().double()
    optimizer = kind([p for p in model.layers.parameters() if p.ndim == 2], lr=1e-2, weight_decay=2.0, **options)
    observer = Observer(model, optimizer, lambda: {name: said / 2 for name, _ in model.named_parameters()})
    train(model, optimizer, 2)
    return observer.found


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Muon])
def test_the_decay_is_the_one_that_was_taken_off(kind):
    right, wrong = observed(kind, 2.0), observed(kind, 2.002)
    assert right.largest() < 1e-9
    assert wrong.largest() == pytest.approx(1e-3, rel=0.01)
    assert len(right.pairs) == 2 * 12
    assert right.steps == 2


def test_a_loop_without_checkout_was_not_run():
    assert run("nanochat", None)[2] == "not run: no checkout"


def test_a_script_that_changed_is_refused():
    with pytest.raises(SystemExit, match="no single line 'train'"):
        run_script("pass", {"train": "decay"}, {})
