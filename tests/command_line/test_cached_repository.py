"""Reports of what lies in the hub's cache are called by the repository, not by a hash."""

from __future__ import annotations

from pathlib import Path

from command import execute
from models import llama_state, write_checkpoint


def test_a_report_has_the_name_of_the_repository(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--some--name"
    snapshot = write_checkpoint(cache / "snapshots" / ("a1" * 20), llama_state())
    blob = cache / "blobs" / ("c3" * 32)
    blob.parent.mkdir()
    (snapshot / "model.safetensors").rename(blob)
    (snapshot / "model.safetensors").symlink_to(blob)
    for source in (cache, snapshot, snapshot / "model.safetensors"):
        done = execute("analyze", source, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.glob("*.specdiag.json")}
    assert names == {"org--some--name.specdiag.json", "org--some--name.model.safetensors.specdiag.json"}
