"""Commands end with what one would type next, and a mark or a count is explained where it stands."""

from __future__ import annotations

from audited_models import llama, row, save
from command import invoke
from saved_reports import made


def test_an_audit_points_to_the_check_and_to_the_original(tmp_path):
    state = llama(0)
    state["model.layers.2.self_attn.q_proj.weight"][:9] = 0
    folder = save(tmp_path / "model", state)
    done = invoke("audit", folder, "--no-reference-model")
    assert "next: specdiag explain dead_rows" in done.stderr
    assert f"next: specdiag verify ORIGINAL {folder}" in done.stderr
    made([row("a", "q", 0)]).save(tmp_path / "m.json")
    assert "verify" not in invoke("audit", tmp_path / "m.json").stderr
    assert "next:" not in invoke("audit", folder, "--no-reference-model", "-f", "json").stderr


def test_an_audit_counts_the_checks_of_one_reason(tmp_path):
    made([row("a", "q", 0)]).save(tmp_path / "m.json")
    short, whole = invoke("audit", tmp_path / "m.json"), invoke("audit", tmp_path / "m.json", "--all")
    assert " checks (a report does not carry config.json" in short.stdout
    assert "hidden_size" not in short.stdout
    assert "hidden_size" in whole.stdout


def test_marks_have_a_legend(tmp_path):
    made([row("a", "q", 0, n_dead_rows=9), row("b", "q", 1)]).save(tmp_path / "m.json")
    assert "(! a warning)" in invoke("analyze", tmp_path / "m.json").stdout


def test_a_simulation_points_to_the_run():
    done = invoke("simulate", "--lr", "1e-3", "--weight-decay", "0.1", "--steps", "100")
    assert "next: specdiag simulate --check RUN" in done.stderr


def test_a_purpose_that_does_not_fit_stands_below_its_command(tmp_path):
    """A terminal broke both, in the middle of words."""
    state = llama(0)
    state["model.layers.2.self_attn.q_proj.weight"][:9] = 0
    folder = save(tmp_path / ("m" * 60), state)
    shown = {}
    for width in (80, 400, None):
        lines = invoke("audit", folder, "--no-reference-model", width=width).stderr.splitlines()
        shown[width] = lines[next(i for i, line in enumerate(lines) if line.startswith("next: specdiag verify")) :]
    assert shown[80][0] == f"next: specdiag verify ORIGINAL {folder}"
    assert shown[80][1].startswith("      find transposed or exchanged tensors")
    assert all(len(line) <= 80 for line in shown[80][1:])
    for width in (400, None):  # None: not a terminal
        assert "  find transposed or exchanged tensors" in shown[width][0]
