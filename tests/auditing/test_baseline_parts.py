"""`--part` chooses a model in both files, of the source and of the baseline, as `compare` does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import invoke
from models import llama_state, tensors, write_checkpoint

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError, UsageError


def state(seed: int) -> dict[str, torch.Tensor]:
    return tensors(llama_state(layers=1, seed=seed))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two saves of a model and its teacher, of which only the models differ."""
    for step, name in enumerate(("old.pt", "new.pt")):
        torch.save({"student": state(step), "teacher": state(7)}, tmp_path / name)
    return tmp_path / "old.pt", tmp_path / "new.pt"


@pytest.mark.parametrize(("part", "equal"), [("teacher", True), ("student", False)])
def test_the_part_is_of_both(files: tuple[Path, Path], part: str, equal: bool) -> None:
    old, new = files
    found = specdiag.audit(new, baseline=old, part=part)
    assert found.baseline is not None
    assert found.baseline.part == part
    assert ("baseline_identical" in {f.check for f in found.findings}) == equal
    done = invoke("audit", new, "--baseline", old, "--part", part)
    assert ("baseline_identical" in done.stdout) == equal


def test_a_baseline_of_several_models_is_not_guessed_at(files: tuple[Path, Path]) -> None:
    whole = write_checkpoint(files[0].parent / "plain", {n: t.numpy() for n, t in state(7).items()})
    with pytest.raises(SourceError, match="pick one, such as with part=student"):
        specdiag.audit(whole, baseline=files[0])
    with pytest.raises(UsageError, match=r"^part is of the baseline too, and .* has no part=teacher.*a saved report"):
        specdiag.audit(files[1], baseline=whole, part="teacher")
    for baseline in (specdiag.analyze(whole), open_checkpoint(whole)):
        assert specdiag.audit(files[1], baseline=baseline, part="teacher").baseline is not None


def test_a_report_against_a_part(files: tuple[Path, Path]) -> None:
    saved = files[0].parent / "teacher.specdiag.json"
    specdiag.analyze(files[1], part="teacher").save(saved)
    for source in (saved, specdiag.load_report(saved)):
        found = specdiag.audit(source, baseline=files[0], part="teacher")
        assert "baseline_changed" not in {f.check for f in found.findings}
        with pytest.raises(UsageError, match="a report is taken as it is: part"):
            specdiag.audit(source, part="teacher")
    assert invoke("audit", saved, "--baseline", files[0], "--part", "teacher").exit_code == 0
    for more in ((), ("--baseline", saved)):
        refused = invoke("audit", saved, "--part", "teacher", *more)
        assert refused.exit_code == 2
        assert "--part needs the checkpoint itself" in refused.stderr
