"""All results alike: a file and back, rows, a data frame, a few lines in a shell, an escaped table in a notebook."""

import sys
import types
from dataclasses import replace
from functools import cache

import msgspec
import pytest
from models import QUERY, lcg_state

import specdiag
from specdiag.errors import MissingExtraError
from specdiag.records import Source
from specdiag.trajectories.metric_log import entry
from specdiag.trajectories.records import StepResult, Trajectory

EVIL = "<script>alert('\u202e')</script>"
NAMES = tuple(QUERY.format(i) for i in range(40))


@cache
def analysed(seed=0):
    return specdiag.analyze(lcg_state(NAMES, seed=seed), device="cpu")


def trajectory():
    steps = tuple(
        StepResult(step=i, source=Source(kind="dir", location=f"{i}"), report="a", n_matrices=1, statuses={"ok": 1})
        for i in range(30)
    )
    rows = tuple(entry(i, NAMES[0], "alpha", 2.0) for i in range(30))
    return Trajectory(run="runs/mine", out="out", steps=steps, rows=rows)


RESULTS = {
    "report": (analysed, specdiag.load_report),
    "plan": (lambda: specdiag.recommend(analysed(), weight_decay=0.1), specdiag.load_plan),
    "comparison": (lambda: specdiag.compare(analysed(), analysed(1)), specdiag.load_comparison),
    "audit": (lambda: specdiag.audit(analysed(), baseline=analysed(1)), specdiag.load_audit),
    "trajectory": (trajectory, specdiag.load_trajectory),
    "simulation": (lambda: specdiag.simulate(lr=1e-3, weight_decay=0.1, steps=1000), specdiag.load_simulation),
}
each = pytest.mark.parametrize(("make", "load"), RESULTS.values(), ids=RESULTS)


@each
def test_a_result_is_saved_and_read_back(tmp_path, make, load):
    result = make()
    path = result.save(str(tmp_path / "result.json"))
    found = load(path)
    assert type(found) is type(result)
    assert found.to_records() == result.to_records()
    if isinstance(found, msgspec.Struct):
        assert found == result
    assert load(str(path)).to_json() == found.to_json() == path.read_bytes()


@each
def test_an_older_result_is_named_with_both_versions(tmp_path, make, load):
    path = make().save(tmp_path / "result.json")
    content = msgspec.json.decode(path.read_bytes())
    for schema, advice in ((content["schema"] + 1, "upgrade specdiag"), (1, "make one with")):
        if schema != content["schema"]:
            path.write_bytes(msgspec.json.encode(content | {"schema": schema}))
            said = f"of schema {schema}; this specdiag reads schema {content['schema']}: {advice}"
            with pytest.raises(specdiag.SourceError, match=said):
                load(path)


@each
def test_rows_are_plain_and_alike(make, load):
    rows = make().to_records()
    assert rows
    assert all(list(row) == list(rows[0]) for row in rows)
    assert all(value is None or isinstance(value, (str, int, float)) for row in rows for value in row.values())


@each
def test_a_data_frame_of_pandas(make, load):
    pytest.importorskip("pandas")
    result = make()
    rows, frame = result.to_records(), result.to_dataframe()
    assert frame.shape == (len(rows), len(rows[0]))
    assert list(frame.columns) == list(rows[0])


@each
def test_a_data_frame_of_polars_where_pandas_is_missing(monkeypatch, make, load):
    result = make()
    polars = types.SimpleNamespace(DataFrame=lambda content, **_: content)
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "polars", polars)
    frame = result.to_dataframe()
    assert [
        dict(zip(frame, values, strict=True)) for values in zip(*frame.values(), strict=True)
    ] == result.to_records()
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingExtraError, match="needs pandas or polars: pip install pandas"):
        result.to_dataframe()


def test_a_data_frame_without_rows_has_its_columns():
    pytest.importorskip("pandas")
    audit = specdiag.audit(analysed())
    assert list(msgspec.structs.replace(audit, findings=()).to_dataframe().columns)[:2] == ["check", "severity"]


@each
def test_a_shell_shows_a_few_lines(make, load):
    shown = repr(make())
    assert shown.startswith(f"{type(make()).__name__}(")
    assert len(shown) < 700
    assert shown.count("\n") < 12


@each
def test_a_notebook_shows_no_markup_of_strangers(make, load):
    result = make()
    if isinstance(result, specdiag.SpectralReport):
        result = replace(result, source=Source(kind="dir", location=EVIL))
    else:
        evil = result.to_json().decode().replace("model.layers.", f"{EVIL}.").replace("runs/mine", EVIL)
        result = msgspec.json.decode(evil, type=type(result))
    shown = result._repr_html_()
    assert shown.startswith("<p>")
    assert "<script" not in shown
    assert "\u202e" not in shown
    assert "\u202e" not in repr(result)
    assert shown.count("<tr>") <= 21
