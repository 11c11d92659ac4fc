"""Several models in one file: they are named, one is chosen with part=, and none are mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command import execute, outcome
from read_back import assert_stored
from safetensors.torch import save_file

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError, UsageError

State = dict[str, torch.Tensor]


def state(seed: int, width: int = 8) -> State:
    made = torch.Generator().manual_seed(seed)
    names = ("layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight")
    return {name: torch.randn(2 * width, width, generator=made) for name in names}


def under(prefix: str, tensors: State) -> State:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


class EMA(torch.nn.Module):
    """A module that was saved whole."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(8, 16)


NESTED: dict[str, tuple[Any, str]] = {
    "two dictionaries": ({"net": state(1), "net_ema": state(2), "epoch": 3}, "net_ema"),
    "a dictionary within": ({"state": {"ema": {"state_dict": state(2)}, "model": state(1)}}, "state.ema"),
    "its full path": ({"state": {"ema": {"state_dict": state(2)}, "model": state(1)}}, "state.ema.state_dict"),
    "a wrapper's rival": ({"model": state(1), "ema_model": state(2)}, "ema_model"),
    "prefixes": (under("online_model", state(1)) | under("ema_model", state(2)), "ema_model"),
    "prefixes in a wrapper": ({"state_dict": under("student", state(1)) | under("teacher", state(2))}, "teacher"),
    "DDP's prefix before": (under("module.net", state(1)) | under("module.ema", state(2)), "ema"),
    "a key with dots": ({"gan.generator": state(2), "gan.discriminator": state(1)}, "gan.generator"),
}


@pytest.mark.parametrize("case", NESTED)
def test_one_of_several_is_taken(tmp_path: Path, case: str) -> None:
    content, part = NESTED[case]
    torch.save(content, tmp_path / "x.pt")
    for source in (tmp_path, tmp_path / "x.pt"):
        checkpoint = open_checkpoint(source, part=part)
        assert_stored(checkpoint, state(2))
        assert checkpoint.source.part == part
        assert any(f"under '{part}'" in note for note in checkpoint.notes)


def test_a_module_beside_a_state_dict(tmp_path: Path) -> None:
    module = EMA()
    torch.save({"state_dict": state(1), "ema": module}, tmp_path / "x.pt")
    assert_stored(open_checkpoint(tmp_path), state(1))
    assert_stored(open_checkpoint(tmp_path, part="ema"), module.state_dict())
    assert_stored(open_checkpoint(tmp_path, part="ema.proj"), module.proj.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    save({"net": state(1), "ema": {"state_dict": state(2)}}, checkpoint_id=str(tmp_path / "step-1"), no_dist=True)
    with pytest.raises(SourceError, match="pick one, such as with part="):
        open_checkpoint(tmp_path / "step-1")
    assert_stored(open_checkpoint(tmp_path / "step-1", part="ema"), state(2))


def test_prefixes_in_other_formats(tmp_path: Path) -> None:
    save_file(under("vision", state(1)) | under("text", state(2)), tmp_path / "model.safetensors")
    assert_stored(open_checkpoint(tmp_path, part="text"), state(2))
    assert_stored(open_checkpoint(tmp_path), under("vision", state(1)) | under("text", state(2)))


@pytest.mark.parametrize("part", ["nothing", "net.layers.0.self_attn.q_proj.weight", ".", "epoch", "layers.9"])
def test_a_part_that_is_not_there(tmp_path: Path, part: str) -> None:
    torch.save({"net": state(1), "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(UsageError, match=rf"has no part={part}: it has net \(2 tensors\)$"):
        open_checkpoint(tmp_path, part=part)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"model": state(1), "ema": {"state_dict": state(2)}, "optimizer": {"exp_avg": state(3)}},
         "it has model (2 tensors), ema.state_dict (2 tensors)"),
        (under("student", state(1)) | {"head.weight": torch.ones(4, 8)}, "it holds one model, so leave out part="),
        (under("vision", state(1)) | under("text", state(2)) | {"logit.scale": torch.ones(1, 1)},
         "it has vision (2 tensors), text (2 tensors)"),
        (state(1), "it holds one model, so leave out part="),
    ],
)  # fmt: skip
def test_the_parts_that_are_there(tmp_path: Path, content: State, parts: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UsageError) as raised:
        open_checkpoint(tmp_path / "x.pt", part="nix")
    assert str(raised.value).endswith(f"has no part=nix: {parts}")


def test_a_part_that_is_none_of_several(tmp_path: Path) -> None:
    torch.save({"net": state(1), "other": state(2)}, tmp_path / "x.pt")
    with pytest.raises(
        UsageError, match=r"'.*x\.pt' has no part=third: it holds 2 tensors under 'net', 2 tensors under"
    ):
        open_checkpoint(tmp_path, part="third")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"generator": state(1), "discriminator": state(2, 4)}, "pick one, such as with part=generator, or"),
        (under("generator", state(1)) | under("discriminator", state(2, 4)), "with part=discriminator"),
        (under("model.student", state(1)) | under("model.teacher", state(2)), "with part=model.student"),
    ],
)
def test_models_are_not_mixed(tmp_path: Path, content: object, sentence: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(SourceError, match=sentence) as raised:
        open_checkpoint(tmp_path)
    named = str(raised.value).partition("part=")[2].partition(",")[0]
    assert len(open_checkpoint(tmp_path, part=named).matrices) == 2


def test_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"net": state(1, 64), "net_ema": state(2, 64)}, tmp_path / "x.pt")
    code, _, err = outcome("analyze", "x.pt")
    assert code == 3
    assert "such as with --part net" in err
    code, out, err = outcome("analyze", "x.pt", "--part", "net_ema", "-o", "r.json")
    assert code == 0, err
    report = specdiag.load_report("r.json")
    assert report.source.part == "net_ema"
    assert len(report) == 2
    del out


def test_a_partial_report_of_another_part(tmp_path: Path) -> None:
    torch.save({"net": state(1, 64), "net_ema": state(2, 64)}, tmp_path / "x.pt")
    report = specdiag.analyze(tmp_path, part="net", jobs=1)
    with pytest.raises(UsageError, match=r"part net\), and this is .*part net_ema\)"):
        specdiag.analyze(tmp_path, part="net_ema", jobs=1, partial_reports=[report])


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_nested_state_dicts(tmp_path: Path, depth: int) -> None:
    content: dict[str, Any] = state(1)
    for level in range(depth):
        content = {("state_dict", "model")[level % 2]: content, "epoch": level}
    torch.save(content, tmp_path / "x.pt")
    assert_stored(open_checkpoint(tmp_path), state(1))


def test_the_report_of_a_part_and_the_next_command_name_it(tmp_path):
    torch.save({"G": {"a.weight": torch.ones(8, 8)}, "D": {"b.weight": torch.eye(8)}}, tmp_path / "gan.pt")
    for part in "GD":
        done = execute("analyze", "gan.pt", "--part", part, cwd=tmp_path)
        assert f"report: gan.pt.{part}.specdiag.json" in done.stderr
        assert f"next: specdiag audit gan.pt --part {part} " in done.stderr
        assert execute("audit", "gan.pt", "--part", part, cwd=tmp_path).returncode in (0, 1)
    assert {path.name for path in tmp_path.glob("*.specdiag.json")} == {f"gan.pt.{part}.specdiag.json" for part in "GD"}
