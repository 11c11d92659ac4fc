import csv
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import call, python, shell, start_and_wait, words
from command import execute as specdiag
from models import QUERY, llama_state, write_checkpoint

from specdiag.report import COLUMNS, load_report
from specdiag.views import sentences

NAN = {QUERY.format(1): np.full((64, 64), np.nan, np.float32)}


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "ckpt", llama_state())


def test_table_and_saved_report(checkpoint, tmp_path):
    done = specdiag("analyze", checkpoint, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("Roles (medians") < done.stdout.index("\n15 matrices\n")
    assert "random matrices of the same shapes" in done.stdout
    assert "1 (1-D" in done.stdout
    assert "report: ckpt.specdiag.json" in done.stderr
    report = load_report(tmp_path / "ckpt.specdiag.json")
    assert len(report) == 15
    assert report.eigenvalues("model.layers.0.self_attn.q_proj.weight").shape == (64,)
    again = specdiag("analyze", tmp_path / "ckpt.specdiag.json", cwd=tmp_path)
    assert again.stdout == done.stdout


def test_a_summary_is_one_line(checkpoint, tmp_path):
    done = specdiag("analyze", checkpoint, "--summary", cwd=tmp_path)
    report = load_report(tmp_path / "ckpt.specdiag.json")
    assert done.stdout == f"{report.source}: {sentences.metrics(report.summary)}\n"
    assert specdiag("analyze", tmp_path / "ckpt.specdiag.json", "--summary", cwd=tmp_path).stdout == done.stdout
    for others in (("-f", "csv"), ("--all",), ("--dry-run",)):
        assert specdiag("analyze", checkpoint, "--summary", *others, cwd=tmp_path).returncode == 2


def test_machine_formats_have_the_same_columns(checkpoint, tmp_path):
    found = json.loads(specdiag("analyze", checkpoint, "-f", "json", cwd=tmp_path).stdout)
    assert [list(r) for r in found["records"]] == [list(COLUMNS)] * 15
    rows = list(csv.DictReader(io.StringIO(specdiag("analyze", checkpoint, "-f", "csv", cwd=tmp_path).stdout)))
    assert list(rows[0]) == list(COLUMNS)
    assert [float(r["alpha"]) for r in rows] == [r["alpha"] for r in found["records"]]
    text = specdiag("analyze", checkpoint, "-f", "md", cwd=tmp_path).stdout
    assert text.startswith("| name | part | form | role |")
    assert text.count("\n") == 17
    done = specdiag("analyze", checkpoint, "-f", "parquet", "-o", tmp_path / "a.parquet", cwd=tmp_path)
    assert done.returncode == 0
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "a.parquet")
    assert parquet.column_names == list(COLUMNS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "ckpt"]


def test_dry_run_reads_no_values(checkpoint, tmp_path):
    data = (checkpoint / "model.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little") + 8
    (checkpoint / "model.safetensors").write_bytes(data[:header] + b"\xff" * (len(data) - header))
    done = specdiag("analyze", checkpoint, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "15 matrices would be analysed" in done.stdout
    assert "GFLOP" in done.stdout
    assert "1 (1-D" in done.stdout
    assert "model.norm.weight" in specdiag("analyze", checkpoint, "--dry-run", "--all", cwd=tmp_path).stdout
    rows = json.loads(specdiag("analyze", checkpoint, "--dry-run", "-f", "json", cwd=tmp_path).stdout)
    assert sum(r["bytes"] for r in rows) == 4 * (200 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 160))
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]
    assert specdiag("analyze", checkpoint, cwd=tmp_path).returncode == 4


