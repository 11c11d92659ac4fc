"""Saved records of another schema are refused in one sentence that names both and the remedy; none is half-read."""

import json

import msgspec
import pytest

from specdiag.errors import SourceError
from specdiag.files import json_decoder
from specdiag.storage import kinds
from specdiag.storage.kinds import Kind, read_record

KINDS = [value for value in vars(kinds).values() if isinstance(value, Kind)]
decode = json_decoder(dict[str, object])


def saved(folder, **content):
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("step", [-1, 1])
def test_another_schema_is_named(tmp_path, kind, step):
    if not (schema := kind.schema + step):
        return
    path = saved(tmp_path, schema=schema, **{kind.field: [], "novelty": 1})
    remedy = kind.remedy if step < 0 else "upgrade specdiag"
    with pytest.raises(SourceError) as refused:
        read_record(path, decode, kind)
    assert str(refused.value) == (
        f"{path} is a {kind.name} of schema {schema}; this specdiag reads schema {kind.schema}: {remedy}"
    )


def refuse(data):
    raise msgspec.DecodeError("Object contains unknown field")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_record_of_another_kind_is_not_taken_for_an_old_one(tmp_path, kind):
    for other in KINDS:
        if other is not kind:
            for schema in (kind.schema, 99):
                path = saved(tmp_path, schema=schema, **{other.field: []})
                with pytest.raises(SourceError, match=f"is an? {other.name}, not an? {kind.name}: {kind.remedy}"):
                    read_record(path, refuse, kind)
