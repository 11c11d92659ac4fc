"""`analyze --function --role qk`: no stored matrix is chosen, and no output speaks of stored matrices."""

from command import execute


def test_products_alone(minilm, tmp_path):
    done = execute("analyze", minilm, "--function", "--role", "qk", "-o", tmp_path / "r.json", env={"COLUMNS": "112"})
    assert done.returncode == 0
    assert "0 matrices" not in done.stdout
    assert "Products of weights alone: no single matrix was chosen." in done.stdout
    assert "next: specdiag report" not in done.stderr
    assert "next: specdiag explain qk" in done.stderr


def test_gauge_shift_stays_beside_long_names(minilm, tmp_path):
    done = execute("analyze", minilm, "--function", "-o", tmp_path / "r.json", env={"COLUMNS": "100"})
    (head,) = (line for line in done.stdout.splitlines() if line.startswith("matrix "))
    assert "square_alpha  shift by form" in head
