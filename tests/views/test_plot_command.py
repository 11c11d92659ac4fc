"""The command plot: files, options, refusals."""

import pytest
from command import execute, invoke, python
from drawn_models import llama
from models import write_checkpoint

import specdiag


def run(*args):
    return invoke("plot", *args)


@pytest.mark.parametrize(
    ("args", "written"),
    [
        (["esd", "A", "--role", "q", "--layer", "1", "-o", "e.svg"], "e.svg"),
        (["esd", "A", "B"], "run.esd.png"),
        (["esd", "A", "--all", "--style", "dark", "--transparent", "-o", "all.png"], "all.png"),
        (["alpha", "A", "--basis", "square", "--dpi", "60"], "run.alpha.png"),
        (["balance", "A", "B"], "run.balance.png"),
        (["heatmap", "A", "--metric", "rho", "-o", "h.pdf"], "h.pdf"),
        (["decay", "plan.json"], "plan.decay.png"),
        (["decay", "A", "--basis", "square"], "run.decay.png"),
        (["scree", "A", "--include", "*mlp*"], "run.scree.png"),
        (["paper", "A", "B", "--plan", "plan.json"], "run.paper.png"),
    ],
)
def test_command(args, written, tmp_path, monkeypatch, reports):
    monkeypatch.chdir(tmp_path)
    reports[2].save(tmp_path / "run.specdiag.json")
    reports["2B"].save(tmp_path / "b.json")
    specdiag.recommend(reports[2], weight_decay=0.1).save(tmp_path / "plan.json")
    done = run(*({"A": "run.specdiag.json", "B": "b.json"}.get(a, a) for a in args))
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert done.stderr.strip() == f"written: {written}"
    assert (tmp_path / written).stat().st_size > 5000


def test_command_analyses_a_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "ckpt", llama(2))
    done = execute("plot", "alpha", "ckpt", "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "for this figure alone" in done.stderr
    assert (tmp_path / "ckpt.alpha.png").read_bytes().startswith(b"\x89PNG")


def test_command_refusals(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    small.save(tmp_path / "a.json")
    small.save(tmp_path / "bare.json", spectra=False)
    for args, code, said in (
        (["heatmap", "a.json", "--metric", "loss"], 2, "choose from rows"),
        (["esd", "a.json", "a.json", "--all"], 2, "--all draws the matrices of one report: leave out the others"),
        (["alpha", "a.json", "--all"], 2, "alpha knows no --all; it takes --include, --layer, --role, --basis"),
        (["scree", "a.json", "--basis", "square"], 2, "scree knows no --basis; it takes --include, --layer, --role"),
        (["alpha", "a.json", "a.json"], 2, "alpha takes 1 SOURCE at most, not 2"),
        (["esd", "bare.json"], 2, "carries no eigenvalues"),
        (
            ["alpha", "a.json", "--device", "cpu"],
            2,
            "a.json is a saved report, taken as it is: --device needs the checkpoint",
        ),
        (["alpha", "gone.json"], 3, "no such file"),
    ):
        done = run(*args)
        assert (done.exit_code, done.stdout) == (code, "")
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2
    assert not list(tmp_path.glob("*.png"))


def test_help_is_light():
    code = (
        "import sys\nfrom specdiag_cli.main import app\n"
        "try:\n    app(['plot', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout.splitlines()[-1] == "[]"
