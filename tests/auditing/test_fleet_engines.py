"""The examples of docs/audit.md that share a list out, to Ray's workers and to an array of SLURM."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from command import call, execute, shell
from fleets import fleet, rows
from helpers import PATIENCE

DOCS = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS, re.DOTALL)
ENV = {"SPECDIAG_CACHE": ""}


QUICK = "--no-reference-model"
"""Without it every process takes seconds to import transformers."""


def block(language, options, quicker):
    """The example in this language that has these options, with `quicker` in their place."""
    (text,) = (text for kind, text in BLOCKS if kind == language and options in text)
    return text.replace(options, quicker)


@pytest.fixture
def names(tmp_path):
    names = fleet(tmp_path, 4)
    listed = ["# ours", "", *names, names[0], "gone/model.bin"]
    (tmp_path / "models.txt").write_text("\n".join(listed) + "\n")
    return [*names, "gone/model.bin"]


def check(folder, names, took):
    """The table has each model once, as one call makes it, and `report` takes it."""
    line = ["audit", "--from", "models.txt", QUICK, "-f", "parquet", "-o"]
    done = execute(*line, "one.parquet", cwd=folder, env=ENV)
    assert done.returncode == 1
    for kind in ("model", "finding"):
        one, joined = ({row["source"]: row | {"audited": ""} for row in rows(folder / f"{table}.parquet", kind)}
                       for table in ("one", "fleet"))  # fmt: skip
        assert one == joined
    assert sorted(row["source"] for row in rows(folder / "fleet.parquet", "model")) == sorted(names)
    assert execute("report", "fleet.parquet", cwd=folder).returncode == 0
    again = execute(*line, "fleet.parquet", cwd=folder, env=ENV)
    assert f"{took} of {len(names)} models are as they were" in again.stderr


def test_an_array_of_slurm(tmp_path, names):
    script = block("bash", "--from - ", f"--from - {QUICK} ")
    count = 2
    for task in (0, 1, 1):  # the second task was submitted again
        env = ENV | {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count)}
        done = shell(script, cwd=tmp_path, env=env)
        assert done.returncode in (0, 1, 3), done.stderr
    assert "2 of 2 models are as they were" in done.stderr
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == ["0.parquet", "1.parquet"]
    pyarrow.parquet.write_table(
        pyarrow.concat_tables(map(pyarrow.parquet.read_table, parts)), tmp_path / "fleet.parquet"
    )
    check(tmp_path, names, len(names) - 1)


@pytest.mark.skipif(find_spec("duckdb") is None, reason="pip install duckdb")
def test_the_queries_of_duckdb(tmp_path, names):
    import duckdb

    (tmp_path / "parts").mkdir()
    for task, share in enumerate((names[:2], names[2:])):
        out = tmp_path / "parts" / f"{task}.parquet"
        execute("audit", *share, QUICK, "-f", "parquet", "-o", out, cwd=tmp_path, env=ENV)
    ranked, counted, joined = (query.replace('\\"', '"') for query in re.findall(r'duckdb -c "(.*)"\n', DOCS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        duckdb.sql(joined)
        assert duckdb.sql(ranked).fetchall()[0] == ("m002", 1, 0)
        assert duckdb.sql(counted).fetchall() == [("nonfinite", 1)]
    check(tmp_path, names, len(names) - 1)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="pip install ray")
def test_workers_of_ray(tmp_path, names):
    import sys

    script = block("python", '["--from", "-", ', f'["--from", "-", "{QUICK}", ').replace("SHARES = 64", "SHARES = 2")
    (tmp_path / "fleet.py").write_text(script)
    for _ in range(2):
        done = call([sys.executable, "fleet.py", "models.txt", "fleet.parquet"], cwd=tmp_path, timeout=PATIENCE,
                    env=ENV | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"})  # fmt: skip
        assert done.returncode == 0, done.stderr
    check(tmp_path, names, len(names) - 1)
