"""AlphaDecay across interruptions, and states that belong to another run."""

import copy
import json

import pytest
import torch
from live_models import Decoder, train
from live_optimizers import adamw

from specdiag import UsageError
from specdiag.optim import AlphaDecay

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_checkpoint_goes_on_in_a_plain_optimizer_and_back(tmp_path):
    model = Decoder()
    optimizer = adamw(model)
    train(model, optimizer, 3, decay=AlphaDecay(model, optimizer, measure_first=True))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    plain = adamw(model)
    plain.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    assert len(plain.param_groups) == 1
    train(model, plain, 1, start=3)
    optimizer.load_state_dict(plain.state_dict())
    train(model, optimizer, 1, start=4)


@pytest.mark.parametrize("mode", ["round-robin", "sweep", "background"])
@pytest.mark.parametrize("stop", [3, 7])
def test_interrupted_equals_uninterrupted(mode, stop):
    def build():
        model = Decoder()
        optimizer = adamw(model)
        return model, optimizer, AlphaDecay(model, optimizer, every=5, mode=mode)

    model, optimizer, decay = build()
    train(model, optimizer, 12, decay=decay)

    first, first_optimizer, first_decay = build()
    train(first, first_optimizer, stop, decay=first_decay)
    state = json.loads(json.dumps(first_decay.state_dict()))
    second, second_optimizer, second_decay = build()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(copy.deepcopy(first_optimizer.state_dict()))
    second_decay.load_state_dict(state)
    assert second_decay.ratios == first_decay.ratios
    train(second, second_optimizer, 12 - stop, decay=second_decay, start=stop)
    assert second_decay.ratios == decay.ratios
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), second.parameters(), strict=True))


def test_a_state_of_other_modules_or_another_basis_is_refused(caplog):
    model = Decoder()
    state = AlphaDecay(model, adamw(model)).state_dict()
    deeper = Decoder(layers=3)
    other = AlphaDecay(deeper, adamw(deeper))
    with pytest.raises(UsageError, match=r"12 against 18 here.*'layers\.2\.self_attn\.q_proj\.weight'"):
        other.load_state_dict(state)
    with pytest.raises(UsageError, match="basis alpha, not square"):
        AlphaDecay(model, adamw(model), basis="square").load_state_dict(state)
    later = AlphaDecay(model, adamw(model), every=7, measure_first=True)
    later.step(0)
    later.load_state_dict(state)
    assert "every 500 -> 7" in caplog.text
    assert set(later.ratios.values()) == {1.0}
