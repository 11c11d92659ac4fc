"""`--from`: a list of sources, one a line."""

from __future__ import annotations

import json

import pytest
from command import invoke, shell
from fleets import model

import specdiag


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a", "b", "with space")):
        model(tmp_path / name, i)


def listed(*arguments, **options):
    done = invoke("audit", *arguments, "-f", "json", "--no-reference-model", **options)
    assert done.exit_code == 0, done.stderr
    return [audit["source"]["location"] for audit in json.loads(done.stdout)]


LIST = b"\xef\xbb\xbf# first\r\n\r\n  a \r\nwith space\n#b\n a\n\nb"


def test_a_list_has_comments_empty_lines_and_each_source_once(tmp_path):
    (tmp_path / "models.txt").write_bytes(LIST)
    assert listed("--from", "models.txt") == ["a", "with space", "b"]
    assert listed("--from", "-", input=LIST) == ["a", "with space", "b"]
    assert listed("b", "b", "--from", "models.txt") == ["b", "a", "with space"]


def test_a_list_of_reports_beside_a_baseline(tmp_path):
    specdiag.analyze(tmp_path / "a").save(tmp_path / "a.json")
    (tmp_path / "models.txt").write_text("a.json\n")
    done = invoke("audit", "--from", "models.txt", "--baseline", "b", "-f", "json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["baseline"]["location"] == "b"


def test_a_pipe_of_the_shell_is_a_list(tmp_path):
    (tmp_path / "models.txt").write_text("gone\na\nb\n")
    done = shell("specdiag audit --no-reference-model --from <(sed -n 2,3p models.txt) -f parquet -o f.parquet",
                 cwd=tmp_path)  # fmt: skip
    assert done.stderr.splitlines()[-1].endswith("2 sources: 2 passed")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "models.txt names no source: write one a line"),
        (b"# nothing\n\n", "models.txt names no source"),
        (b"a\n\n\xff\xfe\n", "models.txt, line 3: it is no UTF-8"),
        (b"a\nb\0c\n", "models.txt, line 2: 'b\\x00c' is no path and no hub id: give one of them"),
        (b"a\n" + b"x" * 5000, "models.txt, line 2: 'xxx"),
        (b"\n" * ((64 << 20) + 1), "models.txt has more than 64 MiB, which no list of sources has"),
    ],
)
def test_a_bad_list_is_refused_before_the_work(tmp_path, content, said):
    (tmp_path / "models.txt").write_bytes(content)
    done = invoke("audit", "--from", "models.txt", "-f", "parquet", "-o", "f.parquet")
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "f.parquet").exists()


def test_requests_about_a_list_that_cannot_be_served(tmp_path):
    (tmp_path / "models.json").write_text("a\n")
    for arguments, said in [
        (["--from", "gone.txt"], "cannot read gone.txt: No such file or directory"),
        (["--from", "a"], "cannot read a: Is a directory"),
        (["--from", "models.json", "-o", "models.json"], "--out models.json is the SOURCE itself"),
        (["--explain", "rank", "--from", "models.json"], "--explain audits nothing: leave out --from"),
        ([], "name a SOURCE to audit, a list of them with --from, or a check with --explain"),
    ]:
        done = invoke("audit", *arguments)
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
