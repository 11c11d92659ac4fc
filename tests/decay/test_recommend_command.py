"""Plans on disk, as code, and on the command line."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from command import invoke, python
from paper_report import PAPER, Llama, record
from saved_reports import made
from torch import nn

import specdiag
from specdiag.decay.plan import load_plan
from specdiag.decay.recommend import recommend
from specdiag.errors import SourceError, UsageError
from specdiag.storage.kinds import PLAN
from specdiag.views.plan_export import FORMATS, export_plan

# ------------------------------------------------------------------ files


def test_plans_are_saved_and_read_back(tmp_path: Path) -> None:
    plan = recommend(PAPER, weight_decay=0.1, clip=(5, 95))
    path = plan.save(tmp_path / "plan.json")
    assert load_plan(path) == plan
    assert json.loads(path.read_bytes())["entries"][0]["name"] == "model.layers.0.self_attn.q_proj.weight"
    path.write_text(path.read_text().replace(f'"schema": {PLAN.schema}', f'"schema": {PLAN.schema + 1}'))
    with pytest.raises(SourceError, match=f"plan of schema {PLAN.schema + 1}"):
        load_plan(path)
    PAPER.save(tmp_path / "report.json")
    with pytest.raises(SourceError, match="not a decay plan"):
        load_plan(tmp_path / "report.json")
    with pytest.raises(SourceError, match="cannot read"):
        load_plan(tmp_path / "absent.json")


def test_the_digest_is_that_of_the_saved_report(tmp_path: Path) -> None:
    import hashlib

    path = PAPER.save(tmp_path / "r.json")
    assert recommend(path).report_digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_exported_code_gives_the_planned_decays() -> None:
    torch.manual_seed(0)
    model = Llama()
    plan = recommend(model, weight_decay=0.1)
    scope: dict = {}
    exec(export_plan(plan, "torch"), scope)
    groups = scope["param_groups"](model, lr=3e-4)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    names = dict(model.named_parameters())
    assert {n: decay[id(p)] for n, p in names.items() if n in plan.ratios} == pytest.approx(
        {e.name: e.weight_decay for e in plan.entries}
    )
    assert decay[id(names["model.embed_tokens.weight"])] == 0
    assert decay[id(names["model.layers.0.input_layernorm.weight"])] == 0
    assert decay[id(names["lm_head.weight"])] == 0.1
    assert sum(len(g["params"]) for g in groups) == len(names)
    torch.optim.AdamW(groups)
    with pytest.raises(ValueError, match="the plan does not fit this model"):
        scope["param_groups"](nn.Linear(3, 3), lr=1.0)


def test_exported_code_without_a_base_asks_for_it() -> None:
    scope: dict = {}
    exec(export_plan(recommend(PAPER), "torch"), scope)
    with pytest.raises(TypeError, match="weight_decay"):
        scope["param_groups"](Llama(), lr=1.0)


@pytest.mark.parametrize("format", ["torch", "transformers"])
def test_code_is_not_written_for_names_of_gguf(format: str) -> None:
    names = {f"blk.{i}.attn_q.weight": np.random.default_rng(i).standard_normal((64, 64)) for i in range(3)}
    plan = recommend(specdiag.analyze(names), weight_decay=0.1)
    with pytest.raises(UsageError, match="' is a name of GGUF, which no module of torch has"):
        export_plan(plan, format)
    assert b"blk.0.attn_q.weight" in export_plan(plan, "csv")


@pytest.mark.parametrize("format", FORMATS)
def test_every_export_says_if_the_plan_is_to_be_used(format: str) -> None:
    plan = recommend(PAPER, weight_decay=0.1)
    assert (
        plan.headline == "Do not use this plan: 55 % of it is explained by shape. Keep one decay for all modules: 0.1."
    )
    text = export_plan(plan, format).decode()
    assert plan.headline in text
    if format == "csv":
        assert {row["headline"] for row in csv.DictReader(io.StringIO(text))} == {plan.headline}


def test_other_exports() -> None:
    plan = recommend(PAPER, weight_decay=0.1)
    read = tomllib.loads(export_plan(plan, "toml").decode())
    assert read["base_weight_decay"] == 0.1
    assert len(read["entries"]) == 56
    assert (
        export_plan(plan, "csv")
        .decode()
        .splitlines()[0]
        .startswith("name,role,family,layer,component,n_parameters,value,ratio")
    )
    caveat = "Do not use this plan: 55 % of it is explained by shape. Keep one decay for all modules: 0.1."
    rows = export_plan(plan, "md").decode().splitlines()
    assert (rows[0], len(rows)) == (caveat, 60)
    for format in ("torch", "transformers", "toml"):
        assert f"# {caveat}\n" in export_plan(plan, format).decode()
    assert json.loads(export_plan(plan, "json"))["rule"] == "linear"
    compile(export_plan(plan, "transformers"), "x", "exec")
    with pytest.raises(UsageError, match="unknown export 'yaml'; choose from torch, transformers"):
        export_plan(plan, "yaml")


def test_a_hostile_name_stays_a_string() -> None:
    name = 'x"]; import os; os.abort()  #\n.q_proj.weight'
    plan = recommend(made([record(name, "q", 0, 1.5), record("b.k_proj.weight", "k", 0, 2.5)]), weight_decay=0.1)
    scope: dict = {}
    exec(export_plan(plan, "torch"), scope)
    assert name in scope["RATIOS"]


# ------------------------------------------------------------------ the command


def run(*arguments: str):
    return invoke("recommend", *arguments)


def test_command_on_the_newest_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    empty = run()
    assert empty.exit_code == 3
    assert "no saved report in this directory" in empty.stderr
    PAPER.save(tmp_path / "made.specdiag.json")
    Path("plan.json").write_text("{}")
    specdiag.compare(PAPER, PAPER).save(tmp_path / "later.json")
    result = run("--weight-decay", "0.1", "-o", "plan.json", "--clip", "5", "95")
    assert result.exit_code == 0, result.output
    assert "taking the newest report here, made.specdiag.json" in result.stderr
    assert "56 Parameters with" in result.stdout
    assert "Base decay 0.1 (given)." in result.stdout
    assert load_plan("plan.json").clip == (5.0, 95.0)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("r.json", "--basis", "rho"), 2, "cannot be compared across shapes"),
        (("r.json", "--device", "cuda"), 2, "--device needs the checkpoint itself"),
        (("r.json", "--weight-decay", "0.1", "--tokens", "1e9"), 2, "both give a base decay"),
        (("r.json", "--tokens", "1e9"), 2, "add --params --batch-tokens --context-length --lr"),
        (("r.json", "-o", "nowhere/plan.json"), 2, "does not exist"),
        (("r.json", "--export", "yaml"), 2, "'yaml' is not one of"),
        (("absent.json",), 3, "no such file"),
        (("r.json", "--run", "."), 3, "holds no optimizer or trainer state"),
    ],
)
def test_command_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    PAPER.save(tmp_path / "r.json")
    result = run(*arguments)
    assert (result.exit_code, sentence in result.stderr) == (code, True), result.output


def test_command_derives_the_base(tmp_path: Path) -> None:
    path = PAPER.save(tmp_path / "r.json")
    result = run(
        str(path), "--tokens", "3260252160", "--params", "163009536", "--batch-tokens", "98304",
        "--context-length", "1024", "--lr", "4e-4", "--export", "json",
    )  # fmt: skip
    plan = json.loads(result.stdout)
    assert plan["base_weight_decay"] == pytest.approx(0.3371925, rel=1e-6)
    assert plan["base_origin"] == "Power Lines"
    said = run(
        str(path), "--tokens", "3260252160", "--params", "163009536", "--batch-tokens", "98304",
        "--context-length", "1024", "--lr", "4e-4",
    ).stdout  # fmt: skip
    assert "Base decay 0.33719" in said
    assert "Failed once: GPT-2 small" in said
    assert "Customary: 0.1 in GPT-3, Llama 1 to 3" in said


def test_command_reads_the_run(tmp_path: Path) -> None:
    model = Llama()
    run_folder = tmp_path / "checkpoint-100"
    run_folder.mkdir()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.05)
    torch.save(optimizer.state_dict(), run_folder / "optimizer.pt")
    (run_folder / "trainer_state.json").write_text(json.dumps({"global_step": 100, "max_steps": 20000}))
    torch.save(model.state_dict(), run_folder / "pytorch_model.bin")
    path = PAPER.save(tmp_path / "r.json")
    beside = run(str(run_folder))
    named = run(str(path), "--run", str(run_folder))
    for result in (beside, named):
        assert result.exit_code == 0, result.output
        assert "Base decay 0.05 (optimizer.pt)." in result.stdout
        assert "19,900 are left" in result.stdout


def test_coupled_decay_gets_no_verdict(tmp_path: Path) -> None:
    run_folder = tmp_path / "checkpoint-100"
    run_folder.mkdir()
    optimizer = torch.optim.Adam(Llama().parameters(), lr=3e-4, weight_decay=1e-5)
    torch.save(optimizer.state_dict(), run_folder / "optimizer.pt")
    (run_folder / "trainer_state.json").write_text(json.dumps({"global_step": 100, "max_steps": 20000}))
    path = PAPER.save(tmp_path / "r.json")
    for given in ((), ("--weight-decay", "1e-5")):
        result = run(str(path), "--run", str(run_folder), *given)
        assert result.exit_code == 0, result.output
        assert "coupled (Adam with L2), for which norms cannot be predicted: there is no verdict" in result.stdout
        assert result.stdout.startswith(
            "Do not use this plan: 55 % of it is explained by shape. Keep one decay for all modules: 1e-05.\n"
        )


def test_command_begins_with_a_verdict(tmp_path: Path) -> None:
    path = PAPER.save(tmp_path / "r.json")
    result = run(str(path), "--weight-decay", "0.1", "--lr", "1e-3", "--steps-left", "5000", "--schedule", "adamc",
                 "--steps-total", "10000")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Worth a run. Hold it against uniform decay")
    unsaid = run(str(path), "--weight-decay", "0.1", "--steps-left", "5000").stdout
    assert unsaid.rstrip().endswith("No verdict: it takes --lr too.")
    assert "norm by the end" in result.stdout
    assert "proportional to lr^2" in result.stdout


def test_the_square_basis_stands_beside_a_plan_that_shapes_explain(tmp_path: Path) -> None:
    shapes = {"q": (64, 64), "k": (64, 64), "up": (256, 64), "down": (64, 256)}
    random = torch.Generator().manual_seed(0)
    state = {
        f"model.layers.{layer}.{'mlp' if role in ('up', 'down') else 'self_attn'}.{role}_proj.weight":
        torch.randn(shape, generator=random) for layer in range(3) for role, shape in shapes.items()
    }  # fmt: skip
    report = specdiag.analyze(state)
    path = report.save(tmp_path / "r.json")
    by_alpha, by_square = (recommend(report, basis=basis) for basis in ("alpha", "square"))
    assert by_alpha.explained_by_shape
    assert [e.square_ratio for e in by_alpha.entries] == [e.ratio for e in by_square.entries]
    shown = run(str(path)).stdout
    assert "Without the shapes  mean ratios by square_alpha are attention" in shown
    assert shown.count("by square") == 3
    assert f"{by_alpha.mean_ratio_weighted:.3g} times the base for all modules has the same total" in shown
    others = run(str(path), "--basis", "spectral_norm").stdout
    assert "Without the shapes  --basis square" in others
    assert "by square_alpha" not in run(str(PAPER.save(tmp_path / "paper.json"))).stdout  # it has no square_alpha


def test_options_of_what_was_not_chosen_are_refused(tmp_path: Path) -> None:
    path = PAPER.save(tmp_path / "r.json")
    for arguments, words in (
        (("--rule", "sqrt", "--s1", "0.5"), "--s1 belongs to --rule linear, not to sqrt"),
        (("--steps-total", "100"), "--steps-total belongs to --schedule"),
        (("--target-norm", "3", "--momentum", "0.1"), "--momentum, --target-norm belongs to --schedule"),
    ):
        result = run(str(path), *arguments)
        assert (result.exit_code, words in result.stderr) == (2, True), result.output


def test_a_report_needs_neither_torch_nor_numpy(tmp_path: Path) -> None:
    path = PAPER.save(tmp_path / "r.json")
    code = (
        "import sys; from specdiag_cli.main import app\n"
        f"try: app(['recommend', {str(path)!r}, '--export', 'csv'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'huggingface_hub') if m in sys.modules], file=sys.stderr)"
    )
    done = python(code)
    assert done.stderr.strip() == "[]"
    assert len(done.stdout.splitlines()) == 57


def test_a_plan_does_not_replace_its_own_report(tmp_path: Path) -> None:
    path = PAPER.save(tmp_path / "r.json")
    before = path.read_bytes()
    result = run(str(path), "-o", str(path))
    assert (result.exit_code, "is the SOURCE itself" in result.stderr) == (2, True)
    assert path.read_bytes() == before


def test_an_empty_source_is_no_invitation_to_take_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PAPER.save(tmp_path / "r.json")
    assert run("").exit_code in (2, 3)


def test_two_origins_of_a_base_decay(tmp_path: Path) -> None:
    path = PAPER.save(tmp_path / "r.json")
    result = run(str(path), "--tokens", "1e9", "--run", str(tmp_path))
    assert (result.exit_code, "both give a base decay" in result.stderr) == (2, True)