def test_nonfinite_is_exit_4_and_named(tmp_path):
    bad = np.ones((64, 64))
    bad[3, 4] = np.nan
    write_checkpoint(tmp_path / "ckpt", llama_state() | {QUERY.format(1): bad})
    done = specdiag("analyze", tmp_path / "ckpt", cwd=tmp_path)
    assert done.returncode == 4
    assert (
        "1 of 15 matrices have no spectrum: model.layers.1.self_attn.q_proj.weight (nonfinite: 1 values)" in done.stderr
    )
    assert len(load_report(tmp_path / "ckpt.specdiag.json")) == 15


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["--role", "query"], 2, "unknown --role query; roles are q, k, v"),
        (["--include", "zzz"], 2, "--include zzz matches none of 15 matrices"),
        (["--format", "yaml"], 2, "'yaml' is not one of 'table', 'json'"),
        (["-o", "nowhere/a.json"], 2, "the folder nowhere does not exist"),
        (["-o", "a.txt"], 2, "'a.txt' would hold JSON: name a .json file, or choose -f csv, md or parquet"),
        (["-f", "parquet"], 2, "parquet is binary; name a file with -o"),
        (["--tail-fraction", "0"], 2, "--tail-fraction 0.0 is not between 0 and 1"),
        (["--memory", "lots"], 2, "'lots' is no size"),
        (["--device", "tpu"], 2, "unknown device 'tpu'; choose auto, cpu"),
        (["--role", "router"], 3, "none of the 15 matrices has"),
        (["--tail", "best"], 2, "best"),
    ],
)
def test_bad_requests_are_one_sentence(checkpoint, tmp_path, args, code, sentence):
    done = specdiag("analyze", checkpoint, *args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert sentence in re.sub(r"[\s│]+", " ", done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt"]


def test_unwritable_folder_is_found_before_the_work(checkpoint, tmp_path, monkeypatch):
    from specdiag import files

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(files.UsageError, match=r"cannot write .*x.json: Permission denied"):
        files.check_writable(tmp_path / "x.json")


def test_a_newer_report(checkpoint, tmp_path):
    specdiag("analyze", checkpoint, "-o", "a.json", cwd=tmp_path)
    content = json.loads((tmp_path / "a.json").read_text()) | {"schema": 7}
    (tmp_path / "a.json").write_text(json.dumps(content, separators=(",", ":")))
    done = specdiag("analyze", "a.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "report of schema 7" in done.stderr


@pytest.mark.parametrize(("how", "before"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_interruption_keeps_a_partial_report(tmp_path, how, before):
    write_checkpoint(tmp_path / "ckpt", llama_state(12, 512, 1500))
    if before:
        (tmp_path / "ckpt.specdiag.json").write_text("finished")
    process = start_and_wait("analyze", "ckpt", "--jobs", "1", matrices=4, cwd=tmp_path, stdout=subprocess.PIPE)
    process.send_signal(how)
    start = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + how, err
    assert time.monotonic() - start < 30
    saved = "ckpt.incomplete.specdiag.json" if before else "ckpt.specdiag.json"
    report = load_report(tmp_path / saved)
    assert not report.complete
    assert 0 < len(report) < 85
    assert not before or (tmp_path / "ckpt.specdiag.json").read_text() == "finished"
    assert "marked incomplete" in err
    assert "INCOMPLETE" in out
    assert "Roles" in out


def test_a_closed_pipe_is_silent(checkpoint, tmp_path):
    done = shell("specdiag -q analyze ckpt -f csv | head -c 10", cwd=tmp_path)
    assert done.stdout == "name,part,"
    assert done.stderr == ""


def test_quiet_and_piped_output_is_wide_and_plain(checkpoint, tmp_path):
    done = specdiag("-q", "analyze", checkpoint, "--all", cwd=tmp_path)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "model.layers.1.self_attn.q_proj.weight" in done.stdout


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_narrow_terminals_lose_columns_not_names(checkpoint, tmp_path, columns):
    out = specdiag("-q", "analyze", checkpoint, cwd=tmp_path, env={"COLUMNS": str(columns)}).stdout
    title, _, rest = out.partition("\n\n")
    assert " ".join(title.split()).endswith("ckpt: LlamaForCausalLM, 107 k parameters, 15 matrices")
    tables = rest[: rest.index("15 matrices with")]
    assert max(map(len, tables.splitlines())) <= columns
    assert ("…" in tables) == (columns == 60)
    assert "square_alpha" in tables
    assert "attention  q" in tables


def test_many_matrices_are_summarised_by_depth(tmp_path):
    write_checkpoint(tmp_path / "ckpt", llama_state(10))
    short = specdiag("-q", "analyze", "ckpt", cwd=tmp_path).stdout
    assert "square_alpha by role and layer" in short
    assert "The 8 most extreme of 71 by square_alpha (--all: every one)" in short
    assert "model.layers.5.self_attn.q_proj.weight" in specdiag("-q", "analyze", "ckpt", "--all", cwd=tmp_path).stdout


def test_help_is_light():
    code = (
        "import sys\nfrom specdiag_cli.main import app\n"
        "try:\n    app(['analyze', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'huggingface_hub') if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout.splitlines()[-1] == "[]"
    smallest = "import typer\napp = typer.Typer()\n@app.command()\ndef main(): pass\napp()"
    own, typers = zip(
        *((_seconds(words("--help")), _seconds([sys.executable, "-c", smallest, "--help"])) for _ in range(5)),
        strict=True,
    )
    assert min(own) < 3 * min(typers)


def _seconds(command):
    """Measures processor time, because the clock of a busy machine says nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version_and_entry_points(tmp_path):
    from specdiag.system.distributions import version

    expected = f"specdiag {version('specdiag')}\n"
    assert specdiag("--version").stdout == expected
    script = os.path.join(os.path.dirname(sys.executable), "specdiag")
    assert call([script, "--version"]).stdout == expected
    root = Path(__file__).parents[2]
    assert call([sys.executable, "-m", "cli", "--version"], cwd=root).stdout == expected


def test_the_cpu_road_imports_no_torch(checkpoint, tmp_path):
    code = (
        "import sys, specdiag; specdiag.analyze(sys.argv[1], device='cpu');"
        "print([m for m in ('torch', 'scipy.stats', 'matplotlib', 'huggingface_hub') if m in sys.modules])"
    )
    done = python(code, checkpoint)
    assert done.stdout.strip() == "[]"


def test_the_command_imports_no_more_than_it_needs(checkpoint, tmp_path):
    """SciPy's optimizers, 22 MiB and a fifth of the time of a small model, are for --fit-test alone."""
    code = (
        "import sys\nfrom specdiag_cli.main import app\n"
        "try:\n    app(['analyze', sys.argv[1], '--device', 'cpu', '--no-cache', '-f', 'csv', '-o', sys.argv[2]])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print([m for m in ('torch', 'scipy.optimize', 'matplotlib', 'huggingface_hub') if m in sys.modules])"
    )
    assert python(code, checkpoint, tmp_path / "rows.csv").stdout.strip() == "[]"


def test_debug_shows_the_traceback(tmp_path):
    plain = specdiag("analyze", "/no/such/place")
    debug = specdiag("--debug", "analyze", "/no/such/place")
    assert plain.returncode == debug.returncode == 3
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_a_report_refuses_what_needs_the_weights(checkpoint, tmp_path):
    specdiag("analyze", checkpoint, "-o", "a.json", cwd=tmp_path)
    done = specdiag("analyze", "a.json", "--tail", "ks", "--role", "q", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a.json is a saved report, shown as it is: --role, --tail needs the checkpoint itself" in done.stderr


def test_a_selection_does_not_replace_the_whole(checkpoint, tmp_path):
    specdiag("analyze", checkpoint, cwd=tmp_path)
    specdiag("analyze", checkpoint, "--role", "q", cwd=tmp_path)
    assert len(load_report(tmp_path / "ckpt.specdiag.json")) == 15
    assert len(load_report(tmp_path / "ckpt.selected.specdiag.json")) == 2


def test_the_report_is_saved_before_the_reader_goes_away(checkpoint, tmp_path):
    done = shell("specdiag -q analyze ckpt | head -1; echo ${PIPESTATUS[0]}", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""
    assert len(load_report(tmp_path / "ckpt.specdiag.json")) == 15


@pytest.mark.parametrize("rows", ["--all", "-f csv"])
def test_a_closed_pipe_does_not_hide_a_bad_matrix(tmp_path, rows):
    write_checkpoint(tmp_path / "ckpt", llama_state(9) | NAN)
    done = shell(f"specdiag analyze ckpt {rows} | head -c 1 >&2; echo ${{PIPESTATUS[0]}}", cwd=tmp_path)
    assert done.stdout == "4\n"
    assert "1 of 64 matrices have no spectrum" in done.stderr


def test_without_spectra_no_stale_eigenvalues_stay(checkpoint, tmp_path):
    specdiag("analyze", checkpoint, cwd=tmp_path)
    specdiag("analyze", checkpoint, "--no-spectra", cwd=tmp_path)
    assert not (tmp_path / "ckpt.specdiag.spectra.safetensors").exists()


def test_a_full_disk_on_stdout(checkpoint, tmp_path):
    done = shell("specdiag -q analyze ckpt -f csv > /dev/full", cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr == "error: stdout: No space left on device: what was to be printed is lost\n"


def test_a_report_of_a_bad_checkpoint_keeps_its_exit_code(tmp_path):
    write_checkpoint(tmp_path / "ckpt", llama_state() | NAN)
    assert specdiag("analyze", "ckpt", "-o", "a.json", cwd=tmp_path).returncode == 4
    assert specdiag("analyze", "a.json", cwd=tmp_path).returncode == 4


def test_reports_of_equal_names_stand_side_by_side(tmp_path):
    for run in ("a", "b"):
        write_checkpoint(tmp_path / run / "checkpoint-10", llama_state())
        assert specdiag("-q", "analyze", f"{run}/checkpoint-10", cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in tmp_path.glob("*.json")) == [
        "b--checkpoint-10.specdiag.json", "checkpoint-10.specdiag.json"
    ]  # fmt: skip
    assert load_report(tmp_path / "checkpoint-10.specdiag.json").source.location == "a/checkpoint-10"
    again = specdiag("analyze", "a/checkpoint-10", cwd=tmp_path)
    assert "report: checkpoint-10.specdiag.json" in again.stderr


def test_a_plan_is_no_source(checkpoint, tmp_path):
    assert specdiag("-q", "recommend", "ckpt", "-o", "plan.json", cwd=tmp_path).returncode == 0
    done = specdiag("analyze", "plan.json", cwd=tmp_path)
    assert done.returncode == 3
    assert "'plan.json' is a decay plan, not weights: give a report or a checkpoint" in done.stderr
